"""HOTA, IDF1 and identity switches are TrackEval's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mssts import masks
from mssts.cli import main
from mssts.evaluation.tracking import evaluate_tracking

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "tracking.json").read_text())
SIZE = (8, 40)


@pytest.mark.parametrize("chosen", ["1", "2", "all"])
def test_the_figures_are_those_of_trackeval(chosen: str) -> None:
    categories = {1, 2} if chosen == "all" else {int(chosen)}
    annotations = [entry for entry in GOLDEN["ground_truth"]["annotations"] if entry["category_id"] in categories]
    results = [entry for entry in GOLDEN["results"] if entry["category_id"] in categories]
    found = evaluate_tracking({**GOLDEN["ground_truth"], "annotations": annotations}, results).to_json()
    expected = GOLDEN["trackeval"][chosen]
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-12)


def scene(tracks: dict[str, range]) -> list[dict[str, Any]]:
    """Entries of 10 frames: a square that moves, seen by each track in its frames."""
    entries = []
    for frames in tracks.values():
        segmentations: list[Any] = [None] * 10
        for t in frames:
            mask = np.zeros(SIZE, bool)
            mask[2:6, 3 * t : 3 * t + 4] = True
            segmentations[t] = masks.to_json(masks.encode(mask), SIZE)
        entries.append({"video_id": 1, "category_id": 1, "score": 0.9, "segmentations": segmentations})
    return entries


def truth() -> dict[str, Any]:
    video = {"id": 1, "height": SIZE[0], "width": SIZE[1], "length": 10, "file_names": [f"{t}.jpg" for t in range(10)]}
    (entry,) = scene({"whole": range(10)})
    annotation = {**entry, "id": 1, "iscrowd": 0}
    return {"videos": [video], "categories": [{"id": 1, "name": "thing"}], "annotations": [annotation]}


def test_a_perfect_track_scores_1() -> None:
    found = evaluate_tracking(truth(), scene({"whole": range(10)}))
    assert (found.hota, found.idf1, found.mota, found.id_switches) == (1, 1, 1, 0)


def test_a_track_that_breaks_in_two_is_one_switch_and_costs_association_alone() -> None:
    found = evaluate_tracking(truth(), scene({"first": range(5), "second": range(5, 10)}))
    assert (found.det_a, found.ass_a, found.id_switches) == (1, 0.5, 1)
    assert found.idf1 == pytest.approx(0.5)


def test_predictions_below_the_threshold_do_not_count() -> None:
    weak = [{**entry, "score": 0.2} for entry in scene({"whole": range(10)})]
    assert evaluate_tracking(truth(), weak).tracks == 0
    assert evaluate_tracking(truth(), weak, score_threshold=0.2).hota == 1


def test_evaluate_prints_them_beside_average_precision(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("ground_truth", "results"):
        (tmp_path / f"{name}.json").write_text(json.dumps(GOLDEN[name]))
    files = ["--gt", str(tmp_path / "ground_truth.json"), "--results", str(tmp_path / "results.json")]
    assert main(["evaluate", *files, "--tracking", "--out", str(tmp_path / "out.json")]) == 0
    printed = capsys.readouterr().out
    assert "HOTA" in printed and f"{GOLDEN['trackeval']['all']['hota']:.3f}" in printed
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["tracking"]["id_switches"] == GOLDEN["trackeval"]["all"]["id_switches"]
    assert 0 <= report["ap"] <= 1
