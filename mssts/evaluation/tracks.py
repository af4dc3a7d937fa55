"""What evaluation reads: ground truth and results in YouTube-VIS format, checked, one `Track` an object.

Only what the metric depends on is looked at, so frames need not exist and files of the official sets, with polygons or
uncompressed run lengths, are taken as they are. `mssts.data` has the strict reader that training uses.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from tqdm import tqdm

from mssts.errors import MsstsError
from mssts.evaluation.masks import json_kind, read_mask


@dataclass(frozen=True)
class Track:
    """One object through a video of T frames: annotated, or predicted.

    `rles[t]` is a COCO compressed run-length mask, or None where the object has none; `pixels_T` holds their areas.
    `area` is the mean over the frames where the object is, which puts it into a size range.
    """

    id: int
    video_id: int
    category_id: int
    rles: tuple[dict[str, Any] | None, ...]
    pixels_T: np.ndarray
    area: float
    is_crowd: bool = False
    score: float = 0.0


@dataclass(frozen=True)
class Video:
    """A video's number of frames, and their height and width."""

    frames: int
    size: tuple[int, int]


@dataclass(frozen=True)
class GroundTruth:
    """The annotated tracks of a set. `notes` tell what the official evaluation silently leaves out."""

    videos: dict[int, Video]
    categories: dict[int, str]
    tracks: tuple[Track, ...]
    notes: tuple[str, ...]


def read_videos(value: Any, source: str) -> tuple[dict[int, Video], dict[int, str]]:
    """The videos and the category names by id, of the JSON value of an `instances.json`, with annotations or without.

    Raises:
        MsstsError: a field is missing or wrong; the message names `source`, the entry and the field.
    """
    if not isinstance(value, dict):
        raise MsstsError(f"{source}: expected an object with videos, categories and annotations (YouTube-VIS format)")
    videos: dict[int, Video] = {}
    for entry, where in _entries(value, "videos", source):
        _unique_id(entry, where, videos)
        if "length" not in entry:
            entry = {**entry, "length": len(_field(entry, "file_names", where, list))}
        length, height, width = (_natural(entry, name, where) for name in ("length", "height", "width"))
        videos[_integer(entry, "id", where)] = Video(length, (height, width))
    categories: dict[int, str] = {}
    for entry, where in _entries(value, "categories", source):
        _unique_id(entry, where, categories)
        categories[_integer(entry, "id", where)] = str(entry.get("name", entry["id"]))
    return videos, categories


def read_ground_truth(value: Any, source: str) -> GroundTruth:
    """Reads the JSON value of an `instances.json`; annotations of videos or categories it does not list are left out.

    An object's size is the mean of its `areas`, as in the official evaluation, or of its masks' where those are absent.

    Raises:
        MsstsError: a field is missing or wrong; the message names `source`, the entry and the field.
    """
    videos, categories = read_videos(value, source)
    tracks: dict[int, Track] = {}
    left_out = []
    for entry, where in _entries(value, "annotations", source):
        _unique_id(entry, where, tracks)
        video_id, category_id = _integer(entry, "video_id", where), _integer(entry, "category_id", where)
        if video_id not in videos or category_id not in categories:
            left_out.append(where)
            continue
        rles = _rles(entry, where, videos[video_id])
        pixels_T = _pixels(rles)
        area = _mean_area(pixels_T) if entry.get("areas") is None else _mean_area(_areas(entry, where))
        track_id = _integer(entry, "id", where)
        is_crowd = bool(entry.get("iscrowd", 0))
        tracks[track_id] = Track(track_id, video_id, category_id, rles, pixels_T, area, is_crowd)
    notes = []
    if left_out:
        notes.append(f"{len(left_out)} annotations of unlisted videos or categories left out (first: {left_out[0]})")
    if 0 in tracks:
        notes.append(f"{source}: annotation id 0 counts as never found in the official evaluation; number them from 1")
    return GroundTruth(videos, categories, tuple(tracks.values()), tuple(notes))


def read_predictions(value: Any, source: str, truth: GroundTruth) -> tuple[tuple[Track, ...], tuple[str, ...]]:
    """Reads the JSON value of a `results.json`; returns the predicted tracks and notes on what was left out.

    Predictions of a category that the ground truth does not list are left out, as in the official evaluation.

    Raises:
        MsstsError: an entry is wrong; the message names `source`, the entry and the field.
    """
    if not isinstance(value, list):
        raise MsstsError(f"{source}: expected a list of predictions, found {json_kind(value)}")
    tracks = []
    left_out = []
    for index, entry in enumerate(tqdm(value, desc="reading results", unit="", leave=False, disable=None)):
        where = f"{source}: entry {index}"
        if not isinstance(entry, dict):
            raise MsstsError(f"{where}: expected an object, found {json_kind(entry)}")
        video_id, category_id = read_video_id(entry, where, truth.videos), read_category_id(entry, where)
        score = read_score(entry, where)
        rles = _rles(entry, where, truth.videos[video_id])
        if category_id not in truth.categories:
            left_out.append(f"entry {index} has {category_id}")
            continue
        pixels_T = _pixels(rles)
        area = _mean_area(pixels_T)
        tracks.append(Track(index + 1, video_id, category_id, rles, pixels_T, area, score=score))
    if not left_out:
        return tuple(tracks), ()
    note = f"{source}: {len(left_out)} predictions left out, whose category_id the ground truth lacks ({left_out[0]})"
    return tuple(tracks), (note,)


