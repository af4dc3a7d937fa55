"""Reader of the YouTube-VIS 2019 and 2021 format, which names a broken field.

Every value is checked when the file is read, so that what comes after (training, evaluation, pictures) need not: a mask
that does not fill its frame, for one, would otherwise corrupt memory or pictures hours later.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from mssts import masks
from mssts.data.fields import Box, Field, check_unique, read_box, read_category, read_flag, read_path
from mssts.errors import MsstsError
from mssts.files import read_json
from mssts.manifest import Category
from mssts.media.images import decode_image, file_exif_tag
from mssts.media.orientation import Exif


@dataclass(frozen=True)
class Video:
    """A video of frames of one size, in pixels.

    `file_names` are relative to the data set's folder of images."""

    id: int
    width: int
    height: int
    file_names: tuple[str, ...]

    @property
    def size(self) -> masks.Size:
        """Height and width of its frames."""
        return self.height, self.width

    @property
    def length(self) -> int:
        """The number of frames."""
        return len(self.file_names)


@dataclass(frozen=True)
class Track:
    """One object through its video: an entry a frame, None where it is not visible.

    `rles` are COCO compressed run lengths of the video's size, whichever form the file has; `bboxes` are x, y, width,
    height in pixels; `areas` are in pixels.
    """

    id: int
    video_id: int
    category_id: int
    rles: tuple[bytes | None, ...]
    bboxes: tuple[Box | None, ...]
    areas: tuple[float | None, ...]
    iscrowd: bool


@dataclass(frozen=True)
class VideoDataset:
    """A data set as its file describes it.

    `tracks` is empty where the file has no annotations (a test split).

    A data set of images is `still`: each image is a video of one frame. `exif` says whether masks and sizes
    are those of the images with their EXIF orientation applied or ignored, None if nobody said so (most have none).
    """

    source: Path
    images: Path
    categories: tuple[Category, ...]
    videos: tuple[Video, ...]
    tracks: tuple[Track, ...]
    still: bool = False
    exif: Exif | None = None

    @cached_property
    def videos_by_id(self) -> dict[int, Video]:
        """The video of each id."""
        return {video.id: video for video in self.videos}

    @cached_property
    def label_of(self) -> dict[int, int]:
        """The index in `categories` of each category id."""
        return {category.id: label for label, category in enumerate(self.categories)}

    @cached_property
    def _tracks_by_video(self) -> dict[int, list[Track]]:
        found: dict[int, list[Track]] = {}
        for track in self.tracks:
            found.setdefault(track.video_id, []).append(track)
        return found

    def tracks_of(self, video: Video) -> tuple[Track, ...]:
        """The tracks of a video, in the file's order."""
        return tuple(self._tracks_by_video.get(video.id, ()))

    def mask(self, track: Track, t: int) -> np.ndarray:
        """A track's mask in frame `t`, bool [H, W] (empty where not visible)."""
        video = self.videos_by_id[track.video_id]
        rle = track.rles[t]
        if rle is None:
            return np.zeros(video.size, bool)
        return masks.decode(rle, video.size)

    def frame_path(self, video: Video, t: int) -> Path:
        """The path of the image of frame `t`."""
        return self.images / video.file_names[t]

    def read_frame(self, video: Video, t: int) -> np.ndarray:
        """Frame `t`, uint8 RGB [H, W, 3].

        Raises:
            MsstsError: the image is missing, is not an image, or is not of the video's size.
        """
        path = self.frame_path(video, t)
        try:
            frame = decode_image(path.read_bytes(), self.exif or "apply", trusted=True)
        except OSError as error:
            self._refuse_image(video, path, error.strerror or "cannot be read")
        except MsstsError as error:
            self._refuse_image(video, path, str(error))
        if frame.shape[:2] != (video.height, video.width):
            size = f"{frame.shape[1]}x{frame.shape[0]}"
            self._refuse_image(video, path, f"{size} pixels, expected {video.width}x{video.height}")
        return frame

    def check_images(self) -> None:
        """Looks whether every frame's image is there, without decoding it.

        Raises:
            MsstsError: one is missing, or has an EXIF orientation while the data set has masks and `exif` is None: some
                tools draw masks on the picture turned, others as stored. The message names it.
        """
        ambiguous = self.exif is None and bool(self.tracks)
        for video in self.videos:
            for t in range(video.length):
                path = self.frame_path(video, t)
                if not path.is_file():
                    self._refuse_image(video, path, "no such image")
                if ambiguous and (tag := file_exif_tag(path)) != 1:
                    raise MsstsError(
                        f"{path}: has EXIF orientation {tag}, and {self.source.name} does not say whether its masks "
                        "are of the picture turned or as stored; pass --exif apply or --exif ignore"
                    )

    def _refuse_image(self, video: Video, path: Path, problem: str) -> NoReturn:
        listed = f"image {video.id}" if self.still else f"a frame of video {video.id}"
        raise MsstsError(f"{path}: {problem}; {self.source.name} lists it as {listed}")


