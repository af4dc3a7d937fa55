"""Groups of annotated objects, whose average precision is worth a look of its own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mssts import masks
from mssts.evaluation.average_precision import score_tracks
from mssts.evaluation.tracks import GroundTruth, Track

_SIZES = ((0, 128**2, "small"), (128**2, 256**2, "medium"), (256**2, float("inf"), "large"))
_OCCLUSIONS = ((0.0, 0.25, "slight"), (0.25, 0.5, "moderate"), (0.5, 1.01, "heavy"))


@dataclass(frozen=True)
class Group:
    """Average precision of a group of objects, −1 where it is empty.

    Attributes:
        name: such as `occlusion: heavy`.
        objects: how many there are.
        ap: over the IoU thresholds 0.50 to 0.95, the other objects ignored.
        ap50: at 0.50.
        ap75: at 0.75.
    """

    name: str
    objects: int
    ap: float
    ap50: float
    ap75: float


def ap_by_group(truth: GroundTruth, predictions: Sequence[Track]) -> list[Group]:
    """Average precision by category, size, length and occlusion of the objects.

    The objects outside a group are ignored, as is a prediction that matches one of them. A prediction that matches no
    object at all counts against every group, so the groups can lie below the whole.

    Sizes are YouTube-VIS's (mean area below 128², 256² pixels). Lengths are thirds of the objects by the number of
    frames they are seen in. Occlusion is the mean over a track's life, from its first to its last frame, of the share
    of its box that other boxes cover (the bounding-box overlap rate of OVIS, arXiv 2102.01558), 1 where it is hidden.
    """
    names = truth.names
    tracks = [track for track in truth.tracks if not track.is_crowd]
    occlusion = _occlusions(tracks)
    members: dict[str, list[Track]] = {
        f"category: {names[id_]}": [track for track in tracks if track.category_id == id_] for id_ in sorted(names)
    }
    for low, high, name in _SIZES:
        members[f"size: {name}"] = [track for track in tracks if low <= track.area < high]
    for low, high in _thirds([seen(track) for track in tracks]):
        members[f"length: {low} to {high} frames"] = [track for track in tracks if low <= seen(track) <= high]
    for least, most, name in _OCCLUSIONS:
        members[f"occlusion: {name}"] = [
            track for track, share in zip(tracks, occlusion, strict=True) if least <= share < most
        ]
    return [_group(name, truth, predictions, chosen) for name, chosen in members.items()]


def _group(name: str, truth: GroundTruth, predictions: Sequence[Track], members: Sequence[Track]) -> Group:
    chosen = {track.id for track in members}
    if not chosen:
        return Group(name, 0, -1.0, -1.0, -1.0)
    # A crowd is what the evaluation ignores.
    tracks = tuple(track if track.id in chosen else replace(track, is_crowd=True) for track in truth.tracks)
    metrics = score_tracks(replace(truth, tracks=tracks), predictions)
    return Group(name, len(chosen), metrics.ap, metrics.ap50, metrics.ap75)


def seen(track: Track) -> int:
    """The number of frames in which a track has a pixel."""
    return int((track.pixels_T > 0).sum())


def _thirds(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Ranges, both ends included, that hold about a third of the lengths each.

    There are fewer where the lengths are much the same.
    """
    if not lengths:
        return []
    ordered = sorted(lengths)
    cuts = sorted({ordered[len(ordered) // 3], ordered[2 * len(ordered) // 3], ordered[-1] + 1} - {ordered[0]})
    starts = [ordered[0], *cuts[:-1]]
    return [(start, end - 1) for start, end in zip(starts, cuts, strict=True)]


def _occlusions(tracks: Sequence[Track]) -> list[float]:
    """How much of each track is covered or hidden, from 0 to 1."""
    others = defaultdict(list)
    for track in tracks:
        others[track.video_id].append(track)
    boxes = {track.id: list(_boxes(track)) for track in tracks}
    return [_occlusion(track, [boxes[o.id] for o in others[track.video_id] if o is not track], boxes[track.id])
            for track in tracks]  # fmt: skip


def _occlusion(track: Track, others: Sequence[list[masks.Box | None]], own: list[masks.Box | None]) -> float:
    alive = np.flatnonzero([box is not None for box in own])
    if not alive.size:
        return 0.0
    shares = []
    for t in range(alive[0], alive[-1] + 1):
        box = own[t]
        if box is None:
            shares.append(1.0)
            continue
        covered = sum(_overlap(box, other) for boxes in others if (other := boxes[t]) is not None)
        shares.append(min(1.0, covered / (box[2] * box[3])))
    return float(np.mean(shares))


def _boxes(track: Track) -> Iterator[masks.Box | None]:
    for rle, pixels in zip(track.rles, track.pixels_T, strict=True):
        yield masks.box(rle, track.size) if rle is not None and pixels else None


def _overlap(a: masks.Box, b: masks.Box) -> float:
    """The area that two boxes (x, y, width, height) have in common."""
    width, height = (min(a[i] + a[i + 2], b[i] + b[i + 2]) - max(a[i], b[i]) for i in (0, 1))
    return max(0.0, width) * max(0.0, height)
