"""Reads data sets in the YouTube-VIS 2019 and 2021 format, and says which field of which file is broken.

Every value is checked when the file is read, so that what comes after (training, evaluation, pictures) need not: a mask
that does not fill its frame, for one, would otherwise corrupt memory or pictures hours later.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

import cv2
import numpy as np
import pycocotools.mask

from mssts.errors import MsstsError
from mssts.files import read_json
from mssts.manifest import Category

Box = tuple[float, float, float, float]

_MAX_SIDE = 65535  # of a JPEG, in pixels
_MAX_NUMBER = 1e12


@dataclass(frozen=True)
class Video:
    """A video of frames of one size, in pixels; `file_names` are relative to the data set's folder of images."""

    id: int
    width: int
    height: int
    file_names: tuple[str, ...]

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
    """A data set as its file describes it. `tracks` is empty where the file has no annotations (a test split)."""

    source: Path
    images: Path
    categories: tuple[Category, ...]
    videos: tuple[Video, ...]
    tracks: tuple[Track, ...]

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
        """A track's mask in frame `t`, bool [H, W]; empty where the object is not visible."""
        video = self.videos_by_id[track.video_id]
        rle = track.rles[t]
        if rle is None:
            return np.zeros((video.height, video.width), bool)
        return pycocotools.mask.decode({"size": [video.height, video.width], "counts": rle}).view(bool)

    def frame_path(self, video: Video, t: int) -> Path:
        """Where the image of frame `t` lies."""
        return self.images / video.file_names[t]

    def read_frame(self, video: Video, t: int) -> np.ndarray:
        """Frame `t`, uint8 RGB [H, W, 3].

        Raises:
            MsstsError: the image is missing, is not an image, or is not of the video's size.
        """
        path = self.frame_path(video, t)
        try:
            encoded = np.frombuffer(path.read_bytes(), np.uint8)
        except OSError as error:
            self._refuse_image(video, path, error.strerror or "cannot be read")
        # Frames are stored upright as annotated; an EXIF orientation would turn them away from their masks.
        flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        frame = cv2.imdecode(encoded, flags) if encoded.size else None
        if frame is None:
            self._refuse_image(video, path, "not an image that can be decoded")
        if frame.shape[:2] != (video.height, video.width):
            size = f"{frame.shape[1]}x{frame.shape[0]}"
            self._refuse_image(video, path, f"{size} pixels, expected {video.width}x{video.height}")
        return frame

    def check_images(self) -> None:
        """Looks whether every frame's image is there, without decoding it.

        Raises:
            MsstsError: one is missing; the message names it.
        """
        for video in self.videos:
            for t in range(video.length):
                path = self.frame_path(video, t)
                if not path.is_file():
                    self._refuse_image(video, path, "no such image")

    def _refuse_image(self, video: Video, path: Path, problem: str) -> NoReturn:
        raise MsstsError(f"{path}: {problem}; {self.source.name} lists it as a frame of video {video.id}")


def read_youtube_vis(path: Path | str, images: Path | str | None = None) -> VideoDataset:
    """Reads and checks a YouTube-VIS JSON file. Masks may be polygons or run lengths, compressed or not.

    Args:
        path: the JSON file. `annotations` may be absent or null, as in the test splits.
        images: the folder that `file_names` are relative to; by default `JPEGImages` beside the file, else its folder.

    Raises:
        MsstsError: the file cannot be read or breaks the format; the message names the file and the field.
    """
    path = Path(path)
    if images is None:
        beside = path.parent / "JPEGImages"
        images = beside if beside.is_dir() else path.parent
    elif not Path(images).is_dir():
        raise MsstsError(f"{images}: no such folder; expected the images that {path.name} lists")

    root = _Field(path, "", read_json(path))
    categories = tuple(_read_category(field) for field in root.get("categories").items())
    _check_unique(root, "categories", [category.id for category in categories])
    videos = tuple(_read_video(field) for field in root.get("videos").items())
    _check_unique(root, "videos", [video.id for video in videos])

    annotations = root.get_optional("annotations")
    videos_by_id = {video.id: video for video in videos}
    category_ids = {category.id for category in categories}
    fields = annotations.items() if annotations is not None else []
    tracks = tuple(_read_track(field, videos_by_id, category_ids) for field in fields)
    _check_unique(root, "annotations", [track.id for track in tracks])
    return VideoDataset(path, Path(images), categories, videos, tracks)


