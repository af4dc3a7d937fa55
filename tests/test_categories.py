"""Classes are matched by name, in predictions, scores and checks."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from support.toy_engine import COLOURS, write_toy_engine

import mssts
from mssts.categories import difference, map_by_name, rows_by_name
from mssts.cli import main
from mssts.errors import MsstsError
from mssts.evaluation import evaluate
from mssts.manifest import Category
from mssts.model.released import released_categories

HEIGHT, WIDTH, LENGTH = 64, 96, 3
RED, GREEN, BLUE = Category(1, "red"), Category(2, "green"), Category(3, "blue")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_engine(tmp_path_factory.mktemp("engine")).parent


def write_dataset(folder: Path, table: dict[str, int]) -> Path:
    """One video with a red and a blue rectangle, and its ground truth.

    The categories' ids are those of a table (name → id).
    """
    images = folder / "JPEGImages" / "scene"
    images.mkdir(parents=True)
    frame_HWC = np.full((HEIGHT, WIDTH, 3), 60, np.uint8)
    frame_HWC[8:40, 8:40], frame_HWC[24:56, 56:88] = COLOURS[0], COLOURS[2]
    for t in range(LENGTH):
        cv2.imwrite(str(images / f"{t}.png"), frame_HWC[..., ::-1])
    boxes = {"red": (8, 8, 40, 40), "blue": (56, 24, 88, 56)}
    annotations = [
        {"id": i, "video_id": 1, "category_id": table[name], "iscrowd": 0,
         "segmentations": [[[x1, y1, x2, y1, x2, y2, x1, y2]]] * LENGTH}
        for i, (name, (x1, y1, x2, y2)) in enumerate(boxes.items(), 1)
        if name in table
    ]  # fmt: skip
    names = [f"scene/{t}.png" for t in range(LENGTH)]
    path = folder / "instances.json"
    path.write_text(json.dumps({
        "videos": [{"id": 1, "width": WIDTH, "height": HEIGHT, "length": LENGTH, "file_names": names}],
        "categories": [{"id": identity, "name": name} for name, identity in table.items()],
        "annotations": annotations,
    }))  # fmt: skip
    return path


def predicted(source: Path, engine: Path, out: Path) -> dict:
    with mssts.load(engine, threads=1) as segmenter:
        mssts.predict(source, segmenter, out, progress=False)
    return json.loads((out / "report.json").read_text())


@pytest.mark.parametrize(
    "table",
    [
        {"red": 1, "green": 2, "blue": 3},
        {"red": 0, "green": 1, "blue": 2},
        {"blue": 1, "red": 2, "green": 3},
        {"Blue": 7, "GREEN": 30, "Red": 9},
    ],
    ids=["the engine's own", "from 0", "permuted", "other ids and case"],
)
def test_predictions_are_in_the_data_sets_ids(engine: Path, tmp_path: Path, table: dict[str, int]) -> None:
    source = write_dataset(tmp_path / "set", table)
    lower = {name.lower(): identity for name, identity in table.items()}
    truth = write_dataset(tmp_path / "truth", lower)
    report = predicted(source, engine, tmp_path / "out")
    assert {entry["id"]: entry["name"] for entry in report["categories"]} == {i: name for name, i in table.items()}
    assert report["notes"] == []
    ids = {entry["category_id"] for entry in json.loads((tmp_path / "out/results.json").read_text())[:2]}
    assert ids == {lower["red"], lower["blue"]}
    assert evaluate(truth, tmp_path / "out" / "results.json").ap50 == pytest.approx(1)


def test_a_class_that_the_data_set_lacks_is_left_out_and_named(engine: Path, tmp_path: Path, capsys) -> None:
    source = write_dataset(tmp_path / "set", {"red": 5, "teapot": 6})
    arguments = ["predict", str(source), "--model", str(engine), "--out", str(tmp_path / "out"), "--pictures", "0"]
    assert main(arguments) == 0
    lines = capsys.readouterr().err.splitlines()
    assert any("has no category green, blue" in line for line in lines)
    assert any("does not know teapot" in line for line in lines)
    assert {entry["category_id"] for entry in json.loads((tmp_path / "out/results.json").read_text())} == {5}


def test_a_data_set_of_none_of_the_classes_is_refused(engine: Path, tmp_path: Path, capsys) -> None:
    source = write_dataset(tmp_path / "set", {"cat": 1, "dog": 2})
    assert main(["predict", str(source), "--model", str(engine), "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "none of its categories (cat, dog) is a class of the engine (red, green, blue)" in line
    assert not (tmp_path / "out").exists()


def test_results_in_other_ids_are_not_scored_by_them(engine: Path, tmp_path: Path, capsys) -> None:
    results = tmp_path / "out" / "results.json"
    predicted(write_dataset(tmp_path / "set", {"red": 1, "green": 2, "blue": 3}), engine, results.parent)
    other = write_dataset(tmp_path / "other", {"blue": 1, "green": 2, "red": 3})
    assert main(["evaluate", "--gt", str(other), "--results", str(results)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "1 is red there and blue here" in line and "predict on that file" in line
    assert main(["evaluate", "--check", str(results), "--videos", str(other)]) == 1
    assert "1 is red there and blue here" in capsys.readouterr().out
    shifted = write_dataset(tmp_path / "shifted", {"red": 10, "green": 20, "blue": 30})
    with pytest.raises(MsstsError, match="red is 1 there and 10 here"):
        evaluate(shifted, results)
    (results.parent / "report.json").unlink()
    assert evaluate(other, results).ap50 == 0.0  # by id, as nothing says otherwise


def test_classes_that_a_data_set_lacks_take_no_places_in_its_results(
    engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A video has places for so many tracks, and red has the better score."""
    monkeypatch.setattr("mssts.prediction.predictor._MAX_TRACKS", 1)
    source = write_dataset(tmp_path / "set", {"blue": 3})
    report = predicted(source, engine, tmp_path / "out")
    (entry,) = json.loads((tmp_path / "out" / "results.json").read_text())
    assert entry["category_id"] == 3
    assert report["videos"][0]["tracks"] == 1