def read_video_id(entry: dict[str, Any], where: str, videos: dict[int, Video]) -> int:
    """A prediction's `video_id`; `MsstsError` if it is none of `videos`."""
    video_id = _integer(entry, "video_id", where)
    if video_id not in videos:
        raise MsstsError(f"{where}: video_id {video_id} is not among the {len(videos)} ground-truth videos")
    return video_id


def read_category_id(entry: dict[str, Any], where: str) -> int:
    """A prediction's `category_id`; `MsstsError` if it is not an integer."""
    return _integer(entry, "category_id", where)


def read_score(entry: dict[str, Any], where: str) -> float:
    """A prediction's `score`; `MsstsError` if it is not a finite number."""
    score = _field(entry, "score", where, (int, float))
    if not abs(score) <= sys.float_info.max:  # NaN is not at most anything
        raise MsstsError(f"{where}: score must be a finite number, found {score}")
    return float(score)


def read_segmentations(entry: dict[str, Any], where: str, video: Video) -> list[Any]:
    """An entry's `segmentations`, not yet read as masks; `MsstsError` unless there is one for each frame."""
    segmentations: list[Any] = _field(entry, "segmentations", where, list)
    if len(segmentations) != video.frames:
        raise MsstsError(
            f"{where}: segmentations has {len(segmentations)} entries, but video_id {entry['video_id']}"
            f" has {video.frames} frames"
        )
    return segmentations


def _entries(value: dict[str, Any], name: str, source: str) -> list[tuple[dict[str, Any], str]]:
    """The objects of a list, each with the words that name it in an error."""
    entries = value.get(name)
    if entries is None:
        raise MsstsError(f"{source}: {name} is missing; evaluation needs ground truth in YouTube-VIS format")
    if not isinstance(entries, list):
        raise MsstsError(f"{source}: {name} must be a list, found {json_kind(entries)}")
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise MsstsError(f"{source}: {name}[{index}]: expected an object, found {json_kind(entry)}")
    return [(entry, f"{source}: {name}[{index}]") for index, entry in enumerate(entries)]


def _field(entry: dict[str, Any], name: str, where: str, kind: type | tuple[type, ...]) -> Any:
    if name not in entry:
        raise MsstsError(f"{where}: {name} is missing")
    value = entry[name]
    if not isinstance(value, kind) or isinstance(value, bool):
        wanted = "a list" if kind is list else "a number"
        raise MsstsError(f"{where}: {name} must be {wanted}, found {json_kind(value)}")
    return value


def _integer(entry: dict[str, Any], name: str, where: str) -> int:
    value = _field(entry, name, where, (int, float))
    if not abs(value) < 2**63 or value != int(value):
        raise MsstsError(f"{where}: {name} must be an integer, found {value}")
    return int(value)


def _natural(entry: dict[str, Any], name: str, where: str) -> int:
    value = _integer(entry, name, where)
    if value < 1:
        raise MsstsError(f"{where}: {name} must be at least 1, found {value}")
    return value


def _unique_id(entry: dict[str, Any], where: str, seen: dict[int, Any]) -> None:
    if _integer(entry, "id", where) in seen:
        raise MsstsError(f"{where}: id {entry['id']} is used twice")


def _areas(entry: dict[str, Any], where: str) -> list[float]:
    areas = _field(entry, "areas", where, list)
    if not all(area is None or isinstance(area, (int, float)) for area in areas):
        raise MsstsError(f"{where}: areas must be numbers, or null where the object is not")
    return [area or 0 for area in areas]


def _mean_area(areas: list[float] | np.ndarray) -> float:
    """The mean over the frames where the object is, 0 if it is in none."""
    visible = [area for area in areas if area]
    return float(np.mean(visible)) if visible else 0.0


def _pixels(rles: tuple[dict[str, Any] | None, ...]) -> np.ndarray:
    pixels_T = np.zeros(len(rles), np.int64)
    visible = [t for t, rle in enumerate(rles) if rle]
    if visible:
        pixels_T[visible] = coco_mask.area([rles[t] for t in visible])
    return pixels_T


def _rles(entry: dict[str, Any], where: str, video: Video) -> tuple[dict[str, Any] | None, ...]:
    segmentations = read_segmentations(entry, where, video)
    return tuple(read_mask(value, f"{where}: segmentations[{t}]", video.size) for t, value in enumerate(segmentations))
