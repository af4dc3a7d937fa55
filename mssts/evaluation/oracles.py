"""Oracles: results in which one kind of mistake is undone with the ground truth.

The AP that a detector would have with true classes, true masks or true identities says how much each kind of mistake
costs, as the error types of TIDE (Bolya et al., ECCV 2020, arXiv 2008.08115) do for boxes of images. The kinds overlap,
so their costs need not add up. What all three together leave is missed objects, duplicates and false alarms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mssts import masks
from mssts.evaluation.average_precision import score_tracks, track_iou
from mssts.evaluation.tracks import GroundTruth, Track, by_video, mean_area

_SAME_OBJECT = 0.1  # IoU over a video from which on a prediction is about an object
_SAME_MASK = 0.5  # IoU in a frame from which on a mask shows an object


@dataclass(frozen=True)
class Loss:
    """Average precision, and what it would be without a kind of mistake.

    Attributes:
        ap: as it is.
        true_classes: with each prediction of the class of the object that it overlaps most.
        true_masks: with the object's own mask in each frame where the prediction overlaps it.
        true_links: with each mask joined to those of the object that it shows.
        all: with links, then classes, then masks undone.
    """

    ap: float
    true_classes: float
    true_masks: float
    true_links: float
    all: float


def loss_by_cause(truth: GroundTruth, predictions: Sequence[Track]) -> Loss:
    """What mistakes of class, mask and association cost in AP."""

    def ap(*changes: Callable[[GroundTruth, Sequence[Track]], list[Track]]) -> float:
        tracks: Sequence[Track] = predictions
        for change in changes:
            tracks = change(truth, tracks)
        return score_tracks(truth, tracks).ap

    return Loss(
        ap(), ap(with_true_classes), ap(with_true_masks), ap(with_true_links),
        ap(with_true_links, with_true_classes, with_true_masks),
    )  # fmt: skip


def with_true_classes(truth: GroundTruth, predictions: Sequence[Track]) -> list[Track]:
    """The predictions, each of the class of the object that it overlaps most."""
    changed = []
    for predicted, annotated in _by_video(truth, predictions):
        for track, iou_A in zip(predicted, _iou(predicted, annotated), strict=True):
            best = int(iou_A.argmax()) if iou_A.size else -1
            same = best >= 0 and iou_A[best] >= _SAME_OBJECT
            changed.append(replace(track, category_id=annotated[best].category_id) if same else track)
    return changed


def with_true_masks(truth: GroundTruth, predictions: Sequence[Track]) -> list[Track]:
    """The predictions with true masks in the frames where they overlap their object.

    A prediction's object is the one of its class that it overlaps most. Frames where it has no mask, or a mask beside
    the object, stay as they are, for those are other mistakes.
    """
    changed = []
    for predicted, annotated in _by_video(truth, predictions):
        for track, iou_A in zip(predicted, _iou(predicted, annotated), strict=True):
            of_class = np.array([track.category_id == other.category_id for other in annotated], bool)
            iou_A = np.where(of_class, iou_A, 0) if iou_A.size else iou_A
            best = int(iou_A.argmax()) if iou_A.size else -1
            same = best >= 0 and iou_A[best] >= _SAME_OBJECT
            changed.append(_with_masks_of(track, annotated[best]) if same else track)
    return changed


def with_true_links(truth: GroundTruth, predictions: Sequence[Track]) -> list[Track]:
    """The predictions with each mask joined to those that show the same object.

    A mask shows the object with which it has the highest IoU in its frame, at least 0.5; one that shows none stays with
    the object of its track's other masks. Where two predictions show one object in one frame, the better scored one is
    taken, and the other stays in a track of its own, as the duplicate that it is.
    """
    changed = []
    number = max((track.id for track in predictions), default=0)
    for predicted, annotated in _by_video(truth, predictions):
        whole = np.full((len(predicted), len(predicted[0].rles) if predicted else 0), -1)
        for p, track in enumerate(predicted):
            shown = _shown_objects(track, annotated)
            seen = shown[shown >= 0]
            usual = int(np.bincount(seen).argmax()) if seen.size else -1
            visible = track.pixels_T > 0
            whole[p] = np.where(visible & (shown < 0), usual, shown)
        best_first = sorted(range(len(predicted)), key=lambda p: -predicted[p].score)
        for a in range(-1, len(annotated)):
            for pieces in _layers(predicted, whole == a, best_first, together=a >= 0):
                number += 1
                changed.append(_joined(number, pieces))
    return changed


def _layers(
    predicted: Sequence[Track], chosen_PT: np.ndarray, best_first: Sequence[int], together: bool
) -> Iterator[list[tuple[Track, np.ndarray]]]:
    """Tracks to be made of the chosen masks, best first.

    Each is a list of predictions and their frames.
    """
    left_PT = chosen_PT & np.stack([track.pixels_T > 0 for track in predicted]) if predicted else chosen_PT
    while left_PT.any():
        taken_T = np.zeros(left_PT.shape[1], bool)
        pieces = []
        for p in best_first:
            frames_T = left_PT[p] & ~taken_T
            if frames_T.any():
                pieces.append((predicted[p], frames_T))
                taken_T |= frames_T
                left_PT[p] &= ~frames_T
                if not together:
                    break
        yield pieces


def _joined(number: int, pieces: Sequence[tuple[Track, np.ndarray]]) -> Track:
    """One track of pieces of several, with the class and score of the longest."""
    first = max(pieces, key=lambda piece: int(piece[1].sum()))[0]
    rles: list[bytes | None] = [None] * len(first.rles)
    pixels_T = np.zeros_like(first.pixels_T)
    for track, frames_T in pieces:
        for t in np.flatnonzero(frames_T):
            rles[t] = track.rles[t]
            pixels_T[t] = track.pixels_T[t]
    return replace(first, id=number, rles=tuple(rles), pixels_T=pixels_T, area=mean_area(pixels_T))


def _with_masks_of(track: Track, annotated: Track) -> Track:
    both = [t for t in range(len(track.rles)) if track.rles[t] is not None and annotated.rles[t] is not None]
    rles, pixels_T = list(track.rles), track.pixels_T.copy()
    for t in both:
        mine, its = track.rles[t], annotated.rles[t]
        assert mine is not None and its is not None
        if masks.intersections([mine], [its], track.size)[0, 0]:
            rles[t], pixels_T[t] = its, annotated.pixels_T[t]
    return replace(track, rles=tuple(rles), pixels_T=pixels_T, area=mean_area(pixels_T))


def _shown_objects(track: Track, annotated: Sequence[Track]) -> np.ndarray:
    """The object that a track shows in each frame, by index, −1 for none, int [T]."""
    shown_T = np.full(len(track.rles), -1)
    for t, rle in enumerate(track.rles):
        others = [(a, other.rles[t]) for a, other in enumerate(annotated)]
        present = [(a, its) for a, its in others if its is not None]
        if rle is None or not present:
            continue
        iou = masks.iou([rle], [its for _, its in present], track.size)[0]
        if iou.max() >= _SAME_MASK:
            shown_T[t] = present[int(iou.argmax())][0]
    return shown_T


def _by_video(truth: GroundTruth, predictions: Sequence[Track]) -> Iterator[tuple[list[Track], list[Track]]]:
    """The predicted tracks of each video that has some, and its annotated ones.

    Crowds are left out.
    """
    groups = by_video(predictions)
    annotated = by_video(track for track in truth.tracks if not track.is_crowd)
    for video_id, predicted in groups.items():
        yield predicted, annotated[video_id]


def _iou(predicted: Sequence[Track], annotated: Sequence[Track]) -> np.ndarray:
    return track_iou(predicted, annotated) if annotated else np.zeros((len(predicted), 0))
