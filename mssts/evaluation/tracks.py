"""Reads ground truth and results in YouTube-VIS format, one `Track` an object.

Only what the metric depends on is looked at, so frames need not exist. Masks are read as training reads them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mssts import masks
from mssts.data.fields import Field, check_unique, read_flag
from mssts.manifest import Category


@dataclass(frozen=True)
class Track:
    """One object through a video of T frames: annotated, or predicted.

    `rles[t]` is a COCO compressed run-length mask of `size`, or None where the object has none; `pixels_T` holds their
    areas. `area` is the mean over the frames where the object is, which puts it into a size range.
    """

    id: int
    video_id: int
    category_id: int
    size: masks.Size
    rles: tuple[bytes | None, ...]
    pixels_T: np.ndarray
    area: float
    is_crowd: bool = False
    score: float = 0.0


@dataclass(frozen=True)
class Video:
    """A video's number of frames, and their height and width."""

    frames: int
    size: masks.Size


@dataclass(frozen=True)
class VideoSet:
    """The videos of a set by id, and its classes in the file's order."""

    source: Path
    videos: dict[int, Video]
    categories: tuple[Category, ...]

    @property
    def names(self) -> dict[int, str]:
        """The name of each category id."""
        return {category.id: category.name for category in self.categories}


@dataclass(frozen=True)
class GroundTruth(VideoSet):
    """The annotated tracks of a set.

    `notes` say what the official evaluation silently leaves out.
    """

    tracks: tuple[Track, ...]
    notes: tuple[str, ...]


def read_video_set(value: Any, source: Path | str) -> VideoSet:
    """The videos and classes of an `instances.json`, with annotations or without.

    The argument is its JSON value.

    Raises:
        MsstsError: a field is missing or wrong; the message names `source` and the field.
    """
    root = Field(Path(source), "", value)
    listed = root.get("videos").items()
    video_ids = [entry.get("id").whole() for entry in listed]
    check_unique(root, "videos", video_ids)
    entries = root.get("categories").items()
    categories = tuple(Category(entry.get("id").whole(), _name(entry)) for entry in entries)
    check_unique(root, "categories", [category.id for category in categories])
    videos = dict(zip(video_ids, map(_read_video, listed), strict=True))
    return VideoSet(root.source, videos, categories)


def _name(category: Field) -> str:
    name = category.get_optional("name")
    return str(category.value["id"] if name is None else name.value)


def _read_video(field: Field) -> Video:
    length = field.get_optional("length")
    frames = len(field.get("file_names").items()) if length is None else length.whole()
    if frames < 1:
        field.fail(f"has {frames} frames, a video has at least 1")
    return Video(frames, (field.get("height").side(), field.get("width").side()))


def read_ground_truth(value: Any, source: Path | str) -> GroundTruth:
    """Reads an `instances.json` from its JSON value.

    Annotations of videos or categories that it does not list are left out.

    An object's size is the mean of its `areas`, as in the official evaluation, or of its masks' where those are absent.

    Raises:
        MsstsError: a field is missing or wrong; the message names `source` and the field.
    """
    known = read_video_set(value, source)
    names = known.names
    root = Field(Path(source), "", value)
    annotations = root.get_optional("annotations")
    if annotations is None:
        root.fail("has no annotations; evaluation needs ground truth")
    entries = annotations.items()
    ids = [entry.get("id").whole() for entry in entries]
    check_unique(root, "annotations", ids)
    tracks = []
    left_out = []
    for identity, entry in zip(ids, entries, strict=True):
        video_id, category_id = entry.get("video_id").whole(), entry.get("category_id").whole()
        if video_id not in known.videos or category_id not in names:
            left_out.append(entry.place)
            continue
        video = known.videos[video_id]
        rles = tuple(read_optional_mask(mask, video_id, video) for mask in read_segmentations(entry, video))
        pixels_T = _pixels(rles, video)
        given, crowd = entry.get_optional("areas"), entry.get_optional("iscrowd")
        area = mean_area(pixels_T if given is None else np.array([_area(field) for field in given.items()]))
        is_crowd = crowd is not None and read_flag(crowd)
        tracks.append(Track(identity, video_id, category_id, video.size, rles, pixels_T, area, is_crowd))
    notes = []
    if left_out:
        notes.append(
            f"{len(left_out)} annotations of unlisted videos or categories left out (first: {source}: {left_out[0]})"
        )
    if 0 in ids:
        notes.append(f"{source}: annotation id 0 counts as never found in the official evaluation; number them from 1")
    return GroundTruth(root.source, known.videos, known.categories, tuple(tracks), tuple(notes))


