"""Sources of frames: video files, folders of images, and videos of a data set.

A data set is a YouTube-VIS or COCO-video JSON. Frames are streamed: the caller decides how many are in memory at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from mssts.data.videos import read_videos
from mssts.errors import MsstsError
from mssts.manifest import Category
from mssts.media.folders import READABLE, frame_paths
from mssts.media.images import exif_tag, image_size, is_animated_png, size_text
from mssts.media.orientation import Exif
from mssts.media.video import Frame, Video
from mssts.media.video_file import open_video_file

__all__ = ["Frame", "Video", "VideoSource", "open_source"]

_HEADER_BYTES = 1 << 16


@dataclass(frozen=True)
class VideoSource:
    """The videos of a path: one, or those of a data set with its categories."""

    path: Path
    videos: tuple[Video, ...]
    categories: tuple[Category, ...] = ()


def open_source(path: Path | str, exif: Exif | None = None) -> VideoSource:
    """Opens a video file, a photo, a folder of images, or a data set's JSON.

    A folder holds the JPEG and PNG images of one video.

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
    path = Path(path)
    if path.is_dir():
        return VideoSource(path, (_folder_video(path, exif or "apply"),))
    if not path.is_file():
        raise MsstsError(f"{path}: no such file; expected a video, a folder of images or the JSON of a data set")
    suffix = path.suffix.lower()
    if suffix == ".json":
        return _dataset(path, exif)
    if suffix in READABLE and not _is_animated(path):
        return VideoSource(path, (_photo_video(path, exif or "apply"),))
    return VideoSource(path, (open_video_file(path),))


def _is_animated(path: Path) -> bool:
    with path.open("rb") as file:
        return is_animated_png(file.read(_HEADER_BYTES))


def _photo_video(path: Path, exif: Exif) -> Video:
    return _images_video(1, path.stem, [path], _encoded_size(_read_image(path), path, exif), exif)


def _folder_video(folder: Path, exif: Exif) -> Video:
    paths = frame_paths(folder)
    return _images_video(1, folder.resolve().name, paths, _encoded_size(_read_image(paths[0]), paths[0], exif), exif)


def _dataset(path: Path, exif: Exif | None) -> VideoSource:
    dataset = replace(read_videos(path), exif=exif)
    if not dataset.videos:
        raise MsstsError(f"{path}: videos is empty; expected at least one video")
    dataset.check_images()
    # The frames of a video usually lie in a folder of their own, whose name is the video's.
    names = ["_".join(PurePosixPath(video.file_names[0]).parent.parts) for video in dataset.videos]
    if "" in names or len(set(names)) < len(names):
        names = [f"video_{video.id}" for video in dataset.videos]
    videos = tuple(
        _images_video(
            video.id,
            name,
            [dataset.frame_path(video, t) for t in range(video.length)],
            (video.height, video.width),
            exif or "apply",
        )
        for video, name in zip(dataset.videos, names, strict=True)
    )
    return VideoSource(path, videos, dataset.categories)


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
