"""The official YouTube-VIS average precision, on pycocotools, offline.

The matching and the precision-recall arithmetic are COCO's (`pycocotools.cocoeval`). What Yang, Fan and Xu (Video
Instance Segmentation, ICCV 2019, arXiv 1905.04804) change is here: a track takes the place of a mask, the IoU of two
tracks is taken over space and time, and the size ranges are split at 128² and 256² pixels. The figures are those of the
authors' fork of the COCO API (github.com/youtubevos/cocoapi), its particularities included:

- a crowd annotation is ignored, but its IoU is the plain one, not the share of the prediction inside it;
- an annotation's size is the mean of its `areas` field, a prediction's that of its masks' areas, zeros left out;
- an annotation whose id is 0 counts as never found;
- predictions of categories that the ground truth does not list are left out.
"""

from __future__ import annotations

import contextlib
import io
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.cocoeval import COCOeval

from mssts import masks
from mssts.categories import disagreement
from mssts.data.videos import read_youtube_vis_value
from mssts.errors import MsstsError
from mssts.evaluation.metrics import CategoryMetrics, Metrics
from mssts.evaluation.tracks import GroundTruth, Track, VideoSet, masks_in_frame, read_ground_truth, read_predictions
from mssts.files import read_json
from mssts.manifest import Category
from mssts.prediction.results import results_categories

_LARGEST_AREA = 1e5**2  # COCO's stand-in for infinity
_AREA_RANGES = [[0, _LARGEST_AREA], [0, 128**2], [128**2, 256**2], [256**2, _LARGEST_AREA]]


def evaluate(ground_truth: Path | str | dict[str, Any], results: Path | str | list[Any]) -> Metrics:
    """Scores results against ground truth.

    Each is a path or the JSON value itself, which is not changed.

    Args:
        ground_truth: an `instances.json` in YouTube-VIS format; a file may also be COCO-video.
        results: a submission: a list of `video_id`, `category_id`, `score` and, a frame each, `segmentations`.

    Raises:
        MsstsError: a file or an entry is wrong; the message names it and the field.
    """
    truth = read_ground_truth(*_value_and_source(ground_truth, "ground truth", read_youtube_vis_value))
    if isinstance(results, (Path, str)):
        check_categories(Path(results), results_categories(Path(results)), truth)
    predictions, notes = read_predictions(*_value_and_source(results, "results", read_json), truth)
    return score_tracks(truth, predictions, notes)


def score_tracks(truth: GroundTruth, predictions: Sequence[Track], notes: Sequence[str] = ()) -> Metrics:
    """Scores tracks that were read.

    Args:
        truth: the annotated tracks.
        predictions: the predicted ones, of videos and categories of `truth`.
        notes: what to say beside the notes of `truth`.
    """
    evaluator = evaluated(truth, predictions)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator.accumulate()
        evaluator.summarize()

    # Of the twelve figures that COCO's summary ends with we report the first eight.
    ap, ap50, ap75, ap_small, ap_medium, ap_large, ar1, ar10 = (float(figure) for figure in evaluator.stats[:8])
    objects: defaultdict[int, int] = defaultdict(int)
    for track in truth.tracks:
        objects[track.category_id] += not track.is_crowd
    precision_TRKAM = evaluator.eval["precision"]  # T thresholds, R recalls, K categories, A sizes, M prediction limits
    per_category = []
    for k, category in enumerate(sorted(truth.categories, key=lambda category: category.id)):
        precision_TR = precision_TRKAM[:, :, k, 0, -1]
        figures = (defined_mean(precision_TR), defined_mean(precision_TR[0]))
        per_category.append(CategoryMetrics(category.id, category.name, *figures, objects[category.id]))
    return Metrics(
        ap=ap, ap50=ap50, ap75=ap75, ap_small=ap_small, ap_medium=ap_medium, ap_large=ap_large, ar1=ar1, ar10=ar10,
        per_category=tuple(per_category), videos=len(truth.videos), objects=sum(objects.values()),
        predictions=len(predictions), notes=truth.notes + tuple(notes),
    )  # fmt: skip