def read_predictions(value: Any, source: Path | str, truth: VideoSet) -> tuple[tuple[Track, ...], tuple[str, ...]]:
    """Reads a `results.json` from its JSON value.

    Returns the predicted tracks and notes on what was left out.

    Predictions of a category that the ground truth does not list are left out, as in the official evaluation.

    Raises:
        MsstsError: an entry is wrong; the message names `source`, the entry and the field.
    """
    names = truth.names
    tracks = []
    left_out = []
    entries = read_entries(value, source)
    for index, entry in enumerate(tqdm(entries, desc="reading results", unit="", leave=False, disable=None)):
        video_id, category_id = read_video_id(entry, truth), entry.get("category_id").whole()
        video = truth.videos[video_id]
        score = entry.get("score").number()
        rles = tuple(read_optional_mask(mask, video_id, video) for mask in read_segmentations(entry, video))
        if category_id not in names:
            left_out.append(f"{entry.place} has {category_id}")
            continue
        pixels_T = _pixels(rles, video)
        area = mean_area(pixels_T)
        tracks.append(Track(index + 1, video_id, category_id, video.size, rles, pixels_T, area, score=score))
    if not left_out:
        return tuple(tracks), ()
    note = f"{source}: {len(left_out)} predictions left out, whose category_id the ground truth lacks ({left_out[0]})"
    return tuple(tracks), (note,)


def read_entries(value: Any, source: Path | str) -> list[Field]:
    """The predictions of a results file, not yet checked.

    Raises:
        MsstsError: it is not a list.
    """
    root = Field(Path(source), "", value)
    if not isinstance(value, list):
        root.fail(f"must be a list of predictions, not {root.shown()}")
    return [Field(root.source, f"entry {index}", entry) for index, entry in enumerate(value)]


def read_video_id(entry: Field, known: VideoSet) -> int:
    """A prediction's `video_id`.

    Raises:
        MsstsError: it is none of the set's.
    """
    field = entry.get("video_id")
    video_id = field.whole()
    if video_id not in known.videos:
        field.fail(f"is {video_id}, which is not among the {len(known.videos)} videos of {known.source}")
    return video_id


def read_segmentations(entry: Field, video: Video) -> list[Field]:
    """An entry's `segmentations`, not yet read as masks.

    Raises:
        MsstsError: there is not one for each frame.
    """
    field = entry.get("segmentations")
    segmentations = field.items()
    if len(segmentations) != video.frames:
        field.fail(f"has {len(segmentations)} entries, video {entry.value['video_id']} has {video.frames} frames")
    return segmentations


def read_optional_mask(field: Field, video_id: int, video: Video) -> bytes | None:
    """A mask of a frame, or None where the object is not visible.

    An empty list or object stands for no mask too, as in the official evaluation, whose figures these are. Training
    takes null alone: in a data set of one's own, an empty list of polygons is a mask that got lost.

    Raises:
        MsstsError: it is not a mask of the video's size.
    """
    if field.value in (None, [], {}):
        return None
    return masks.read_mask(field, f"video {video_id}", video.size)


def by_video(tracks: Iterable[Track]) -> defaultdict[int, list[Track]]:
    """The tracks of each video, in their order."""
    groups: defaultdict[int, list[Track]] = defaultdict(list)
    for track in tracks:
        groups[track.video_id].append(track)
    return groups


def masks_in_frame(tracks: Sequence[Track], chosen: Iterable[int], t: int) -> list[bytes]:
    """The masks of some tracks in a frame, of those that have one."""
    return [rle for i in chosen if (rle := tracks[i].rles[t]) is not None]


def _area(field: Field) -> float:
    return 0.0 if field.value is None else field.number()


def mean_area(areas_T: np.ndarray) -> float:
    """The mean over the frames where the object is, 0 if it is in none."""
    visible = areas_T[areas_T != 0]
    return float(visible.mean()) if visible.size else 0.0


def _pixels(rles: tuple[bytes | None, ...], video: Video) -> np.ndarray:
    pixels_T = np.zeros(len(rles), np.int64)
    visible = {t: rle for t, rle in enumerate(rles) if rle is not None}
    pixels_T[list(visible)] = masks.areas(list(visible.values()), video.size)
    return pixels_T