class _Field:
    """A JSON value and its place in the file, which the message of a failed check names."""

    __slots__ = ("place", "source", "value")

    def __init__(self, source: Path, place: str, value: Any) -> None:
        self.source, self.place, self.value = source, place, value

    def fail(self, problem: str) -> NoReturn:
        raise MsstsError(f"{self.source}: {self.place or 'the file'} {problem}")

    def shown(self) -> str:
        """The value as a message quotes it."""
        text = repr(self.value)
        return text if len(text) <= 40 else f"{text[:37]}..."

    def get(self, key: str) -> _Field:
        field = self.get_optional(key, null_is_absent=False)
        if field is None:
            self.fail(f"has no field {key!r}")
        return field

    def get_optional(self, key: str, null_is_absent: bool = True) -> _Field | None:
        if not isinstance(self.value, dict):
            self.fail(f"must be an object, not {self.shown()}")
        if key not in self.value or (null_is_absent and self.value[key] is None):
            return None
        return _Field(self.source, f"{self.place}.{key}" if self.place else key, self.value[key])

    def items(self) -> list[_Field]:
        if not isinstance(self.value, list):
            self.fail(f"must be a list, not {self.shown()}")
        return [_Field(self.source, f"{self.place}[{i}]", value) for i, value in enumerate(self.value)]

    def frames(self, video: Video) -> list[_Field]:
        """The entries of a list that must have one for each frame of `video`."""
        entries = self.items()
        if len(entries) != video.length:
            self.fail(f"has {len(entries)} entries, video {video.id} has {video.length} frames")
        return entries

    def integer(self) -> int:
        if not isinstance(self.value, int) or isinstance(self.value, bool) or self.value < 0:
            self.fail(f"must be an integer of at least 0, not {self.shown()}")
        return self.value

    def side(self) -> int:
        if not 1 <= self.integer() <= _MAX_SIDE:
            self.fail(f"must be from 1 to {_MAX_SIDE} pixels, not {self.shown()}")
        return self.value

    def integers(self) -> list[int]:
        # Run lengths come by the million: only a list known to be broken is looked at entry by entry.
        if not isinstance(self.value, list) or not all(type(value) is int and value >= 0 for value in self.value):
            return [entry.integer() for entry in self.items()]
        return self.value

    def number(self) -> float:
        number = isinstance(self.value, (int, float)) and not isinstance(self.value, bool)
        if not number or not abs(self.value) < _MAX_NUMBER:  # NaN is not less than anything
            self.fail(f"must be a number below {_MAX_NUMBER:g}, not {self.shown()}")
        return float(self.value)

    def string(self) -> str:
        if not isinstance(self.value, str) or not self.value:
            self.fail(f"must be a non-empty string, not {self.shown()}")
        return self.value

    def equals(self, expected: int, meaning: str) -> None:
        if self.integer() != expected:
            self.fail(f"is {self.value}, but {meaning} is {expected}")


def _check_unique(root: _Field, key: str, ids: list[int]) -> None:
    first: dict[int, int] = {}
    for i, identity in enumerate(ids):
        if first.setdefault(identity, i) != i:
            root.get(key).items()[i].fail(f"has the id {identity}, which {key}[{first[identity]}] has already")


def _read_category(field: _Field) -> Category:
    return Category(field.get("id").integer(), field.get("name").string())


def _read_video(field: _Field) -> Video:
    names = []
    for name in field.get("file_names").items():
        inside = PurePosixPath(name.string())
        if inside.is_absolute() or ".." in inside.parts:
            name.fail(f"must be a path inside the folder of images, not {name.value!r}")
        names.append(name.value)
    if not names:
        field.get("file_names").fail("is empty; a video has at least 1 frame")
    length = field.get_optional("length")
    if length is not None:
        length.equals(len(names), "the number of file_names")
    width, height = field.get("width").side(), field.get("height").side()
    return Video(field.get("id").integer(), width, height, tuple(names))