def evaluated(truth: GroundTruth, predictions: Sequence[Track]) -> TrackEvaluator:
    """The evaluator after its matching, for those who accumulate figures of their own."""
    evaluator = TrackEvaluator(truth, predictions)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools tells its steps on stdout
        evaluator.evaluate()
    return evaluator


def check_categories(results: Path, written: Sequence[Category], known: VideoSet) -> None:
    """Checks that results mean the classes of a set by its ids.

    Args:
        results: the file, for the message.
        written: the categories that it was written in, which `mssts predict` leaves in the report beside it.
        known: the set.

    Raises:
        MsstsError: an id stands for another class.
    """
    wrong = disagreement(written, known.categories)
    if wrong:
        raise MsstsError(
            f"{results}: its category ids mean other classes than those of {known.source} ({wrong}); predict on that "
            "file, so that its ids are written"
        )


def _value_and_source(value: Any, name: str, read: Callable[[Path | str], Any]) -> tuple[Any, Path]:
    return (read(value), Path(value)) if isinstance(value, (Path, str)) else (value, Path(name))


def defined_mean(values: np.ndarray) -> float:
    """The mean of what is defined, −1 if nothing is."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else -1.0


class TrackEvaluator(COCOeval):
    """COCO's evaluator with tracks for masks and videos for images."""

    def __init__(self, truth: GroundTruth, predictions: Sequence[Track]) -> None:
        super().__init__(iouType="segm")
        self.params.imgIds = sorted(truth.videos)
        self.params.catIds = sorted(truth.names)
        self.params.areaRng = _AREA_RANGES
        self._truth = truth
        self._predictions = predictions

    def _prepare(self) -> None:
        self._gts = _grouped(self._truth.tracks)
        self._dts = _grouped(self._predictions)

    def computeIoU(self, imgId: int, catId: int) -> np.ndarray | list[Any]:
        limit = self.params.maxDets[-1]
        # The order in which `evaluateImg` goes through the predictions.
        predicted = sorted(self._dts[imgId, catId], key=lambda entry: -entry["score"])[:limit]
        annotated = self._gts[imgId, catId]
        if not predicted or not annotated:
            return []
        return track_iou([entry["track"] for entry in predicted], [entry["track"] for entry in annotated])


def _grouped(tracks: Sequence[Track]) -> defaultdict[tuple[int, int], list[dict[str, Any]]]:
    """The entries COCOeval works on, by video and category."""
    groups = defaultdict(list)
    for track in tracks:
        entry = {"id": track.id, "area": track.area, "score": track.score, "iscrowd": track.is_crowd}
        groups[track.video_id, track.category_id].append({**entry, "ignore": track.is_crowd, "track": track})
    return groups


def track_iou(predicted: Sequence[Track], annotated: Sequence[Track]) -> np.ndarray:
    """Spatio-temporal IoU [P, A] of the tracks of one video.

    Pixels in both over pixels in either, of all frames together.

    Two tracks without a pixel have IoU 0.
    """
    predicted_PT = np.stack([track.pixels_T for track in predicted])
    annotated_AT = np.stack([track.pixels_T for track in annotated])
    intersection_PA = np.zeros((len(predicted), len(annotated)), np.int64)
    for t in np.flatnonzero(predicted_PT.any(axis=0) & annotated_AT.any(axis=0)):
        rows, columns = np.flatnonzero(predicted_PT[:, t]), np.flatnonzero(annotated_AT[:, t])
        intersection_PA[np.ix_(rows, columns)] += masks.intersections(
            masks_in_frame(predicted, rows, t), masks_in_frame(annotated, columns, t), predicted[0].size
        )
    union_PA = predicted_PT.sum(axis=1)[:, None] + annotated_AT.sum(axis=1)[None] - intersection_PA
    return intersection_PA / np.maximum(union_PA, 1)
