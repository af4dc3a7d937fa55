"""The options of bulk prediction, and its files, without Ray."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from support.bulk import write_videos

from mssts.bulk.parts import Parts
from mssts.bulk.worker import Job, Worker
from mssts.cli import main
from mssts.errors import MsstsError
from mssts.media.sources import list_source
from mssts.prediction.predictor import PredictOptions
from mssts.prediction.report import VideoReport, VideoResult


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--resume"], "--resume is for --ray"),
        (["--video-timeout", "3"], "--video-timeout is for --ray"),
        (["--threads", "0"], "--threads must be at least 1"),
        (["--ray", "local", "--shard", "0/2"], "--ray shares the videos itself"),
        (["--ray", "local", "--retries", "-1"], "--retries must be at least 0"),
        (["--ray", "local", "--workers", "0"], "--workers must be at least 1"),
        (["--ray", "local", "--gpus", "-1"], "--gpus must be at least 0"),
        (["--ray", "local", "--video-timeout", "0"], "--video-timeout must be above 0"),
        (["--ray", "ray://head:10001"], "expected local, auto, or HOST:PORT"),
        (["--ray", "head"], "expected local, auto, or HOST:PORT"),
    ],
)
def test_options_that_are_wrong(
    arguments: list[str], words: str, engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_videos(tmp_path / "videos", 1)
    code = main(["predict", str(folder), "--model", str(engine), "--out", str(tmp_path / "out"), *arguments])
    assert code == 2 and words in capsys.readouterr().err


def test_without_ray_one_line_says_how_to_get_it(
    engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    folder = write_videos(tmp_path / "videos", 1)
    arguments = ["predict", str(folder), "--model", str(engine), "--out", str(tmp_path / "out"), "--ray", "local"]
    assert main(arguments) == 2
    assert "pip install 'mssts[ray]'" in capsys.readouterr().err


def result(entries: int = 2) -> VideoResult:
    report = VideoReport(1, "scene", 12, 3, entries, None, None)
    return VideoResult([{"video_id": 1, "score": 0.1 * n} for n in range(entries)], report, {"read": 0.5})


def test_parts_of_another_run_are_refused(tmp_path: Path) -> None:
    parts = Parts(tmp_path)
    assert parts.begin({"model": "a", "videos": "x"}, resume=True) == set(), "nothing is there to go on with"
    parts.write(0, result())
    parts.write(1234, result())
    with pytest.raises(MsstsError, match="go on with --resume"):
        parts.begin({"model": "a", "videos": "x"}, resume=False)
    with pytest.raises(MsstsError, match="another model"):
        parts.begin({"model": "b", "videos": "x"}, resume=True)
    assert parts.begin({"model": "a", "videos": "x"}, resume=True) == {0, 1234}
    parts.remove()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [0, 10, 150, -20, -1])
def test_a_part_that_is_not_whole_is_made_again(tmp_path: Path, size: int) -> None:
    """Disks lose the ends of files when the power goes."""
    parts = Parts(tmp_path)
    parts.begin({}, resume=False)
    parts.write(7, result())
    head, lines = parts.read(7)
    assert head["video"]["name"] == "scene" and [json.loads(line)["score"] for line in lines] == [0.0, 0.1]
    (path,) = parts.folder.glob("*/*.jsonl")
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(MsstsError, match="run again with --resume"):
        parts.read(7)
    assert parts.begin({}, resume=True) == set()


def job(engine: Path, out: Path, **changes: object) -> Job:
    from dataclasses import replace

    from mssts.artefact import Artefact

    digest = Artefact.find(engine).sha256
    usual = Job(
        str(engine), digest, "onnxruntime", 1, False, PredictOptions(pictures=0), "videos", (), str(out), {"a": 1}
    )
    return replace(usual, **changes)


def test_a_worker_that_sees_other_files_than_the_driver(engine: Path, tmp_path: Path) -> None:
    worker = Worker(job(engine, tmp_path))
    assert "--out must be on a disk that all share" in (worker.start().error or "")
    Parts(tmp_path).begin({"a": 1}, resume=False)
    assert worker.start().error is None
    assert "not the same file" in (Worker(job(engine, tmp_path, model_sha256="0" * 64)).start().error or "")


def test_a_worker_tells_a_broken_video_from_a_folder_that_is_gone(engine: Path, tmp_path: Path) -> None:
    folder = write_videos(tmp_path / "videos", 1)
    (folder / "z.mp4").write_bytes(b"broken")
    out = tmp_path / "out"
    Parts(out).begin({"a": 1}, resume=False)
    worker = Worker(job(engine, out))
    assert worker.start().error is None
    good, broken = list_source(folder).items
    outcome = worker.predict(0, good)
    assert (outcome.error, outcome.unwritable, outcome.frames) == (None, None, 12)
    outcome = worker.predict(1, broken)
    assert "z.mp4" in (outcome.error or "") and outcome.unwritable is None
    Parts(out).remove()
    out.rmdir()
    out.write_bytes(b"a file now")
    assert "cannot be written" in (worker.predict(0, good).unwritable or "")