def _read_track(field: _Field, videos: dict[int, Video], category_ids: set[int]) -> Track:
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
    if crowd is not None and crowd.integer() > 1:
        crowd.fail(f"must be 0 or 1, not {crowd.value}")

    rles = tuple(_read_rle(entry, video) for entry in field.get("segmentations").frames(video))
    whole = [None if rle is None else {"size": [video.height, video.width], "counts": rle} for rle in rles]
    bboxes, areas = field.get_optional("bboxes"), field.get_optional("areas")
    return Track(
        id=field.get("id").integer(),
        video_id=video.id,
        category_id=category_id.value,
        rles=rles,
        bboxes=tuple(
            [None if rle is None else tuple(pycocotools.mask.toBbox(rle).tolist()) for rle in whole]
            if bboxes is None
            else [_read_bbox(entry) for entry in bboxes.frames(video)]
        ),
        areas=tuple(
            [None if rle is None else float(pycocotools.mask.area(rle)) for rle in whole]
            if areas is None
            else [None if entry.value is None else entry.number() for entry in areas.frames(video)]
        ),
        iscrowd=crowd is not None and crowd.value == 1,
    )


def _read_bbox(field: _Field) -> Box | None:
    if field.value is None:
        return None
    entries = field.items()
    if len(entries) != 4:
        field.fail(f"must be x, y, width, height, not {len(entries)} numbers")
    x, y, width, height = (entry.number() for entry in entries)
    if width < 0 or height < 0:
        field.fail(f"has a negative width or height: {field.value}")
    return x, y, width, height


def _read_rle(field: _Field, video: Video) -> bytes | None:
    """A mask of any of COCO's three forms, as compressed run lengths."""
    if field.value is None:
        return None
    if isinstance(field.value, list):
        return _from_polygons(field, video)
    counts = field.get("counts")
    size = field.get("size").integers()
    if size != [video.height, video.width]:
        field.get("size").fail(f"is {size}, but video {video.id} is [{video.height}, {video.width}] (height, width)")

    pixels = video.height * video.width
    if isinstance(counts.value, list):
        covered = sum(counts.integers())
        if covered != pixels:
            counts.fail(f"covers {covered} pixels, the frame has {pixels}")
        return pycocotools.mask.frPyObjects(field.value, video.height, video.width)["counts"]
    text = counts.string()
    decoded = run_lengths(text.encode("utf-8", "surrogatepass"))
    if decoded is None or (decoded < 0).any():
        counts.fail(f"is not a COCO run-length string: {counts.shown()}")
    if int(decoded.sum()) != pixels:
        counts.fail(f"covers {int(decoded.sum())} pixels, the frame has {pixels}")
    return text.encode("ascii")


def _from_polygons(field: _Field, video: Video) -> bytes:
    polygons = [[coordinate.number() for coordinate in polygon.items()] for polygon in field.items()]
    if not polygons:
        field.fail("is an empty list of polygons; write null where the object is not visible")
    for polygon, entry in zip(polygons, field.items(), strict=True):
        if len(polygon) < 6 or len(polygon) % 2:
            entry.fail(f"has {len(polygon)} numbers, a polygon has an even number of at least 6 (x1, y1, x2, y2, …)")
        # pycocotools walks the outline pixel by pixel, however far away it is.
        if max(map(abs, polygon)) > 2 * _MAX_SIDE:
            entry.fail("lies far outside the frame")
    rles = pycocotools.mask.frPyObjects(polygons, video.height, video.width)
    return pycocotools.mask.merge(rles)["counts"]


def run_lengths(counts: bytes) -> np.ndarray | None:
    """The runs (background first) that a COCO run-length string stands for, int64; None if it is malformed.

    pycocotools' own reader trusts its input: it reads beyond a truncated string.

    The format: numbers in groups of 5 bits, least significant first, each a printable character from `0`; bit 5 says
    that the number continues, bit 4 of its last group is the sign; from the fourth on, a number is the difference to
    the run two before it.
    """
    groups = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    if not groups.size or groups.min() < 0 or groups.max() > 63 or groups[-1] & 32:
        return None
    last = np.flatnonzero((groups & 32) == 0)
    first = np.concatenate([[0], last[:-1] + 1])
    sizes = last - first + 1
    if sizes.max() > 7:  # 35 bits: more than any run of pixels, and far from overflow
        return None
    shifts = 5 * (np.arange(groups.size) - np.repeat(first, sizes))
    runs = np.add.reduceat((groups & 31) << shifts, first)
    runs -= np.where(groups[last] & 16, 1 << (5 * sizes), 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs
