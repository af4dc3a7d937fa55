"""`mssts evaluate --check`: a line for each reason to reject a submission."""

from __future__ import annotations

import codecs
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from support.toy_engine import CATEGORIES, write_toy_engine

from mssts.cli import main
from mssts.data.moving_shapes import MovingShapesConfig, write_dataset
from mssts.evaluation import check_submission

SIZE = (8, 10)


def rle(columns: int) -> dict[str, Any]:
    mask = np.zeros(SIZE, np.uint8, order="F")
    mask[:, :columns] = 1
    return {"size": list(SIZE), "counts": coco_mask.encode(mask)["counts"].decode()}


def entry(**changes: Any) -> dict[str, Any]:
    good = {"video_id": 7, "category_id": 17, "score": 0.5, "segmentations": [rle(4), None]}
    return {**good, **changes}


def masks(second: Any) -> dict[str, Any]:
    return entry(segmentations=[rle(4), second])


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """A set like the official test splits: no annotations, with or without `length`."""
    listed = [
        {"id": 7, "height": SIZE[0], "width": SIZE[1], "length": 2, "file_names": ["a/0.jpg", "a/1.jpg"]},
        {"id": 9, "height": SIZE[0], "width": SIZE[1], "file_names": ["b/0.jpg"]},
    ]
    categories = [{"id": 3, "name": "hand"}, {"id": 17, "name": "teapot"}]
    path = tmp_path / "instances.json"
    path.write_text(json.dumps({"videos": listed, "categories": categories, "annotations": None}))
    return path


def check(results: Path, videos: Path) -> int:
    return main(["evaluate", "--check", str(results), "--videos", str(videos)])


def write(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value))
    return path


def test_a_clean_submission_is_summarised(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    several = [entry(), entry(category_id=3, score=1), masks([]), masks({}), entry(video_id=9, segmentations=[None])]
    results = write(tmp_path / "results.json", several)
    assert check(results, videos) == 0
    out = capsys.readouterr().out
    assert "no problem found; 5 predictions for 2 of 2 videos" in out
    assert "take it zipped" in out

    with zipfile.ZipFile(tmp_path / "submission.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(results, "results.json")
    assert check(tmp_path / "submission.zip", videos) == 0
    out = capsys.readouterr().out
    assert "zipped" not in out
    report = check_submission(tmp_path / "submission.zip", videos)
    assert (report.problems, report.entries, report.videos_predicted) == ((), 5, 2)
    assert report.unpacked_bytes == results.stat().st_size > report.uploaded_bytes


def test_keys_that_occur_twice_are_no_problem(videos: Path, tmp_path: Path) -> None:
    text = json.dumps([entry()]).replace('"score": 0.5', '"score": 0.4, "score": 0.5, "video_name": "a"')
    (tmp_path / "results.json").write_text(text)
    assert check(tmp_path / "results.json", videos) == 0


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (None, ["null"]),
        (entry(video_id=8), ["video_id is 8", "2 videos"]),
        (entry(video_id="7"), ["video_id", "not '7'"]),
        (entry(category_id=4), ["category_id is 4", "2 categories"]),
        (entry(category_id=True), ["category_id"]),
        (entry(score=float("nan")), ["score", "nan"]),
        (entry(score=float("inf")), ["score", "inf"]),
        (entry(score=1.5), ["score", "0 to 1", "1.5"]),
        (entry(score=-0.1), ["score", "-0.1"]),
        ({key: value for key, value in entry().items() if key != "score"}, ["no field 'score'"]),
        ({key: value for key, value in entry().items() if key != "segmentations"}, ["no field 'segmentations'"]),
        (entry(segmentations=[rle(4)]), ["segmentations has 1", "2 frames"]),
        (masks({**rle(4), "size": [10, 8]}), ["segmentations[1]", "[10, 8]"]),
        (masks({"size": list(SIZE), "counts": "25"}), ["segmentations[1]", "80 pixels"]),
        (masks({"size": list(SIZE), "counts": "b'0^1'"}), ["segmentations[1]", "counts"]),
        (masks("0^1"), ["segmentations[1]", "not '0^1'"]),
        (masks({"counts": rle(4)["counts"]}), ["segmentations[1]", "size"]),
        # Evaluation here takes these two; the server's code reads neither.
        (masks({"size": list(SIZE), "counts": [0, 80]}), ["segmentations[1]", "uncompressed run lengths"]),
        (masks([[0, 0, 4, 0, 4, 4]]), ["segmentations[1]", "polygons"]),
    ],
)
def test_each_problem_is_one_line_with_entry_and_field(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], broken: Any, words: list[str]
) -> None:
    results = write(tmp_path / "results.json", [entry(), broken, entry()])
    assert check(results, videos) == 1
    problem, verdict, *notes = capsys.readouterr().out.splitlines()
    for word in ("results.json: entry 1", *words):
        assert word in problem
    assert verdict.startswith("1 problem: would be rejected, or not counted; 3 predictions")
    assert all(note.startswith("note: ") for note in notes)


