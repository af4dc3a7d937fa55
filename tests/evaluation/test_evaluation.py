"""Average precision against the youtubevos fork and hand-computed cases.

Broken files are tested too.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mssts.cli import main
from mssts.evaluation import Metrics, evaluate, format_table
from mssts.evaluation.average_precision import track_iou
from mssts.evaluation.tracks import read_ground_truth, read_predictions

GOLDEN = Path(__file__).parents[1] / "golden" / "youtubevos_ap.json"
FIGURES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar1", "ar10")
SIZE = (8, 10)


def rle(mask: np.ndarray) -> dict[str, Any]:
    encoded = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(mask.shape), "counts": encoded["counts"].decode()}


def rectangle(columns: int, size: tuple[int, int] = SIZE) -> dict[str, Any]:
    """The leftmost columns of a frame."""
    mask = np.zeros(size, bool)
    mask[:, :columns] = True
    return rle(mask)


def ground_truth(*tracks: list[Any], frames: int = 2, size: tuple[int, int] = SIZE) -> dict[str, Any]:
    """One video with these tracks, all of category 3.

    Category 5 has none.
    """
    names = [f"{t}.jpg" for t in range(frames)]
    video = {"id": 7, "height": size[0], "width": size[1], "length": frames, "file_names": names}
    annotations = [
        {"id": i, "video_id": 7, "category_id": 3, "iscrowd": 0, "segmentations": track}
        for i, track in enumerate(tracks, start=1)
    ]
    categories = [{"id": 5, "name": "zebra"}, {"id": 3, "name": "ape"}]
    return {"videos": [video], "categories": categories, "annotations": annotations}


def prediction(segmentations: list[Any], score: float = 0.9, category_id: int = 3) -> dict[str, Any]:
    return {"video_id": 7, "category_id": category_id, "score": score, "segmentations": segmentations}


def figures(metrics: Metrics) -> list[float]:
    return [getattr(metrics, name) for name in FIGURES]


def test_figures_are_those_of_the_youtubevos_fork() -> None:
    problems = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert len(problems) >= 50
    for problem in problems:
        metrics = evaluate(problem["ground_truth"], problem["results"])
        message = f"seed {problem['seed']}"
        # The arithmetic is the same float64, in the same order; 1e-6 is what we promise.
        np.testing.assert_allclose(figures(metrics), problem["stats"][:8], rtol=0, atol=1e-6, err_msg=message)
        by_category = [category.ap for category in metrics.per_category]
        np.testing.assert_allclose(by_category, problem["category_ap"], rtol=0, atol=1e-6, err_msg=message)


def test_perfect_results_score_one_and_undefined_figures_are_minus_one() -> None:
    track = [rectangle(4), None]
    metrics = evaluate(ground_truth(track), [prediction(track)])
    assert figures(metrics) == pytest.approx([1, 1, 1, 1, -1, -1, 1, 1])
    ape, zebra = metrics.per_category
    assert (ape.name, ape.ap, ape.objects) == ("ape", pytest.approx(1), 1)
    assert (zebra.name, zebra.ap, zebra.objects) == ("zebra", -1, 0)


def test_iou_is_taken_over_all_frames_together() -> None:
    # Frame IoUs are 1/4 and 1: their mean would pass 0.6. Over space and time it is (1 + 4) / (4 + 4) = 0.625, which
    # passes the thresholds 0.50, 0.55 and 0.60, three of the ten.
    truth = ground_truth([rectangle(4), rectangle(4)])
    metrics = evaluate(truth, [prediction([rectangle(1), rectangle(4)])])
    assert (metrics.ap50, metrics.ap75, metrics.ap) == pytest.approx((1, 0, 0.3))
    # A prediction in a frame where the object is not counts against it: 4 / (4 + 4).
    metrics = evaluate(ground_truth([rectangle(4), None]), [prediction([rectangle(4), rectangle(4)])])
    assert metrics.ap == pytest.approx(0.1)


def test_a_confident_false_alarm_halves_precision() -> None:
    track = [rectangle(4), rectangle(4)]
    results = [prediction(track, 0.5), prediction([rectangle(10), None], 0.6)]
    metrics = evaluate(ground_truth(track), results)
    assert metrics.ap == pytest.approx(0.5)
    assert (metrics.ar1, metrics.ar10) == (0, 1)  # the one prediction that AR1 allows is the false alarm


def test_size_is_the_mean_area_over_the_frames_where_the_object_is() -> None:
    size = (128, 300)
    large_in_one_frame = [None, rectangle(256, size)]  # 32768 px there, so medium; small if absent frames counted
    metrics = evaluate(ground_truth(large_in_one_frame, size=size), [prediction(large_in_one_frame)])
    assert (metrics.ap_small, metrics.ap_medium, metrics.ap_large) == pytest.approx((-1, 1, -1))
    at_the_boundary = [rectangle(128, size)] * 2  # 128² is both small and medium
    metrics = evaluate(ground_truth(at_the_boundary, size=size), [prediction(at_the_boundary)])
    assert (metrics.ap_small, metrics.ap_medium, metrics.ap_large) == pytest.approx((1, 1, -1))


def test_predictions_on_a_crowd_count_for_nothing() -> None:
    track, crowd = [rectangle(4), None], [rectangle(8), rectangle(8)]
    truth = ground_truth(track, crowd)
    truth["annotations"][1]["iscrowd"] = 1
    results = [prediction(crowd, 0.9), prediction(crowd, 0.8), prediction(track, 0.5)]
    metrics = evaluate(truth, results)
    assert (metrics.ap, metrics.objects) == (pytest.approx(1), 1)


def test_no_predictions_score_zero() -> None:
    assert figures(evaluate(ground_truth([rectangle(4)] * 2), [])) == [0, 0, 0, 0, -1, -1, 0, 0]


def test_no_annotations_leave_everything_undefined() -> None:
    assert figures(evaluate(ground_truth(), [prediction([rectangle(4)] * 2)])) == [-1] * 8


def test_tracks_without_a_pixel_never_match() -> None:
    empty = [rle(np.zeros(SIZE, bool)), None]
    metrics = evaluate(ground_truth(empty), [prediction(empty)])
    assert (metrics.ap, metrics.ar10) == (0, 0)


def test_track_iou_equals_counting_pixels() -> None:
    random = np.random.default_rng(0)
    masks = random.random((9, 5, *SIZE)) < random.random((9, 5, 1, 1))
    masks[random.random((9, 5)) < 0.3] = False
    tracks = [[rle(mask) if mask.any() or random.random() < 0.5 else None for mask in track] for track in masks]
    truth = read_ground_truth(ground_truth(*tracks[:5], frames=5), "")
    predicted, _ = read_predictions([prediction(track) for track in tracks[5:]], "", truth)
    a, b = masks[5:, None], masks[None, :5]
    expected = (a & b).sum(axis=(2, 3, 4)) / (a | b).sum(axis=(2, 3, 4))  # no union is empty here
    np.testing.assert_array_equal(track_iou(predicted, truth.tracks), expected)


def test_unlisted_categories_are_left_out_and_noted() -> None:
    track = [rectangle(4)] * 2
    truth = ground_truth(track, track)
    truth["annotations"][1]["category_id"] = 6
    metrics = evaluate(truth, [prediction(track), prediction(track, 1.0, category_id=40)])
    assert metrics.ap == pytest.approx(1)
    assert any("category_id" in note and "entry 1 has 40" in note for note in metrics.notes)
    assert any("annotations[1]" in note for note in metrics.notes)
    assert "note: results: 1 predictions left out" in format_table(metrics)


def test_inputs_are_not_changed() -> None:
    track = [rectangle(4), None]
    truth, results = ground_truth(track), [prediction(track)]
    before = copy.deepcopy((truth, results))
    evaluate(truth, results)
    assert (truth, results) == before


def test_uncompressed_run_lengths_are_taken() -> None:
    track = [rectangle(4), None]
    counts = [0, 4 * SIZE[0], 6 * SIZE[0]]
    metrics = evaluate(ground_truth(track), [prediction([{"size": list(SIZE), "counts": counts}, {}])])
    assert metrics.ap == pytest.approx(1)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with a valid pair of files."""
    track = [rectangle(4), None]
    (tmp_path / "instances.json").write_text(json.dumps(ground_truth(track)))
    (tmp_path / "results.json").write_text(json.dumps([prediction(track), prediction(track, 0.1)]))
    return tmp_path


