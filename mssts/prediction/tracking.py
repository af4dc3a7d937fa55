"""Identities of a long video, linked through its overlapping windows.

Letters: N detections of a window, K tracks, T frames, C classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import linear_sum_assignment

from mssts.manifest import Category
from mssts.prediction.appearance import likeness
from mssts.prediction.detections import Detection, box_iou, detections, mask_iou
from mssts.prediction.windowing import owned_from
from mssts.segmenters.base import Instances

_REENTRY_WEIGHT = 0.1  # what overlaps goes before what may have come back
_NO_BOX = np.zeros(4, np.float32)


@dataclass(frozen=True)
class LinkOptions:
    """How windows are linked.

    The defaults were chosen on MovingShapes videos of 150 and 300 frames; docs/streams.md has what each part is worth.

    Attributes:
        same_object_iou: from which overlap over a window on the masks of two queries are of one object. Two objects
            that cross overlap by less, as they do so in a part of the frames only. None keeps every instance for
            itself.
        reentry_frames: how long an object may be out of sight and keep its identity.
        reach: how far, in its own sizes, it may come back from where it was last seen at most.
        speed: by how much that distance grows from 1 with each frame out of sight.
        min_overlap: what overlaps by less in the frames that two windows share is another object.
        box_share: of boxes in that overlap, the rest being of masks.
        class_power: of the likeness of classes, which says least where colours tell objects apart, and most in grey
            pictures.
        class_doubt: that likeness where two windows agree on no class at all. It is above 0, as what a window takes an
            object for changes more than its colours do.
        colour_power: of the likeness of colours, which differ little: 0.9 is far from the same object.
        track_prior_frames: a track's weight grows with its life, and is half its score after so many frames. A new one
            then does not take an old one's object.
        score_prior_frames: likewise of `Track.certainty`.
    """

    same_object_iou: float | None = 0.7
    reentry_frames: int = 30
    reach: float = 4.0
    speed: float = 0.25
    min_overlap: float = 0.1
    box_share: float = 0.5
    class_power: float = 1.0
    class_doubt: float = 0.1
    colour_power: float = 12.0
    track_prior_frames: float = 20.0
    score_prior_frames: float = 2.0


@dataclass(frozen=True)
class Track:
    """An object through a video of T frames.

    Attributes:
        id: from 1, in the order in which the objects appear.
        label: its best class, an index into the manifest's categories.
        score: of that class: its mean over the windows the object was found in, each weighted by the frames it
            contributed.
        rles: a frame's mask as COCO compressed run lengths; None where the object is not visible.
        boxes_T4: float32, x1 y1 x2 y2 in pixels; NaN in the frames of windows that did not find it.
        class_scores: the same of each class that it was found as, by label, best first.
        certainty: frames ÷ (frames + 2), as what only one window has found is often a mistake. A submission, where
            tracks of all videos are ranked, has scores × certainty.
    """

    id: int
    label: int
    score: float
    rles: tuple[bytes | None, ...]
    boxes_T4: np.ndarray
    class_scores: dict[int, float] = field(default_factory=dict)
    certainty: float = 1.0

    def in_categories(self, by_label: Sequence[Category | None]) -> list[tuple[Category, float]]:
        """The categories of its classes with their scores, best first.

        Classes without a category are left out.
        """
        scores = self.class_scores or {self.label: self.score}
        found = [(by_label[label], score) for label, score in scores.items()]
        return [(category, score) for category, score in found if category is not None]


@dataclass
class _OpenTrack:
    """A track that may still grow.

    `rles` has the frames where it is visible, `boxes` those of the windows it is in."""

    id: int
    options: LinkOptions
    rles: dict[int, bytes] = field(default_factory=dict)
    boxes: dict[int, np.ndarray] = field(default_factory=dict)
    weighted_scores: dict[int, float] = field(default_factory=dict)  # by label
    frames: int = 0
    last_visible: int = -1
    last_box: np.ndarray = field(default_factory=lambda: _NO_BOX)  # in that frame
    colours_D: np.ndarray | float = 0.0

    @property
    def class_scores(self) -> dict[int, float]:
        """By label, best first."""
        ordered = sorted(self.weighted_scores.items(), key=lambda item: -item[1])
        return {label: score / self.frames for label, score in ordered}

    @property
    def weight(self) -> float:
        """How much it counts when tracks compete for an object."""
        return max(self.weighted_scores.values()) / (self.frames + self.options.track_prior_frames)

    def extend(self, start: int, middle: int, found: Detection) -> None:
        """Adds what the window from `start` on found.

        It contributes the frames from `middle` on, and before them the masks that the track lacks."""
        for t, rle in enumerate(found.rles, start):
            if t >= middle or t not in self.boxes:
                self.boxes[t] = found.boxes_T4[t - start]
            if rle is not None and (t >= middle or t not in self.rles):
                self.rles[t] = rle
                if t >= self.last_visible:
                    self.last_visible, self.last_box = t, found.boxes_T4[t - start]
        contributed = start + len(found.rles) - middle
        for label, score in found.scores.items():
            self.weighted_scores[label] = self.weighted_scores.get(label, 0.0) + score * contributed
        self.frames += contributed
        self.colours_D = self.colours_D + found.score * found.colours_D


@dataclass(frozen=True)
class TrackedInstance:
    """A track in one frame: what is drawn."""

    track_id: int
    label: int
    score: float  # of the track so far
    rle: bytes
    box: np.ndarray  # float32 [4], x1 y1 x2 y2 in pixels


class Linker:
    """Joins the objects of consecutive windows of one video into tracks.

    Hypotheses of one object within a window are put together first (`detections`). Then tracks and detections are
    paired so that the sum of the square roots of the pairs' qualities is the largest. A quality is the product of

    - the overlap over the frames that both windows hold, the mean of the masks' and the boxes' spatio-temporal IoU; or,
      where one of them is not visible in those frames (an object hidden just then, windows that share no frame), a
      tenth of the nearness of the boxes in which the object was last and is first seen,
    - the likeness of their colours, the track's over its whole life,
    - the likeness of their classes' scores, likewise,
    - both scores, the track's lowered while it is short.

    A detection without a pair starts a track. A track that is not visible for longer than the options allow ends, and
    its identity is not used again.

    Of the shared frames, the first half keeps the masks of the earlier window and the second half takes those of the
    later, so that a mask comes from the window that holds more frames around it; where one window has no mask, the
    other's is taken. Frames before a window's start are final once that window is known, so they can be drawn while the
    video is still being read.

    Args:
        known: identities that are in use already; new ones are counted from there.
        options: how to link.
    """

    def __init__(self, known: int = 0, options: LinkOptions | None = None) -> None:
        self._options = options or LinkOptions()
        self._tracks: list[_OpenTrack] = []
        self._known = known
        self._recent: list[_OpenTrack] = []  # those that a window may still continue
        self._length = 0

    def add(self, start: int, frames: int, found: Instances, colours_ND: np.ndarray | None = None) -> None:
        """Adds the instances of the window of `frames` frames from `start` on.

        Args:
            start: index of the window's first frame.
            frames: how many it has.
            found: its instances.
            colours_ND: what `colour_histograms` gives for them; identities are kept worse without.

        Raises:
            ValueError: the window leaves out frames after the one before, or does not go beyond it.
        """
        if not start <= self._length < start + frames:
            raise ValueError(f"window {start}…{start + frames} does not continue the {self._length} frames so far")
        # A window's own length in any case: an object may be visible in its last frames alone.
        oldest = start - max(self._options.reentry_frames, frames)
        self._recent = [track for track in self._recent if track.last_visible >= oldest]
        objects = detections(found, colours_ND, self._options.same_object_iou)
        linked = self._match(start, objects, found.size)
        middle = owned_from(start, self._length)
        for n, detection in enumerate(objects):
            track = linked.get(n) or self._start_track()
            track.extend(start, middle if track.frames else start, detection)
        self._length = start + frames

    @property
    def known(self) -> int:
        """Identities in use, those of tracks that ended included."""
        return self._known

    def visible(self, frame: int) -> list[TrackedInstance]:
        """The tracks visible in a frame of the last window, as known so far, best first."""
        visible = []
        for track in self._recent:
            if frame in track.rles:
                label, score = next(iter(track.class_scores.items()))
                visible.append(TrackedInstance(track.id, label, score, track.rles[frame], track.boxes[frame]))
        return sorted(visible, key=lambda instance: -instance.score)

    def forget(self, before: int) -> None:
        """Frees what no later window needs.

        Memory then stays bounded in a stream without an end. What goes is the tracks that no window may continue, and
        masks and boxes of frames before `before`, where no later window starts. `tracks()` then lacks them.
        """
        self._tracks = list(self._recent)
        for track in self._recent:
            track.rles = {t: rle for t, rle in track.rles.items() if t >= before}
            track.boxes = {t: box for t, box in track.boxes.items() if t >= before}

    def tracks(self) -> list[Track]:
        """The tracks of the frames covered so far, best first."""
        absent = np.full(4, np.nan, np.float32)
        tracks = []
        for track in self._tracks:
            scores = track.class_scores
            label, score = next(iter(scores.items()))
            rles = tuple(track.rles.get(t) for t in range(self._length))
            boxes_T4 = np.stack([track.boxes.get(t, absent) for t in range(self._length)])
            certainty = track.frames / (track.frames + self._options.score_prior_frames)
            tracks.append(Track(track.id, label, score, rles, boxes_T4, scores, certainty))
        return sorted(tracks, key=lambda track: -track.score)

    def _start_track(self) -> _OpenTrack:
        self._known += 1
        track = _OpenTrack(self._known, self._options)
        self._tracks.append(track)
        self._recent.append(track)
        return track

    def _match(self, start: int, objects: Sequence[Detection], size: tuple[int, int]) -> dict[int, _OpenTrack]:
        """The track that each detection continues, where there is one."""
        if not self._recent or not objects:
            return {}
        quality_KN = self._overlap(start, objects, size) * self._likeness(objects)
        quality_KN *= np.array([track.weight for track in self._recent])[:, None]
        quality_KN *= [detection.score for detection in objects]
        return {n: self._recent[k] for k, n in self._pairs(quality_KN)}

    def _pairs(self, quality_KN: np.ndarray) -> list[tuple[int, int]]:
        """Tracks and detections that go together.

        Under the square root, two fair pairs outweigh an excellent and a poor one: an object is seldom lost because
        another's track fits it a little better.
        """
        tracks, found = linear_sum_assignment(np.sqrt(quality_KN), maximize=True)
        return [(k, n) for k, n in zip(tracks.tolist(), found.tolist(), strict=True) if quality_KN[k, n] > 0]

    def _overlap(self, start: int, objects: Sequence[Detection], size: tuple[int, int]) -> np.ndarray:
        """How well places agree, float64 [K, N], see the class."""
        shared = range(start, self._length)
        overlap_KN = self._nearness(start, objects)
        seen = [k for k, track in enumerate(self._recent) if any(t in track.rles for t in shared)]
        shown = [n for n, found in enumerate(objects) if any(found.rles[: len(shared)])]
        if seen and shown:
            tracks, chosen = [self._recent[k] for k in seen], [objects[n] for n in shown]
            masks_KN = mask_iou(
                [[track.rles.get(t) for t in shared] for track in tracks],
                [found.rles[: len(shared)] for found in chosen],
                size,
            )
            boxes_KN = box_iou(
                np.array([[track.boxes.get(t, _NO_BOX) for t in shared] for track in tracks]),
                np.array([found.boxes_T4[: len(shared)] for found in chosen]),
            )
            share = self._options.box_share
            both_KN = (1 - share) * masks_KN + share * boxes_KN
            overlap_KN[np.ix_(seen, shown)] = np.where(both_KN >= self._options.min_overlap, both_KN, 0)
        return overlap_KN

    def _nearness(self, start: int, objects: Sequence[Detection]) -> np.ndarray:
        """How well objects may have come back, float64 [K, N]."""
        first_N = [next(t for t, rle in enumerate(found.rles) if rle is not None) for found in objects]
        new_N4 = np.array([found.boxes_T4[t] for found, t in zip(objects, first_N, strict=True)], np.float64)
        old_K4 = np.array([track.last_box for track in self._recent], np.float64)
        apart_KN2 = (_centres(old_K4)[:, None] - _centres(new_N4)) / _sides(old_K4, new_N4)[..., None]
        distance_KN = np.linalg.norm(apart_KN2, axis=-1)
        last_K = np.array([track.last_visible for track in self._recent])
        hidden_KN = start + np.array(first_N) - last_K[:, None]
        reach_KN = np.minimum(1 + self._options.speed * hidden_KN, self._options.reach)
        near_KN = _REENTRY_WEIGHT * (1 - 0.9 * distance_KN / self._options.reach)
        return np.where((hidden_KN <= self._options.reentry_frames) & (distance_KN <= reach_KN), near_KN, 0)

    def _likeness(self, objects: Sequence[Detection]) -> np.ndarray:
        """How well colours and classes agree, float64 [K, N]."""
        colours_KN = likeness(
            np.array([track.colours_D for track in self._recent]), np.array([found.colours_D for found in objects])
        )
        classes_KN = _cosines(
            [track.weighted_scores for track in self._recent], [detection.scores for detection in objects]
        )
        doubt = self._options.class_doubt
        classes_KN = doubt + (1 - doubt) * classes_KN
        return colours_KN**self._options.colour_power * classes_KN**self._options.class_power


def _centres(boxes_N4: np.ndarray) -> np.ndarray:
    return (boxes_N4[:, :2] + boxes_N4[:, 2:]) / 2


def _sides(old_K4: np.ndarray, new_N4: np.ndarray) -> np.ndarray:
    """The longest side of both boxes, at least a pixel, [K, N]."""
    longest = [(boxes[:, 2:] - boxes[:, :2]).max(axis=1, initial=1) for boxes in (old_K4, new_N4)]
    return np.maximum(longest[0][:, None], longest[1])


def _cosines(first: Iterable[dict[int, float]], second: Iterable[dict[int, float]]) -> np.ndarray:
    """Cosines [K, N] of the angles between vectors that are given by label."""
    first, second = list(first), list(second)
    places = {label: c for c, label in enumerate({label for scores in (*first, *second) for label in scores})}
    vectors = []
    for group in (first, second):
        group_NC = np.zeros((len(group), len(places)))
        for n, scores in enumerate(group):
            group_NC[n, [places[label] for label in scores]] = list(scores.values())
        vectors.append(group_NC / np.maximum(np.linalg.norm(group_NC, axis=1, keepdims=True), 1e-12))
    return vectors[0] @ vectors[1].T
