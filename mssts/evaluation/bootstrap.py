"""Bootstrap intervals of average precision over the choice of videos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from mssts.evaluation.average_precision import TrackEvaluator, defined_mean, evaluated
from mssts.evaluation.tracks import GroundTruth, Track


@dataclass(frozen=True)
class Interval:
    """A figure and its 95 % interval over draws of the videos."""

    value: float
    low: float
    high: float


def ap_interval(truth: GroundTruth, predictions: Sequence[Track], draws: int = 500, seed: int = 0) -> Interval:
    """Average precision with its bootstrap interval.

    Args:
        truth: the annotated tracks.
        predictions: the predicted ones.
        draws: how often the videos are drawn, with replacement, as many as there are.
        seed: of the draws.
    """
    aps = _draw(truth, [predictions], draws, seed)[:, 0]
    return _interval(aps)


def ap_difference(
    truth: GroundTruth, first: Sequence[Track], second: Sequence[Track], draws: int = 500, seed: int = 0
) -> Interval:
    """How much higher the AP of the second predictions is than the first's.

    Both are scored on the same draws of videos, so what is hard for both does not widen the interval.
    """
    aps = _draw(truth, [first, second], draws, seed)
    return _interval(aps[:, 1] - aps[:, 0])


def _interval(values: np.ndarray) -> Interval:
    """Of the value on the set itself, which comes first, and those on the draws."""
    low, high = np.percentile(values[1:], (2.5, 97.5))
    return Interval(float(values[0]), float(low), float(high))


def _draw(truth: GroundTruth, results: Sequence[Sequence[Track]], draws: int, seed: int) -> np.ndarray:
    """AP of each of R results on the set and on D draws of it, float64 [1 + D, R]."""
    scorers = [_Scorer(evaluated(truth, predictions)) for predictions in results]
    videos = len(truth.videos)
    random = np.random.default_rng(seed)
    rows = [[scorer.ap(np.arange(videos)) for scorer in scorers]]
    for _ in tqdm(range(draws), desc="bootstrap", unit="draw", leave=False, disable=None):
        chosen = random.integers(0, videos, videos)
        rows.append([scorer.ap(chosen) for scorer in scorers])
    return np.array(rows)


class _Scorer:
    """Average precision of any multiset of the videos, each matched once.

    The arithmetic is that of `COCOeval.accumulate`, of all sizes and at most 100 predictions a video.
    """

    def __init__(self, evaluator: TrackEvaluator) -> None:
        parameters = evaluator.params
        videos, sizes = len(parameters.imgIds), len(parameters.areaRng)
        self._recalls_R = np.asarray(parameters.recThrs)
        self._categories = [
            [evaluator.evalImgs[k * sizes * videos + video] for video in range(videos)]
            for k in range(len(parameters.catIds))
        ]

    def ap(self, chosen: np.ndarray) -> float:
        """Average precision of the chosen videos, by index.

        Repeats count as often as they occur.
        """
        return defined_mean(np.array([self._precision(found, chosen) for found in self._categories]))

    def _precision(self, found: Sequence[dict[str, object] | None], chosen: np.ndarray) -> float:
        """Average precision of a category, −1 where it has no object."""
        entries = [entry for video in chosen if (entry := found[video]) is not None]
        objects = sum(int((np.asarray(entry["gtIgnore"]) == 0).sum()) for entry in entries)
        if not objects:
            return -1.0
        scores = np.concatenate([np.asarray(entry["dtScores"], float) for entry in entries])
        order = np.argsort(-scores, kind="mergesort")
        matched_TN = np.concatenate([np.asarray(entry["dtMatches"]) for entry in entries], 1)[:, order]
        ignored_TN = np.concatenate([np.asarray(entry["dtIgnore"]) for entry in entries], 1)[:, order]
        true_TN = np.cumsum((matched_TN != 0) & (ignored_TN == 0), 1, dtype=float)
        false_TN = np.cumsum((matched_TN == 0) & (ignored_TN == 0), 1, dtype=float)
        if not order.size:
            return 0.0
        recall_TN = true_TN / objects
        precision_TN = true_TN / (true_TN + false_TN + np.spacing(1))
        # From right to left, precision never falls: the envelope of the curve.
        precision_TN = np.maximum.accumulate(precision_TN[:, ::-1], 1)[:, ::-1]
        figures = []
        for recall_N, precision_N in zip(recall_TN, precision_TN, strict=True):
            places = np.searchsorted(recall_N, self._recalls_R, side="left")
            inside = places < len(precision_N)
            figures.append(np.where(inside, precision_N[np.minimum(places, len(precision_N) - 1)], 0.0).mean())
        return float(np.mean(figures))