def test_one_wrong_field_does_not_hide_another(videos: Path, tmp_path: Path) -> None:
    results = write(
        tmp_path / "results.json",
        [entry(category_id=1, score="high", segmentations=["x", "y"]), entry(video_id=1), 5],
    )
    report = check_submission(results, videos)
    fields = ("category_id", "score", "segmentations[0]", "segmentations[1]", "video_id", "an object")
    assert report.problem_count == len(fields)
    for field, problem in zip(fields, report.problems, strict=True):
        assert field in problem


def test_many_problems_are_counted_and_not_all_shown(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = write(tmp_path / "results.json", [entry(score=2)] * 300)
    assert check(results, videos) == 1
    lines = capsys.readouterr().out.splitlines()
    shown = [line for line in lines if "score" in line]
    assert 10 <= len(shown) < 100
    assert f"… and {300 - len(shown)} more" in lines
    assert any(line.startswith("300 problems") for line in lines)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"7": []}', "must be a list of predictions"),
        (b"[]", "an empty list"),
        (b'[{"video_id": 7,', "not valid JSON"),
        (b"\xff\xfe\xff", "not UTF-8"),
        (b"[" * 100_000, "not valid JSON"),
        (codecs.BOM_UTF8 + json.dumps([entry()]).encode(), "begins with a byte-order mark"),
        (json.dumps([entry()]).encode("utf-16"), "not UTF-8"),
    ],
)
def test_a_file_that_is_no_list_of_predictions(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, words: str
) -> None:
    (tmp_path / "results.json").write_bytes(content)
    assert check(tmp_path / "results.json", videos) == 1
    problem, verdict, *_ = capsys.readouterr().out.splitlines()
    assert problem.startswith("results.json: ") and words in problem
    assert verdict.startswith("1 problem:")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1", "ascii"])
def test_the_check_takes_the_text_that_the_server_takes(videos: Path, tmp_path: Path, encoding: str) -> None:
    """The server opens the file as text and gives it to `json.load`."""
    text = json.dumps([{**entry(), "note": "é"}], ensure_ascii=encoding == "ascii")
    path = tmp_path / "results.json"
    path.write_bytes(text.encode(encoding))
    try:
        with open(path, encoding="utf-8") as file:
            json.load(file)
        expected = 0
    except ValueError:
        expected = 1
    assert check(path, videos) == expected
    with zipfile.ZipFile(tmp_path / "results.zip", "w") as archive:
        archive.write(path, "results.json")
    assert check(tmp_path / "results.zip", videos) == expected


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], "holds nothing"),
        (["out/results.json"], "holds out/results.json"),
        (["results.json", "__MACOSX/._results.json"], "__MACOSX"),
        (["result.json"], "holds result.json"),
    ],
)
def test_an_archive_must_hold_results_at_its_root_and_no_more(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], names: list[str], words: str
) -> None:
    with zipfile.ZipFile(tmp_path / "results.zip", "w") as archive:
        for name in names:
            archive.writestr(name, json.dumps([entry()]))
    assert check(tmp_path / "results.zip", videos) == 1
    problem = capsys.readouterr().out.splitlines()[0]
    assert words in problem and "expected results.json at its root, and no more" in problem


