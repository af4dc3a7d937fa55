"""Sources of frames: video files, folders of images, lists, and data sets.

A data set is a YouTube-VIS or COCO-video JSON. Frames are streamed: the caller decides how many are in memory at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from mssts.data.videos import read_videos
from mssts.data.youtube_vis import VideoDataset
from mssts.errors import MsstsError
from mssts.files import reason
from mssts.manifest import Category
from mssts.media.folders import READABLE, frame_paths, image_files
from mssts.media.images import exif_tag, image_size, is_animated_png, size_text
from mssts.media.orientation import Exif
from mssts.media.video import Frame, Video
from mssts.media.video_file import open_video_file

__all__ = ["Frame", "SourceList", "Video", "VideoItem", "VideoSource", "list_source", "open_source"]

_HEADER_BYTES = 1 << 16
_VIDEO_SUFFIXES = frozenset({
    ".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".webm",
    ".wmv",
})  # fmt: skip
# Bytes that an image of a folder is taken for, to compare folders with video files: about a frame of H.264.
_IMAGE_WEIGHT = 10_000


@dataclass(frozen=True)
class VideoSource:
    """The videos of a path: one, or those of a list or data set, with its categories."""

    path: Path
    videos: tuple[Video, ...]
    categories: tuple[Category, ...] = ()


@dataclass(frozen=True)
class VideoItem:
    """One video of a source that is not opened yet, small enough to be sent about.

    Attributes:
        id: as in `Video`.
        name: as in `Video`.
        path: its file or folder; of a data set, the JSON.
        exif: as in `open_source`.
        dataset: the data set with this video alone, None for a file or a folder.
    """

    id: int
    name: str
    path: Path
    exif: Exif | None = None
    dataset: VideoDataset | None = None

    def open(self) -> Video:
        """Opens it, see `open_source`.

        Raises:
            MsstsError: as `open_source`.
        """
        if self.dataset is not None:
            self.dataset.check_images()
            (video,) = self.dataset.videos
            paths = [self.dataset.frame_path(video, t) for t in range(video.length)]
            return _images_video(self.id, self.name, paths, video.size, self.exif or "apply")
        if self.path.suffix.lower() == ".json" and self.path.is_file():
            raise MsstsError(f"{self.path}: a data set in a list of videos; predict it by itself")
        return replace(_open_path(self.path, self.exif or "apply"), id=self.id, name=self.name)

    def weight(self) -> float:
        """How long it takes, in a unit of its source, and 0 if it is not there."""
        if self.dataset is not None:
            (video,) = self.dataset.videos
            return video.length * video.width * video.height
        try:
            if self.path.is_dir():
                return _IMAGE_WEIGHT * sum(1 for _ in self.path.iterdir())
            return self.path.stat().st_size
        except OSError:
            return 0


@dataclass(frozen=True)
class SourceList:
    """The videos of a path, none of them opened, and its categories."""

    path: Path
    items: tuple[VideoItem, ...]
    categories: tuple[Category, ...] = ()


def open_source(path: Path | str, exif: Exif | None = None) -> VideoSource:
    """Opens a video, a photo, a folder, a list or a data set's JSON.

    A folder holds the JPEG and PNG images of one video, or video files. A list is a text file (`.txt`) with the path of
    a video or of a folder of images on each line.

    Frames are those that a person would see. Files are looked for and first frames read, so that what is wrong shows
    before work starts.

    Args:
        path: what to open.
        exif: whether the EXIF orientation of images is applied or ignored. By default it is applied, but refused in a
            data set with masks: some tools draw masks on the picture as displayed, others as stored.

    Raises:
        MsstsError: nothing is there; a file is not a video or has no frame; a folder has no images, or others than the
            frames of one video; a JSON breaks the format, or an image that it lists is missing or turned by EXIF.
    """
    listed = list_source(path, exif)
    return VideoSource(listed.path, tuple(item.open() for item in listed.items), listed.categories)


def list_source(path: Path | str, exif: Exif | None = None) -> SourceList:
    """Lists the videos of what `open_source` opens, without a look at their frames.

    Raises:
        MsstsError: nothing is there, a list cannot be read or is empty, or a JSON breaks its format.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if path.is_dir():
        videos = _video_files(path)
        return SourceList(path, _items(videos or [path], exif))
    if suffix == ".json" and path.is_file():
        return _dataset(path, exif)
    if suffix == ".txt" and path.is_file():
        return SourceList(path, _items(_listed(path), exif))
    return SourceList(path, _items([path], exif))