def read_youtube_vis(path: Path | str, images: Path | str | None = None) -> VideoDataset:
    """Reads and checks a YouTube-VIS JSON file.

    Masks may be polygons or run lengths, compressed or not.

    Args:
        path: the JSON file. `annotations` may be absent or null, as in the test splits.
        images: the folder that `file_names` are relative to; by default `JPEGImages` beside the file, else its folder.

    Raises:
        MsstsError: the file cannot be read or breaks the format; the message names the file and the field.
    """
    path = Path(path)
    folder = images_folder(path, images)
    return parse_youtube_vis(Field(path, "", read_json(path)), folder)


def images_folder(path: Path, images: Path | str | None) -> Path:
    """The folder of the images of the file `path`: the given one, else the default.

    Raises:
        MsstsError: the one given is no folder.
    """
    if images is None:
        beside = path.parent / "JPEGImages"
        return beside if beside.is_dir() else path.parent
    if not Path(images).is_dir():
        raise MsstsError(f"{images}: no such folder; expected the images that {path.name} lists")
    return Path(images)


def parse_youtube_vis(root: Field, images: Path) -> VideoDataset:
    """As `read_youtube_vis`, of a file that is read already."""
    categories = tuple(read_category(field) for field in root.get("categories").items())
    check_unique(root, "categories", [category.id for category in categories])
    videos = tuple(_read_video(field) for field in root.get("videos").items())
    check_unique(root, "videos", [video.id for video in videos])

    annotations = root.get_optional("annotations")
    videos_by_id = {video.id: video for video in videos}
    category_ids = {category.id for category in categories}
    fields = annotations.items() if annotations is not None else []
    tracks = tuple(_read_track(field, videos_by_id, category_ids) for field in fields)
    check_unique(root, "annotations", [track.id for track in tracks])
    return VideoDataset(root.source, images, categories, videos, tracks)


def to_youtube_vis(dataset: VideoDataset) -> dict[str, Any]:
    """A data set as the JSON value of a YouTube-VIS file."""
    return {
        "categories": [{"id": category.id, "name": category.name} for category in dataset.categories],
        "videos": [
            {
                "id": video.id,
                "width": video.width,
                "height": video.height,
                "length": video.length,
                "file_names": list(video.file_names),
            }
            for video in dataset.videos
        ],
        "annotations": [_track_entry(track, dataset.videos_by_id[track.video_id]) for track in dataset.tracks],
    }


def _track_entry(track: Track, video: Video) -> dict[str, Any]:
    return {
        "id": track.id,
        "video_id": track.video_id,
        "category_id": track.category_id,
        "iscrowd": int(track.iscrowd),
        "segmentations": [masks.to_json(rle, video.size) for rle in track.rles],
        "bboxes": [None if bbox is None else list(bbox) for bbox in track.bboxes],
        "areas": list(track.areas),
    }


def _read_video(field: Field) -> Video:
    names = [read_path(name) for name in field.get("file_names").items()]
    if not names:
        field.get("file_names").fail("is empty; a video has at least 1 frame")
    length = field.get_optional("length")
    if length is not None:
        length.equals(len(names), "the number of file_names")
    width, height = field.get("width").side(), field.get("height").side()
    return Video(field.get("id").integer(), width, height, tuple(names))


def _read_track(field: Field, videos: dict[int, Video], category_ids: set[int]) -> Track:
    video_id, category_id = field.get("video_id"), field.get("category_id")
    video = videos.get(video_id.integer())
    if video is None:
        video_id.fail(f"is {video_id.value}, which no entry of videos has")
    if category_id.integer() not in category_ids:
        category_id.fail(f"is {category_id.value}, which no entry of categories has")
    for key, size in (("height", video.height), ("width", video.width)):
        given = field.get_optional(key)
        if given is not None:
            given.equals(size, f"the {key} of video {video.id}")
    crowd = field.get_optional("iscrowd")

    rles = tuple(
        None if entry.value is None else masks.read_mask(entry, f"video {video.id}", video.size)
        for entry in _frames(field.get("segmentations"), video)
    )
    bboxes, areas = field.get_optional("bboxes"), field.get_optional("areas")
    return Track(
        id=field.get("id").integer(),
        video_id=video.id,
        category_id=category_id.value,
        rles=rles,
        bboxes=tuple(
            [None if rle is None else masks.box(rle, video.size) for rle in rles]
            if bboxes is None
            else [None if entry.value is None else read_box(entry) for entry in _frames(bboxes, video)]
        ),
        areas=tuple(
            [None if rle is None else float(masks.areas([rle], video.size)[0]) for rle in rles]
            if areas is None
            else [None if entry.value is None else entry.number() for entry in _frames(areas, video)]
        ),
        iscrowd=crowd is not None and read_flag(crowd),
    )


def _frames(field: Field, video: Video) -> list[Field]:
    """The entries of a list that must have one for each frame of `video`."""
    entries = field.items()
    if len(entries) != video.length:
        field.fail(f"has {len(entries)} entries, video {video.id} has {video.length} frames")
    return entries