def test_a_damaged_archive(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "results.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("results.json", json.dumps([entry()]))
    data = path.read_bytes()
    for damaged in (b"no zip", data[:-30], data.replace(b'"score": 0.5', b'"score": 0.6')):
        path.write_bytes(damaged)
        assert check(path, videos) == 1
        assert "results.zip: not a zip archive that can be read" in capsys.readouterr().out.splitlines()[0]


def test_the_report_is_written(videos: Path, tmp_path: Path) -> None:
    results = write(tmp_path / "results.json", [entry(), entry(score=7)])
    arguments = ["evaluate", "--check", results, "--videos", videos, "--out", tmp_path / "report.json"]
    assert main([str(argument) for argument in arguments]) == 1
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["problem_count"], len(report["problems"]), report["entries"]) == (1, 1, 2)
    assert report["machine"] and report["versions"] and report["commit"]


@pytest.mark.parametrize(
    "given", [[], ["--check"], ["--gt"], ["--gt", "--videos"], ["--gt", "--results", "--check", "--videos"]]
)
def test_what_to_give_is_one_line(videos: Path, capsys: pytest.CaptureFixture[str], given: list[str]) -> None:
    assert main(["evaluate", *(word for option in given for word in (option, str(videos)))]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--gt and --results" in line and "--check and --videos" in line


def test_an_absent_file_is_an_error_and_no_verdict(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(tmp_path / "absent.zip", videos) == 2
    assert "absent.zip: no such file" in capsys.readouterr().err
    assert check(write(tmp_path / "results.json", [entry()]), tmp_path / "absent.json") == 2
    assert "absent.json: no such file" in capsys.readouterr().err


def write_shapes_in_colours(folder: Path, videos: int, length: int) -> None:
    """MovingShapes whose first classes have the names of the toy engine's."""
    write_dataset(folder, videos, 0, MovingShapesConfig(width=64, height=48, length=length), progress=False)
    path = folder / "instances.json"
    content = json.loads(path.read_text())
    for category, colour in zip(content["categories"], CATEGORIES, strict=False):
        category["name"] = colour.name
    path.write_text(json.dumps(content))


def test_shards_of_a_data_set_are_scored_as_the_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, engine = tmp_path / "data", tmp_path / "engine"
    write_shapes_in_colours(data, 5, 3)
    write_toy_engine(engine)
    truth = str(data / "instances.json")

    def predict(out: str, *options: str) -> Path:
        arguments = ["--model", str(engine), "--pictures", "0", "--out", str(tmp_path / out), *options]
        assert main(["predict", truth, *arguments]) == 0
        return tmp_path / out

    whole = predict("whole") / "results.json"
    shards = [predict("parts", "--shard", f"{k}/2") / f"shard-{k}-of-2" / "results.json" for k in range(2)]
    videos = [{entry["video_id"] for entry in json.loads(path.read_text())} for path in shards]
    assert not videos[0] & videos[1]

    def score(*results: Path) -> str:
        capsys.readouterr()
        assert main(["evaluate", "--gt", truth, "--results", *map(str, results)]) == 0
        return capsys.readouterr().out

    assert score(*shards) == score(whole)
    assert main(["evaluate", "--gt", truth, "--results", str(shards[1]), str(shards[1])]) == 2
    assert "shards 1/2, 1/2; expected each of the 2 shards once" in capsys.readouterr().err
    assert main(["evaluate", "--gt", truth, "--results", str(shards[0])]) == 2
    assert "shards 0/2; expected each of the 2 shards once" in capsys.readouterr().err


def test_torchrun_tells_each_process_its_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, engine = tmp_path / "data", tmp_path / "engine"
    write_shapes_in_colours(data, 3, 2)
    write_toy_engine(engine)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    arguments = ["--model", str(engine), "--pictures", "0", "--out", str(tmp_path / "out")]
    assert main(["predict", str(data / "instances.json"), *arguments]) == 0
    report = json.loads((tmp_path / "out" / "shard-1-of-3" / "report.json").read_text())
    assert report["shard"] == [1, 3]
    assert [video["id"] for video in report["videos"]] == [2]
