"""Identities of a long video, linked through its overlapping windows.

Letters: N instances of a window, K tracks, T frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from mssts import masks
from mssts.prediction.windowing import owned_from
from mssts.segmenters.base import Instances

# The masks of one object in two windows overlap by far more than this even when they are poor. Two objects of one class
# that cross overlap by less, as they do so in a part of the shared frames only.
_MIN_IOU = 0.3
# An object's last mask and its next one, frames later, overlap less: it moves, and shrinks as it goes behind another.
# Measured on MovingShapes with perfect masks and windows of 5 frames that share 1: from 0.3 to 0.1, the frames under
# the right identity rise from 87.5% to 91.6%, those under a wrong one stay at 0.3%. Extrapolating motion does worse.
_MIN_ADJACENT_IOU = 0.1


@dataclass(frozen=True)
class Track:
    """An object through a video of T frames.

    Attributes:
        id: from 1, in the order in which the objects appear.
        label: index into the manifest's categories.
        score: the mean of the scores of the windows it was found in, each weighted by the frames it contributed.
        rles: a frame's mask as COCO compressed run lengths; None where the object is not visible.
        boxes_T4: float32, x1 y1 x2 y2 in pixels; NaN in the frames of windows that did not find it.
    """

    id: int
    label: int
    score: float
    rles: tuple[bytes | None, ...]
    boxes_T4: np.ndarray


@dataclass
class _OpenTrack:
    """A track that may still grow.

    `rles` has the frames where it is visible, `boxes` those of the windows it is in."""

    id: int
    label: int
    rles: dict[int, bytes] = field(default_factory=dict)
    boxes: dict[int, np.ndarray] = field(default_factory=dict)
    weighted_scores: float = 0.0
    frames: int = 0
    last_visible: int = -1

    @property
    def score(self) -> float:
        return self.weighted_scores / self.frames

    def extend(self, start: int, middle: int, instance: int, found: Instances) -> None:
        """Adds an instance of the window from `start` on.

        It contributes the frames from `middle` on, and before them the masks that the track lacks."""
        rles = found.rles[instance]
        for t, rle in enumerate(rles, start):
            if t >= middle or t not in self.boxes:
                self.boxes[t] = found.boxes[instance, t - start]
            if rle is not None and (t >= middle or t not in self.rles):
                self.rles[t] = rle
                self.last_visible = max(self.last_visible, t)
        contributed = start + len(rles) - middle
        self.weighted_scores += float(found.scores[instance]) * contributed
        self.frames += contributed


@dataclass(frozen=True)
class TrackedInstance:
    """A track in one frame: what is drawn."""

    track_id: int
    label: int
    score: float  # of the track so far
    rle: bytes
    box: np.ndarray  # float32 [4], x1 y1 x2 y2 in pixels


class Linker:
    """Joins the instances of consecutive windows of one video into tracks.

    An instance continues a track of the same label if the spatio-temporal IoU of their masks over the frames that both
    windows hold is at least 0.3. Where one of them is not visible in those frames (an object hidden just then, windows
    that share no frame), the IoU of the track's last mask and the instance's first must be at least 0.1 instead. Tracks
    last visible more than a window's length before the window are not continued. Pairs are taken greedily, by IoU ×
    both scores: of the several hypotheses that an engine returns for one object, the best continues the best. An
    instance left over starts a track.

    Of the shared frames, the first half keeps the masks of the earlier window and the second half takes those of the
    later, so that a mask comes from the window that holds more frames around it; where one window has no mask, the
    other's is taken. Frames before a window's start are final once that window is known, so they can be drawn while the
    video is still being read.

    Args:
        known: identities that are in use already; new ones are counted from there.
    """

    def __init__(self, known: int = 0) -> None:
        self._tracks: list[_OpenTrack] = []
        self._known = known
        self._recent: list[_OpenTrack] = []  # those that a window may still continue
        self._length = 0

    def add(self, start: int, frames: int, found: Instances) -> None:
        """Adds the instances of the window of `frames` frames from `start` on.

        Raises:
            ValueError: the window leaves out frames after the one before, or does not go beyond it.
        """
        if not start <= self._length < start + frames:
            raise ValueError(f"window {start}…{start + frames} does not continue the {self._length} frames so far")
        self._recent = [track for track in self._recent if track.last_visible >= start - frames]
        linked = self._match(start, found)
        middle = owned_from(start, self._length)
        for instance in range(len(found)):
            track = linked.get(instance)
            if track is not None:
                track.extend(start, middle, instance, found)
            elif any(found.rles[instance]):
                self._known += 1
                track = _OpenTrack(self._known, int(found.labels[instance]))
                track.extend(start, start, instance, found)
                self._tracks.append(track)
                self._recent.append(track)
        self._length = start + frames

    @property
    def known(self) -> int:
        """Identities in use, those of tracks that ended included."""
        return self._known

    def visible(self, frame: int) -> list[TrackedInstance]:
        """The tracks visible in a frame of the last window, as known so far, best first."""
        visible = [
            TrackedInstance(track.id, track.label, track.score, track.rles[frame], track.boxes[frame])
            for track in self._recent
            if frame in track.rles
        ]
        return sorted(visible, key=lambda instance: -instance.score)

    def forget(self, before: int) -> None:
        """Frees what no later window needs.

        So memory stays bounded in a stream without an end. What is freed is the tracks which none may continue, and
        masks and boxes of frames before `before`, where no later window starts, except each track's last. `tracks()`
        then lacks them.
        """
        self._tracks = list(self._recent)
        for track in self._recent:
            track.rles = {t: rle for t, rle in track.rles.items() if t >= before or t == track.last_visible}
            track.boxes = {t: box for t, box in track.boxes.items() if t >= before}

    def tracks(self) -> list[Track]:
        """The tracks of the frames covered so far, best first."""
        absent = np.full(4, np.nan, np.float32)
        tracks = [
            Track(
                id=track.id,
                label=track.label,
                score=track.score,
                rles=tuple(track.rles.get(t) for t in range(self._length)),
                boxes_T4=np.stack([track.boxes.get(t, absent) for t in range(self._length)]),
            )
            for track in self._tracks
        ]
        return sorted(tracks, key=lambda track: -track.score)

    def _match(self, start: int, found: Instances) -> dict[int, _OpenTrack]:
        """The track that each instance continues, where there is one."""
        if not self._recent or not len(found):
            return {}
        shared = range(start, self._length)
        iou_KN = _shared_iou(self._recent, shared, found)
        iou_KN[iou_KN < _MIN_IOU] = 0
        for k, track in enumerate(self._recent):
            for n, rles in enumerate(found.rles):
                if track.label != found.labels[n]:
                    iou_KN[k, n] = 0
                elif track.last_visible < start or not any(rles[: len(shared)]):
                    iou = _adjacent_iou(track, rles, found.size)
                    iou_KN[k, n] = iou if iou >= _MIN_ADJACENT_IOU else 0
        quality_KN = iou_KN * np.array([track.score for track in self._recent])[:, None] * found.scores
        linked: dict[int, _OpenTrack] = {}
        taken: set[int] = set()
        for index in np.argsort(-quality_KN, axis=None, kind="stable"):
            k, n = divmod(int(index), len(found))
            if iou_KN[k, n] > 0 and k not in taken and n not in linked:
                linked[n] = self._recent[k]
                taken.add(k)
        return linked


def _shared_iou(tracks: Sequence[_OpenTrack], shared: range, found: Instances) -> np.ndarray:
    """Spatio-temporal IoU [K, N] of tracks and instances over the `shared` frames.

    It is 0 where one is not visible."""
    intersection_KN = np.zeros((len(tracks), len(found)))
    areas_KN = np.zeros((len(tracks), len(found)))  # of both
    for t in shared:
        left = {k: track.rles[t] for k, track in enumerate(tracks) if t in track.rles}
        right = {n: rle for n, rles in enumerate(found.rles) if (rle := rles[t - shared.start]) is not None}
        left_rles, right_rles = list(left.values()), list(right.values())
        intersection_KN[np.ix_(list(left), list(right))] += masks.intersections(left_rles, right_rles, found.size)
        areas_KN[list(left)] += masks.areas(left_rles, found.size)[:, None]
        areas_KN[:, list(right)] += masks.areas(right_rles, found.size)
    union_KN = areas_KN - intersection_KN
    return np.divide(intersection_KN, union_KN, out=np.zeros_like(union_KN), where=union_KN > 0)


def _adjacent_iou(track: _OpenTrack, rles: Sequence[bytes | None], size: tuple[int, int]) -> float:
    """IoU of a track's last mask with an instance's first, 0 without a mask."""
    first = next((rle for rle in rles if rle is not None), None)
    if first is None:
        return 0.0
    last = track.rles[track.last_visible]
    return float(masks.iou([last], [first], size)[0, 0])
