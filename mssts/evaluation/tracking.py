"""HOTA, IDF1 and identity switches: whether objects keep their identities.

Average precision asks whether a track as a whole is right. These ask frame by frame, and tell mistakes of association
from mistakes of detection. The figures are those of TrackEval (github.com/JonathonLuiten/TrackEval), where a class is
evaluated on its own and classes are put together by their detections (its `cls_comb_det_av`):

- HOTA (Luiten et al., IJCV 2021, arXiv 2009.07736): the geometric mean of detection (DetA) and association (AssA)
  accuracy, averaged over the IoU thresholds 0.05, 0.10 … 0.95.
- IDF1 (Ristani et al., 2016, arXiv 1609.01775): F1 of the frames under the one best pairing of identities.
- Identity switches and MOTA (Bernardin and Stiefelhagen, CLEAR MOT, 2008), at an IoU of 0.5.

Letters: A thresholds, G objects, P predicted tracks, g and p those of one frame.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from mssts import masks
from mssts.data.videos import read_youtube_vis_value
from mssts.evaluation.tracks import Track, masks_in_frame, read_ground_truth, read_predictions
from mssts.files import read_json

_ALPHAS_A = np.arange(0.05, 0.99, 0.05)
_THRESHOLD = 0.5
_EPSILON = float(np.finfo(float).eps)
_KEEP = 1000.0  # an identity that goes on outweighs every overlap, as in TrackEval


@dataclass(frozen=True)
class TrackingMetrics:
    """Figures of tracking.

    Shares are from 0 to 1, but `mota` may be negative.

    Attributes:
        hota: the geometric mean of `det_a` and `ass_a` at each threshold, averaged.
        det_a: accuracy of detection.
        ass_a: accuracy of association.
        loc_a: mean IoU of what is matched.
        idf1: F1 of frames under the right identity.
        mota: 1 − (missed + false + switches) ÷ annotated.
        id_switches: how often an object is found under another identity than the last time.
        objects: annotated tracks.
        tracks: predicted ones, at or above the score threshold.
        score_threshold: predictions below were left out.
    """

    hota: float
    det_a: float
    ass_a: float
    loc_a: float
    idf1: float
    mota: float
    id_switches: int
    objects: int
    tracks: int
    score_threshold: float

    def to_json(self) -> dict[str, Any]:
        """A JSON value with these fields."""
        return asdict(self)


@dataclass(frozen=True)
class FrameOverlap:
    """IoU of each object with each track of one class in one frame.

    Both are numbered from 0 within their video and class.
    """

    objects_g: np.ndarray
    tracks_p: np.ndarray
    iou_gp: np.ndarray


def evaluate_tracking(
    ground_truth: Path | str | dict[str, Any], results: Path | str | list[Any], score_threshold: float = 0.3
) -> TrackingMetrics:
    """HOTA, IDF1 and identity switches of results.

    Crowd annotations are left out. What average precision ranks by score is here either there or not, so a threshold
    must be chosen. The default is that of what `mssts predict` draws.

    Args:
        ground_truth: an `instances.json` in YouTube-VIS format, a path or its JSON value. A file may be COCO-video.
        results: a submission, a path or its JSON value.
        score_threshold: predictions whose score is below are left out.

    Raises:
        MsstsError: a file or an entry is wrong. The message names it and the field.
    """
    if isinstance(ground_truth, (Path, str)):
        truth = read_ground_truth(read_youtube_vis_value(ground_truth), ground_truth)
    else:
        truth = read_ground_truth(ground_truth, "ground truth")
    if isinstance(results, (Path, str)):
        predictions, _ = read_predictions(read_json(results), results, truth)
    else:
        predictions, _ = read_predictions(results, "results", truth)
    objects = [track for track in truth.tracks if not track.is_crowd]
    kept = [track for track in predictions if track.score >= score_threshold]
    return tracking_metrics(objects, kept, score_threshold)


def format_tracking(metrics: TrackingMetrics) -> str:
    """A plain, aligned table of figures."""
    shares = {"HOTA": metrics.hota, "DetA": metrics.det_a, "AssA": metrics.ass_a, "IDF1": metrics.idf1}
    cells = {name: f"{value:.3f}" for name, value in {**shares, "MOTA": metrics.mota}.items()}
    cells["switches"] = str(metrics.id_switches)
    widths = [max(len(name), len(cell)) for name, cell in cells.items()]
    rows = [[text.rjust(width) for text, width in zip(row, widths, strict=True)] for row in (cells, cells.values())]
    counts = f"{metrics.objects} objects, {metrics.tracks} tracks of score {metrics.score_threshold:g} or more"
    return "\n".join([*("  ".join(row) for row in rows), counts])


def tracking_metrics(
    objects: Sequence[Track], predictions: Sequence[Track], score_threshold: float = 0.0
) -> TrackingMetrics:
    """The figures of predicted tracks, all of which count.

    Args:
        objects: annotated tracks of any number of videos.
        predictions: tracks of the same videos.
        score_threshold: that the predictions were chosen by, for the record.
    """
    counts = _Counts()
    groups: defaultdict[tuple[int, int], tuple[list[Track], list[Track]]] = defaultdict(lambda: ([], []))
    for side, tracks in enumerate((objects, predictions)):
        for track in tracks:
            groups[track.video_id, track.category_id][side].append(track)
    for annotated, predicted in groups.values():
        counts.add(list(_overlaps(annotated, predicted)), len(annotated), len(predicted))
    return counts.metrics(len(objects), len(predictions), score_threshold)


def _overlaps(objects: Sequence[Track], predictions: Sequence[Track]) -> Iterable[FrameOverlap]:
    frames = len((objects or predictions)[0].rles)
    visible_GT = np.array([track.pixels_T > 0 for track in objects]).reshape(len(objects), frames)
    visible_PT = np.array([track.pixels_T > 0 for track in predictions]).reshape(len(predictions), frames)
    for t in range(frames):
        objects_g, tracks_p = np.flatnonzero(visible_GT[:, t]), np.flatnonzero(visible_PT[:, t])
        iou_gp = np.zeros((len(objects_g), len(tracks_p)))
        if iou_gp.size:
            shown = masks_in_frame(objects, objects_g, t), masks_in_frame(predictions, tracks_p, t)
            iou_gp = masks.iou(*shown, objects[0].size)
        yield FrameOverlap(objects_g, tracks_p, iou_gp)


class _Counts:
    """Sums over videos and classes from which the figures follow."""

    def __init__(self) -> None:
        self._matched_A = np.zeros(len(_ALPHAS_A))
        self._associated_A = np.zeros(len(_ALPHAS_A))
        self._located_A = np.zeros(len(_ALPHAS_A))
        self._annotated = 0  # objects × frames
        self._predicted = 0
        self._right_identity = 0
        self._clear_matched = 0
        self._switches = 0

    def add(self, frames: Sequence[FrameOverlap], objects: int, tracks: int) -> None:
        """Counts one class in one video."""
        annotated_G1 = np.zeros((objects, 1))
        predicted_1P = np.zeros((1, tracks))
        for frame in frames:
            annotated_G1[frame.objects_g] += 1
            predicted_1P[:, frame.tracks_p] += 1
        self._annotated += int(annotated_G1.sum())
        self._predicted += int(predicted_1P.sum())
        if objects and tracks:
            self._add_hota(frames, annotated_G1, predicted_1P)
            self._add_identity(frames, objects, tracks)
            self._add_clear(frames, objects)

    def _add_hota(self, frames: Sequence[FrameOverlap], annotated_G1: np.ndarray, predicted_1P: np.ndarray) -> None:
        # How well two identities go together over the whole video decides whom each is matched with in a frame.
        shared_GP = np.zeros((len(annotated_G1), predicted_1P.shape[1]))
        for frame in frames:
            iou_gp = frame.iou_gp
            either_gp = iou_gp.sum(0)[None] + iou_gp.sum(1)[:, None] - iou_gp
            share_gp = np.divide(iou_gp, either_gp, out=np.zeros_like(iou_gp), where=either_gp > _EPSILON)
            shared_GP[np.ix_(frame.objects_g, frame.tracks_p)] += share_gp
        alignment_GP = shared_GP / np.maximum(annotated_G1 + predicted_1P - shared_GP, _EPSILON)

        matches_AGP = np.zeros((len(_ALPHAS_A), *shared_GP.shape))
        for frame in frames:
            quality_gp = alignment_GP[np.ix_(frame.objects_g, frame.tracks_p)] * frame.iou_gp
            rows, columns = linear_sum_assignment(quality_gp, maximize=True)
            iou = frame.iou_gp[rows, columns]
            for a, alpha in enumerate(_ALPHAS_A):
                chosen = iou >= alpha - _EPSILON
                matches_AGP[a, frame.objects_g[rows[chosen]], frame.tracks_p[columns[chosen]]] += 1
                self._located_A[a] += iou[chosen].sum()
        self._matched_A += matches_AGP.sum(axis=(1, 2))
        either_AGP = np.maximum(annotated_G1 + predicted_1P - matches_AGP, 1)
        self._associated_A += (matches_AGP**2 / either_AGP).sum(axis=(1, 2))

    def _add_identity(self, frames: Sequence[FrameOverlap], objects: int, tracks: int) -> None:
        together_GP = np.zeros((objects, tracks))
        for frame in frames:
            together_GP[np.ix_(frame.objects_g, frame.tracks_p)] += frame.iou_gp >= _THRESHOLD
        self._right_identity += int(together_GP[linear_sum_assignment(together_GP, maximize=True)].sum())

    def _add_clear(self, frames: Sequence[FrameOverlap], objects: int) -> None:
        last_G = np.full(objects, -1)  # the track that each object was last found as
        before_G = np.full(objects, -1)  # in the frame before alone
        for frame in frames:
            if not frame.iou_gp.size:  # TrackEval skips such a frame, and `before` stays
                continue
            quality_gp = frame.iou_gp + _KEEP * (before_G[frame.objects_g][:, None] == frame.tracks_p)
            quality_gp[frame.iou_gp < _THRESHOLD - _EPSILON] = 0
            rows, columns = linear_sum_assignment(quality_gp, maximize=True)
            chosen = quality_gp[rows, columns] > 0
            found, tracks = frame.objects_g[rows[chosen]], frame.tracks_p[columns[chosen]]
            self._switches += int(((last_G[found] >= 0) & (last_G[found] != tracks)).sum())
            self._clear_matched += len(found)
            last_G[found] = tracks
            before_G[:] = -1
            before_G[found] = tracks

    def metrics(self, objects: int, tracks: int, score_threshold: float) -> TrackingMetrics:
        """The figures."""
        matched_A = self._matched_A
        det_A = matched_A / np.maximum(self._annotated + self._predicted - matched_A, 1)
        ass_A = self._associated_A / np.maximum(matched_A, 1)
        missed_false_switched = self._annotated + self._predicted - 2 * self._clear_matched + self._switches
        return TrackingMetrics(
            hota=float(np.sqrt(det_A * ass_A).mean()),
            det_a=float(det_A.mean()),
            ass_a=float(ass_A.mean()),
            loc_a=float((np.maximum(self._located_A, 1e-10) / np.maximum(matched_A, 1e-10)).mean()),
            idf1=2 * self._right_identity / max(self._annotated + self._predicted, 1),
            mota=1 - missed_false_switched / max(self._annotated, 1),
            id_switches=self._switches,
            objects=objects,
            tracks=tracks,
            score_threshold=score_threshold,
        )
