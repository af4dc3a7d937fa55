"""`mssts bench ap` from end to end, on results whose mistakes are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import pytest

from mssts.cli import main
from mssts.data.moving_shapes import MovingShapesConfig, write_dataset


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = MovingShapesConfig(width=96, height=64, length=4)
    return write_dataset(tmp_path_factory.mktemp("data") / "shapes", 4, 5, config, progress=False)


def perfect(data: Path) -> list[dict[str, Any]]:
    return [
        {
            "video_id": entry["video_id"], "category_id": entry["category_id"], "score": 0.9,
            "segmentations": entry["segmentations"],
        }
        for entry in json.loads(data.read_text())["annotations"]
    ]  # fmt: skip


def write(path: Path, results: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps(results), encoding="utf-8")
    return path


def test_two_results_are_scored_compared_and_drawn(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    right = perfect(data)
    wrong = [{**entry, "category_id": entry["category_id"] % 5 + 1} for entry in right]
    half = [entry if index % 2 else other for index, (entry, other) in enumerate(zip(right, wrong, strict=True))]
    first, second = write(tmp_path / "half.json", half), write(tmp_path / "right.json", right)
    out, sheet = tmp_path / "ap.json", tmp_path / "sheet.png"
    options = ["--data", str(data), "--draws", "20", "--out", str(out), "--sheet", str(sheet)]
    assert main(["bench", "ap", str(first), str(second), *options]) == 0
    report = json.loads(out.read_text())
    rows = {(Path(row["artefact"]).stem, row["scope"]): row for row in report["rows"]}
    assert rows["right", "all"]["ap"] == pytest.approx(1) == rows["right", "all"]["hota"]
    assert rows["right", "all"]["id_switches"] == 0
    lost = rows["half", "without mistakes of class"]
    assert lost["ap"] == pytest.approx(1) and lost["loss"] == pytest.approx(1 - rows["half", "all"]["ap"])
    assert rows["half", "without mistakes of mask"]["loss"] == pytest.approx(0)
    assert rows["half", "all"]["ap_low"] <= rows["half", "all"]["ap"] <= rows["half", "all"]["ap_high"]
    difference = report["difference"]
    assert difference["value"] == pytest.approx(1 - rows["half", "all"]["ap"])
    assert 0 <= difference["low"] <= difference["high"] <= 1
    assert {"machine", "versions", "commit"} <= report.keys()
    drawn = cv2.imread(str(sheet))
    assert drawn is not None and drawn.std() > 10
    assert "minus that of" in capsys.readouterr().out


def test_data_in_which_nothing_is_annotated_are_one_line(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    value = json.loads(data.read_text())
    results = write(tmp_path / "right.json", perfect(data))
    for changes in ({"annotations": []}, {"annotations": [], "videos": []}):
        (tmp_path / "empty.json").write_text(json.dumps({**value, **changes}), encoding="utf-8")
        for command in (["ap", str(results)], ["fps", "--preset", "tiny"]):
            options = ["--data", str(tmp_path / "empty.json"), "--out", str(tmp_path / "out.json")]
            assert main(["bench", *command, *options]) == 2
            error = capsys.readouterr().err
            assert "no object is annotated" in error and error.count("\n") == 1
    assert not (tmp_path / "out.json").exists()


def test_bad_subjects_are_one_line(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = write(tmp_path / "right.json", perfect(data))
    for subjects in ([str(tmp_path / "absent.json")], [str(results)] * 3):
        assert main(["bench", "ap", *subjects, "--data", str(data), "--out", str(tmp_path / "out.json")]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out.json").exists()
