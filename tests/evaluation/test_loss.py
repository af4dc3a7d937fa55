"""What AP loses to which mistake, by group, and by the choice of videos."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mssts.evaluation.average_precision import score_tracks
from mssts.evaluation.bootstrap import ap_difference, ap_interval
from mssts.evaluation.groups import ap_by_group
from mssts.evaluation.oracles import loss_by_cause, with_true_links
from mssts.evaluation.tracks import GroundTruth, Track, read_ground_truth, read_predictions

GOLDEN = Path(__file__).parents[1] / "golden" / "youtubevos_ap.json"
SIZE = (8, 10)
FRAMES = 4


def columns(start: int, end: int) -> dict[str, Any]:
    """The columns of a frame from `start` up to `end`."""
    mask = np.zeros(SIZE, np.uint8, order="F")
    mask[:, start:end] = 1
    return {"size": list(SIZE), "counts": coco_mask.encode(mask)["counts"].decode()}


LEFT, RIGHT = columns(0, 4), columns(6, 10)


def scene(*found: tuple[int, float, list[Any]]) -> tuple[GroundTruth, tuple[Track, ...]]:
    """An ape on the left, a zebra on the right, and what was found.

    That is class, score and masks of each.
    """
    names = [f"{t}.jpg" for t in range(FRAMES)]
    annotations = [
        {"id": i, "video_id": 1, "category_id": i, "iscrowd": 0, "segmentations": [mask] * FRAMES}
        for i, mask in ((1, LEFT), (2, RIGHT))
    ]
    value = {
        "videos": [{"id": 1, "height": SIZE[0], "width": SIZE[1], "length": FRAMES, "file_names": names}],
        "categories": [{"id": 1, "name": "ape"}, {"id": 2, "name": "zebra"}],
        "annotations": annotations,
    }
    truth = read_ground_truth(value, "truth")
    results = [
        {"video_id": 1, "category_id": category, "score": score, "segmentations": segmentations}
        for category, score, segmentations in found
    ]
    return truth, read_predictions(results, "results", truth)[0]


def test_a_perfect_result_loses_nothing() -> None:
    loss = loss_by_cause(*scene((1, 0.9, [LEFT] * 4), (2, 0.8, [RIGHT] * 4)))
    assert [loss.ap, loss.true_classes, loss.true_masks, loss.true_links, loss.all] == pytest.approx([1] * 5)


def test_a_wrong_class_is_a_loss_of_class_alone() -> None:
    loss = loss_by_cause(*scene((1, 0.9, [LEFT] * 4), (1, 0.8, [RIGHT] * 4)))
    assert loss.true_classes == pytest.approx(1)
    assert loss.ap == loss.true_masks == loss.true_links == pytest.approx(0.5)


def test_a_loose_mask_is_a_loss_of_mask_alone() -> None:
    loose = columns(0, 6)
    loss = loss_by_cause(*scene((1, 0.9, [loose] * 4), (2, 0.8, [RIGHT] * 4)))
    assert loss.true_masks == pytest.approx(1)
    assert loss.ap == loss.true_classes == loss.true_links < 0.9


def test_swapped_identities_are_a_loss_of_association_alone() -> None:
    loss = loss_by_cause(*scene((1, 0.9, [LEFT, LEFT, LEFT, RIGHT]), (2, 0.8, [RIGHT, RIGHT, RIGHT, LEFT])))
    assert loss.true_links == pytest.approx(1)
    assert loss.ap == loss.true_classes < 0.7


def test_a_missed_object_and_a_duplicate_stay_lost() -> None:
    missed = loss_by_cause(*scene((1, 0.9, [LEFT] * 4)))
    assert missed.ap == missed.all == pytest.approx(0.5)
    truth, predictions = scene((1, 0.95, [LEFT] * 4), (1, 0.9, [LEFT] * 4), (2, 0.8, [RIGHT] * 4))
    assert len(with_true_links(truth, predictions)) == 3


def test_masks_that_show_nothing_stay_where_they_were() -> None:
    nothing = columns(4, 6)
    truth, predictions = scene((1, 0.9, [LEFT, LEFT, LEFT, nothing]), (2, 0.8, [nothing] * 4))
    linked = with_true_links(truth, predictions)
    assert sorted(tuple(track.pixels_T) for track in linked) == sorted(tuple(track.pixels_T) for track in predictions)


def test_groups_hold_every_object_once_of_each_kind() -> None:
    hidden = [LEFT, None, None, LEFT]
    truth, predictions = scene((1, 0.9, [LEFT] * 4), (2, 0.8, [RIGHT] * 4))
    ape, zebra = truth.tracks
    short = read_predictions(
        [{"video_id": 1, "category_id": 1, "score": 1.0, "segmentations": hidden}], "results", truth
    )[0][0]
    truth = replace(truth, tracks=(replace(ape, rles=short.rles, pixels_T=short.pixels_T), zebra))
    groups = {group.name: group for group in ap_by_group(truth, predictions)}
    for kind in ("category", "size", "length", "occlusion"):
        assert sum(group.objects for name, group in groups.items() if name.startswith(kind)) == 2
    assert groups["category: zebra"].ap == pytest.approx(1)
    assert groups["occlusion: heavy"].objects == 1  # hidden for two of its four frames
    assert groups["occlusion: slight"].ap == pytest.approx(1)
    assert groups["size: large"].objects == 0 and groups["size: large"].ap == -1


def test_the_bootstrap_scores_as_the_evaluator_does() -> None:
    for problem in json.loads(GOLDEN.read_text(encoding="utf-8"))[:20]:
        truth = read_ground_truth(problem["ground_truth"], "truth")
        predictions = read_predictions(problem["results"], "results", truth)[0]
        interval = ap_interval(truth, predictions, draws=1)
        assert interval.value == pytest.approx(problem["stats"][0], abs=1e-9)
        assert interval.value == pytest.approx(score_tracks(truth, predictions).ap, abs=1e-12)


def test_a_difference_is_tighter_than_the_figures_and_its_sign_is_the_seconds() -> None:
    problem = max(json.loads(GOLDEN.read_text(encoding="utf-8")), key=lambda p: len(p["ground_truth"]["videos"]))
    truth = read_ground_truth(problem["ground_truth"], "truth")
    predictions = read_predictions(problem["results"], "results", truth)[0]
    same = ap_difference(truth, predictions, predictions, draws=50)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    nothing = ap_difference(truth, (), predictions, draws=50)
    assert nothing.value == pytest.approx(score_tracks(truth, predictions).ap) and nothing.low <= nothing.high