def _video_files(folder: Path) -> list[Path]:
    """The video files of a folder, none if it holds the frames of one video."""
    videos = sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in _VIDEO_SUFFIXES and not path.name.startswith(".") and path.is_file()
    )
    images = image_files(folder) if videos else []
    if images and len(videos) > 1:
        raise MsstsError(
            f"{folder}: has {len(videos)} videos and {len(images)} images ({images[0].name} for one); expected videos, "
            "or the frames of one. Move the others to another folder"
        )
    return [] if images else videos


def _listed(path: Path) -> list[Path]:
    """The paths in a text file, which are relative to its folder.

    Empty lines and those that begin with # are skipped.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise MsstsError(f"{path}: cannot be read: {reason(error)}") from None
    except UnicodeDecodeError:
        raise MsstsError(f"{path}: not UTF-8 text; expected the path of a video on each line") from None
    for number, line in enumerate(lines, 1):
        if not line.strip().isprintable():
            raise MsstsError(f"{path}: line {number} is not a path; expected the path of a video on each line")
    names = [line.strip() for line in lines]
    paths = [path.parent / name for name in names if name and not name.startswith("#")]
    if not paths:
        raise MsstsError(f"{path}: lists no video; expected the path of one on each line")
    return paths


def _items(paths: Sequence[Path], exif: Exif | None) -> tuple[VideoItem, ...]:
    names = [path.resolve().name if path.is_dir() else path.stem for path in paths]
    return tuple(
        VideoItem(number, name, path, exif)
        for number, (path, name) in enumerate(zip(paths, _distinct(names, range(1, len(names) + 1)), strict=True), 1)
    )


def _distinct(names: list[str], ids: Sequence[int]) -> list[str]:
    """The names if they are distinct, else others: files are named after them."""
    return [f"video_{number}" for number in ids] if "" in names or len(set(names)) < len(names) else names


def _open_path(path: Path, exif: Exif) -> Video:
    if path.is_dir():
        return _folder_video(path, exif)
    if not path.is_file():
        raise MsstsError(
            f"{path}: no such file; expected a video, a folder of images or videos, a list of those (.txt) or the JSON "
            "of a data set"
        )
    if path.suffix.lower() in READABLE and not _is_animated(path):
        return _photo_video(path, exif)
    return open_video_file(path)


def _is_animated(path: Path) -> bool:
    with path.open("rb") as file:
        return is_animated_png(file.read(_HEADER_BYTES))


def _photo_video(path: Path, exif: Exif) -> Video:
    return _images_video(1, path.stem, [path], _encoded_size(_read_image(path), path, exif), exif)


def _folder_video(folder: Path, exif: Exif) -> Video:
    paths = frame_paths(folder)
    return _images_video(1, folder.resolve().name, paths, _encoded_size(_read_image(paths[0]), paths[0], exif), exif)


def _dataset(path: Path, exif: Exif | None) -> SourceList:
    dataset = replace(read_videos(path), exif=exif)
    if not dataset.videos:
        raise MsstsError(f"{path}: videos is empty; expected at least one video")
    # The frames of a video usually lie in a folder of their own, whose name is the video's.
    names = ["_".join(PurePosixPath(video.file_names[0]).parent.parts) for video in dataset.videos]
    names = _distinct(names, [video.id for video in dataset.videos])
    # One track is enough to know that there are masks, which is all that opening asks.
    empty = replace(dataset, tracks=dataset.tracks[:1])
    items = tuple(
        VideoItem(video.id, name, path, exif, replace(empty, videos=(video,)))
        for video, name in zip(dataset.videos, names, strict=True)
    )
    return SourceList(path, items, dataset.categories)


def _images_video(identity: int, name: str, paths: Sequence[Path], size: tuple[int, int], exif: Exif) -> Video:
    def frames() -> Iterator[Frame]:
        for path in paths:
            encoded = _read_image(path)
            found = _encoded_size(encoded, path, exif)
            if found != size:
                turned = ""
                if _encoded_size(encoded, path, "ignore") != _encoded_size(encoded, path, "apply"):
                    turned = f" (with --exif {exif}: its EXIF orientation is {exif_tag(encoded)})"
                raise MsstsError(
                    f"{path}: {size_text(found)}{turned}, expected {size_text(size)} as the rest of its video; "
                    "the frames of a video must be of one size"
                )
            yield Frame(encoded=encoded, source=str(path), exif=exif)

    return Video(identity, name, size, None, len(paths), frames)


def _read_image(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise MsstsError(f"{path}: cannot be read: {error.strerror}") from None


def _encoded_size(encoded: bytes, path: Path, exif: Exif) -> tuple[int, int]:
    try:
        return image_size(encoded, exif)
    except MsstsError as error:
        raise MsstsError(f"{path}: {error}") from None