def run_command(folder: Path) -> int:
    arguments = {"gt": "instances.json", "results": "results.json", "out": "metrics.json"}
    return main(["evaluate", *(word for name, file in arguments.items() for word in (f"--{name}", str(folder / file)))])


def test_command_prints_a_table_and_writes_json(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(files) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["AP", "AP50", "AP75", "APsmall", "APmedium", "APlarge", "AR1", "AR10"]
    assert lines[1].split() == ["1.000", "1.000", "1.000", "1.000", "-", "-", "1.000", "1.000"]
    assert len(lines[0]) == len(lines[1])
    written = json.loads((files / "metrics.json").read_text())
    assert [written[name] for name in FIGURES] == pytest.approx([1, 1, 1, 1, -1, -1, 1, 1])
    assert [category["name"] for category in written["per_category"]] == ["ape", "zebra"]
    assert written["machine"] and written["versions"] and written["commit"]


@pytest.mark.parametrize("out", ["", "results.json/metrics.json"])
def test_a_place_that_cannot_be_written_is_one_line(files: Path, capsys: pytest.CaptureFixture[str], out: str) -> None:
    arguments = ["--gt", "instances.json", "--results", "results.json", "--out", out]
    assert main(["evaluate", *(word if word[:2] == "--" else str(files / word) for word in arguments)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and str(files / out) in error


def broken(**changes: Any) -> list[dict[str, Any]]:
    """Two predictions, the second of them broken."""
    good = prediction([rectangle(4), None])
    return [good, {**good, **changes}]


def without(name: str) -> list[dict[str, Any]]:
    results = broken()
    del results[1][name]
    return results


@pytest.mark.parametrize(
    ("results", "words"),
    [
        ({"video_id": 7}, ["must be a list of predictions"]),
        ([prediction([rectangle(4), None]), None], ["entry 1", "null"]),
        (broken(video_id=8), ["entry 1.video_id is 8"]),
        (broken(video_id="7"), ["entry 1.video_id", "not '7'"]),
        (broken(category_id=None), ["entry 1", "category_id", "null"]),
        (broken(score="0.5"), ["entry 1.score", "not '0.5'"]),
        (broken(score=float("nan")), ["entry 1", "score", "nan"]),
        (broken(score=10**400), ["entry 1.score", "a number below"]),
        (without("score"), ["entry 1 has no field 'score'"]),
        (without("segmentations"), ["entry 1 has no field 'segmentations'"]),
        (broken(segmentations=[rectangle(4)]), ["entry 1", "segmentations has 1 entries", "2 frames"]),
        (broken(segmentations=[None, rectangle(4, (10, 8))]), ["entry 1", "segmentations[1]", "[10, 8]", "[8, 10]"]),
        (broken(segmentations=[None, "abc"]), ["entry 1.segmentations[1]", "not 'abc'"]),
        # Python bytes turned into text, a cut string, and runs that do not fill the frame: the last makes pycocotools
        # run forever, the one before read beyond its buffer.
        (broken(segmentations=[None, {"size": SIZE, "counts": "b'0^1'"}]), ["segmentations[1]", "counts"]),
        (broken(segmentations=[None, {"size": SIZE, "counts": "0P"}]), ["segmentations[1]", "counts"]),
        (
            broken(segmentations=[None, {"size": SIZE, "counts": "25"}]),
            ["segmentations[1].counts", "not of the 80 pixels"],
        ),
        (broken(segmentations=[None, {"size": SIZE, "counts": [80, -1, 1]}]), ["segmentations[1]", "counts"]),
    ],
)
def test_broken_results_are_one_line_and_write_nothing(
    files: Path, capsys: pytest.CaptureFixture[str], results: Any, words: list[str]
) -> None:
    (files / "results.json").write_text(json.dumps(results))
    assert run_command(files) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    for word in [str(files / "results.json"), *words]:
        assert word in error
    assert sorted(path.name for path in files.iterdir()) == ["instances.json", "results.json"]


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (
            ["annotations"],
            None,
            ["has no annotations; evaluation needs ground truth"],
        ),  # as in the official test splits
        (["annotations", 0, "segmentations"], [None], ["annotations[0]", "segmentations has 1 entries"]),
        (["annotations", 0, "segmentations", 0, "size"], [10, 8], ["annotations[0]", "segmentations[0]", "size"]),
        (["annotations", 0, "areas"], ["12"], ["annotations[0]", "areas"]),
        (["annotations", 0, "id"], None, ["annotations[0].id must be an integer"]),
        (["videos", 0, "height"], 0, ["videos[0]", "height"]),
        (["categories", 1, "id"], 5, ["categories[1] has the id 5, which categories[0] has already"]),
    ],
)
def test_broken_ground_truth_is_one_line(
    files: Path, capsys: pytest.CaptureFixture[str], path: list[Any], value: Any, words: list[str]
) -> None:
    truth = json.loads((files / "instances.json").read_text())
    parent = truth
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = value
    (files / "instances.json").write_text(json.dumps(truth))
    assert run_command(files) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    for word in [str(files / "instances.json"), *words]:
        assert word in error


@pytest.mark.parametrize("content", [b"[" * 100_000, b"[" + b"1" * 5000 + b"]", b"\xef\xbb\xbf[]", b"\xff"])
def test_a_file_that_cannot_be_read_is_one_line(
    files: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    (files / "results.json").write_bytes(content)
    assert run_command(files) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{files / 'results.json'}: " in line and "JSON" in line
