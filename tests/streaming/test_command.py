"""`mssts stream` from end to end, in a process of its own where that matters."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pycocotools.coco import COCO
from support.media_files import write_video
from support.streams import PATIENCE, picture
from support.toy_engine import write_toy_engine

from mssts.cli import main
from mssts.media.sources import open_source

LENGTH = 23


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_engine(tmp_path_factory.mktemp("engine")).parent


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    frames = [picture(number) for number in range(LENGTH)]
    return write_video(tmp_path_factory.mktemp("video") / "scene.mp4", frames, rate=12)


def run(*arguments: object) -> int:
    return main(["stream", *map(str, arguments)])


def test_a_video_becomes_lines(engine: Path, video: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(video, "--model", engine) == 0
    captured = capsys.readouterr()
    lines = [json.loads(line) for line in captured.out.splitlines()]
    assert [line["frame"] for line in lines] == list(range(LENGTH))
    assert {item["track"] for line in lines for item in line["instances"] if item["name"] == "red"} == {1}
    assert "frames 23   dropped 0   windows 6" in captured.err


def test_all_outputs_at_once(engine: Path, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, overlay = tmp_path / "out.jsonl", tmp_path / "out.mp4"
    assert run(video, "--model", engine, "--jsonl", out, "--overlay", overlay, "--stride", 3) == 0
    assert len(out.read_text().splitlines()) == LENGTH
    assert len(list(open_source(overlay).videos[0].frames())) == LENGTH
    assert capsys.readouterr().out == ""


def test_the_formats_hold_what_the_lines_hold(engine: Path, video: Path, tmp_path: Path) -> None:
    formats = [word for name in ("ytvis", "mots", "coco") for word in ("--format", name)]
    assert run(video, "--model", engine, "--jsonl", tmp_path / "out.jsonl", *formats, "--out", tmp_path) == 0
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    found = {(line["frame"], item["track"]): item for line in lines for item in line["instances"]}
    assert found
    coco = COCO(tmp_path / "coco.json")
    assert [image["frame_id"] for image in coco.dataset["images"]] == list(range(LENGTH))
    frames = {image["id"]: image["frame_id"] for image in coco.dataset["images"]}
    assert {(frames[entry["image_id"]], entry["track_id"]) for entry in coco.dataset["annotations"]} == set(found)
    for entry in coco.dataset["annotations"]:
        assert entry["segmentation"] == found[frames[entry["image_id"]], entry["track_id"]]["segmentation"]
    mots = [line.split(" ") for line in (tmp_path / "mots.txt").read_text().splitlines()]
    assert {int(words[0]) - 1 for words in mots} == {frame for frame, _ in found}
    assert len({(words[0], words[1]) for words in mots}) == len(mots) <= len(found)  # one that is covered has none
    entries = json.loads((tmp_path / "results.json").read_text())
    assert all(len(entry["segmentations"]) == LENGTH for entry in entries)
    assert sum(mask is not None for entry in entries for mask in entry["segmentations"]) == len(found)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["97"], "there is no /dev/video97"),
        (["{video}", "--stride", "9"], "would leave out frames"),
        (["{video}", "--raw-video", "96x48"], "the raw format is that of stdin"),
        (["-", "--raw-video", "many"], "expected a size as 640x360"),
        (["{video}", "--post", "nowhere"], "not an address to post to"),
        (["{video}", "--jsonl", "{folder}"], "is a folder"),
        (["{video}", "--overlay", "x.avi"], "ends with .mp4"),
        (["{video}", "--timeout", "0"], "above 0 s"),
        (["{video}", "--jsonl", "{folder}/x.jsonl", "--jsonl-size", "nan"], "--jsonl-size nan: expected a number"),
    ],
)
def test_bad_input_is_one_line(
    engine: Path, video: Path, tmp_path: Path, arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [argument.format(video=video, folder=tmp_path) for argument in arguments]
    assert run(*given, "--model", engine) == 2
    error = capsys.readouterr().err
    assert line in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_ends_it_in_good_order(engine: Path, tmp_path: Path) -> None:
    """Frames on stdin, which does not end by itself."""
    out, overlay = tmp_path / "out.jsonl", tmp_path / "out.mp4"
    process = subprocess.Popen(
        [sys.executable, "-m", "mssts.cli", "stream", "-", "--raw-video", "96x48@12", "--model", str(engine),
         "--jsonl", str(out), "--overlay", str(overlay)],
        stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=False,
    )  # fmt: skip
    assert process.stdin is not None
    for number in range(12):
        process.stdin.write(picture(number).tobytes())
    process.stdin.flush()
    deadline = time.monotonic() + PATIENCE
    while not out.exists() or len(out.read_text().splitlines()) < 9:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGINT
    assert b"Traceback" not in error
    frames = [json.loads(line)["frame"] for line in out.read_text().splitlines()]
    assert frames == list(range(len(frames))) and len(frames) >= 9
    assert len(list(open_source(overlay).videos[0].frames())) == len(frames)


def test_mpeg_ts_comes_from_stdin_and_may_change_its_size(engine: Path, tmp_path: Path) -> None:
    """Two recordings, one after the other, as `cat` joins them."""
    small = write_video(tmp_path / "small.ts", [picture(number) for number in range(LENGTH)], rate=12)
    large = write_video(tmp_path / "large.ts", [picture(number, (96, 160)) for number in range(LENGTH)], rate=12)
    done = subprocess.run(
        [sys.executable, "-m", "mssts.cli", "stream", "-", "--model", str(engine)],
        input=small.read_bytes() + large.read_bytes(), capture_output=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert [result["frame"] for result in results] == list(range(2 * LENGTH))
    sizes = [result["instances"][0]["segmentation"]["size"] for result in results]
    assert sizes == [[48, 96]] * LENGTH + [[96, 160]] * LENGTH
    times = [result["time"] for result in results]
    assert times == sorted(times)
    tracks = [{item["track"] for item in result["instances"]} for result in results]
    assert not set.union(*tracks[:LENGTH]) & set.union(*tracks[LENGTH:])
    assert b"frames are 160\xc3\x9796 from frame 23 on, 96\xc3\x9748 before" in done.stderr
