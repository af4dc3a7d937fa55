"""How well a model keeps objects apart and together in time, classes aside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mssts import masks
from mssts.evaluation.average_precision import evaluate, track_iou
from mssts.evaluation.tracks import GroundTruth, Track, by_video, masks_in_frame, read_ground_truth, read_predictions

_SAME_OBJECT = 0.7  # tracks that overlap more are hypotheses of one object, of which the best counts
_MATCHED = 0.5  # IoU of a frame, as of the CLEAR MOT metrics (Bernardin and Stiefelhagen, 2008)


@dataclass(frozen=True)
class Association:
    """Figures of the association in time.

    Attributes:
        ap: average precision if each track had the class of the object that it overlaps most.
        ap75: likewise, at the IoU threshold 0.75.
        identity_switches: how often an object goes over from one track to another. Of each video as many tracks count
            as it has objects, the best.
        matched_frames: in how many frames an object has a track, with an IoU of at least 0.5.
        object_frames: in how many frames an object is visible.
    """

    ap: float
    ap75: float
    identity_switches: int
    matched_frames: int
    object_frames: int


def association(ground_truth: dict[str, Any], results: list[Any]) -> Association:
    """Measures the association of results, as JSON values of `evaluate`.

    Raises:
        MsstsError: an entry is wrong.
    """
    truth = read_ground_truth(ground_truth, Path("ground truth"))
    predictions, _ = read_predictions(results, Path("results"), truth)
    predicted, annotated = by_video(predictions), by_video(truth.tracks)
    entries: list[dict[str, Any]] = []
    switches = matched = 0
    for video_id in truth.videos:
        objects = annotated[video_id]
        tracks = _distinct(predicted[video_id])
        entries += _with_classes_of(objects, tracks)
        some = _switches(objects, tracks[: len(objects)], truth)
        switches, matched = switches + some[0], matched + some[1]
    metrics = evaluate(ground_truth, entries)
    visible = sum(rle is not None for track in truth.tracks for rle in track.rles)
    return Association(metrics.ap, metrics.ap75, switches, matched, visible)


def _distinct(tracks: Sequence[Track]) -> list[Track]:
    """The tracks of a video, best first, without lesser hypotheses of an object."""
    kept: list[Track] = []
    for track in sorted(tracks, key=lambda track: -track.score):
        if not kept or track_iou([track], kept).max() < _SAME_OBJECT:
            kept.append(track)
    return kept


def _with_classes_of(objects: Sequence[Track], tracks: Sequence[Track]) -> list[dict[str, Any]]:
    """Results of the tracks, each with the class of the object that it overlaps most."""
    if not objects or not tracks:
        return []
    best = track_iou(tracks, objects).argmax(1)
    return [
        {
            "video_id": track.video_id,
            "category_id": objects[best[i]].category_id,
            "score": track.score,
            "segmentations": [masks.to_json(rle, track.size) for rle in track.rles],
        }
        for i, track in enumerate(tracks)
    ]


def _switches(objects: Sequence[Track], tracks: Sequence[Track], truth: GroundTruth) -> tuple[int, int]:
    """Identity switches and matched frames of a video.

    An object keeps its track while they match. The others are matched greedily, by IoU.
    """
    if not objects or not tracks:
        return 0, 0
    video = truth.videos[objects[0].video_id]
    last: dict[int, int] = {}
    switches = matched = 0
    for t in range(video.frames):
        rows = [k for k, thing in enumerate(objects) if thing.rles[t] is not None]
        columns = [n for n, track in enumerate(tracks) if track.rles[t] is not None]
        iou_KN = np.zeros((len(objects), len(tracks)))
        if rows and columns:
            first, second = masks_in_frame(objects, rows, t), masks_in_frame(tracks, columns, t)
            iou_KN[np.ix_(rows, columns)] = masks.iou(first, second, video.size)
        kept = {k: n for k, n in last.items() if iou_KN[k, n] >= _MATCHED}
        found: dict[int, int] = {}
        for k, n in kept.items():
            if n not in found.values():
                found[k] = n
        for index in np.argsort(-iou_KN, axis=None, kind="stable"):
            k, n = divmod(int(index), len(tracks))
            if iou_KN[k, n] < _MATCHED:
                break
            if k not in found and n not in found.values():
                found[k] = n
                switches += k in last and last[k] != n
        matched += len(found)
        last |= found
    return switches, matched