def test_shards_of_different_tables_are_refused(engine: Path, tmp_path: Path, capsys) -> None:
    table = {"red": 1, "green": 2, "blue": 3}
    tables = [table, {**table, "red": 3, "blue": 1}]
    results = []
    for k, shard_table in enumerate(tables):
        source = write_dataset(tmp_path / f"set{k}", shard_table)
        arguments = ["predict", str(source), "--model", str(engine), "--out", str(tmp_path), "--shard", f"{k}/2"]
        assert main(arguments) == 0
        results.append(str(tmp_path / f"shard-{k}-of-2" / "results.json"))
    capsys.readouterr()
    assert main(["evaluate", "--gt", str(tmp_path / "set0" / "instances.json"), "--results", *results]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert results[1] in line and "another table" in line and "red is 3, was 1" in line


def test_a_released_checkpoint_without_names_is_known_by_ids() -> None:
    unnamed = released_categories(4)
    mapped = map_by_name(unnamed, [Category(1, "cat"), Category(2, "dog")], "set.json")
    assert [category and category.name for category in mapped.by_label] == [None, "cat", "dog", None]
    assert mapped.left_out == ()
    assert rows_by_name([Category(2, "dog"), Category(8, "cow")], unnamed) == [2, None]
    named = released_categories(42)
    assert rows_by_name([Category(3, "giant_panda"), Category(4, "teapot")], named)[1] is None


def test_a_name_that_two_categories_share_is_told_apart_by_id() -> None:
    table = [Category(1, "cup"), Category(2, "cup"), Category(3, "red")]
    same = map_by_name([Category(1, "cup"), Category(2, "cup")], table, "set.json")
    assert [category and category.id for category in same.by_label] == [1, 2]
    other = map_by_name([Category(8, "cup"), Category(9, "red")], table, "set.json")
    assert [category and category.id for category in other.by_label] == [None, 3]


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ([RED, GREEN, BLUE], ""),
        ([GREEN, RED, BLUE], "in another order (class 0 is green, was red)"),
        ([RED, GREEN, BLUE, Category(4, "pink")], "with pink"),
        ([RED, BLUE], "without green"),
        ([RED, GREEN, Category(3, "pink")], "without blue and with pink"),
        ([RED, GREEN, Category(9, "blue")], "with other ids (blue is 9, was 3)"),
        ([RED, GREEN, BLUE, Category(4, "red")], "with 4 classes instead of 3"),
    ],
)
def test_the_difference_of_two_tables_is_named(table: list[Category], said: str) -> None:
    assert difference(table, [RED, GREEN, BLUE]) == said
