"""The main job, as `make demo` runs it.

The real server, the shipped checkpoint, the figures, and a clean end.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.released_weights import golden_keys, write_released

from mssts.commands.demo import CHECKPOINT, SPLIT
from mssts.data.moving_shapes import SPLITS
from mssts.data.youtube_vis_classes import YOUTUBE_VIS_2019
from mssts.model.checkpoint import load_checkpoint

VIDEOS = 40  # of the split's 120

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.server,
    pytest.mark.slow,
    pytest.mark.skipif(sys.version_info >= (3, 13), reason="numpy < 2, for the Triton wheel, ends at Python 3.12"),
]


def processes(text: str) -> list[int]:
    """Processes whose command line holds `text`."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                line = (folder / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if text in line:
                found.append(int(folder.name))
    return found


def demo(out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mssts.cli", "demo", "--out", str(out), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run of the demo: its folder and what it printed."""
    out = tmp_path_factory.mktemp("demo") / "run"
    done = demo(out, "--videos", str(VIDEOS))
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_the_report_has_the_figures_that_were_printed(finished):
    out, printed = finished
    report = json.loads((out / "report.json").read_text())
    for key in ("ap", "ap50", "ap75", "ar1", "ar10", "frames_per_second", "engine", "server_version",
                "parity_max_abs_error", "machine", "commit", "latency_ms"):  # fmt: skip
        assert key in report, key
    assert report["engine"]["name"] == "triton"
    assert report["frames"] == VIDEOS * 16
    assert f"{100 * report['ap']:.1f}" in printed
    assert f"{report['frames_per_second']:.1f}" in printed
    assert report["ap"] >= 0.30  # what the shipped checkpoint was promised to reach; chance gives less than 0.01


def test_the_results_are_a_submission_and_the_pictures_are_there(finished):
    out, _ = finished
    results = json.loads((out / "results.json").read_text())
    assert {"video_id", "category_id", "score", "segmentations"} <= set(results[0])
    assert (out / "contact_sheet.png").stat().st_size > 10_000
    report = json.loads((out / "report.json").read_text())
    assert all((out / video["overlay"]).is_file() for video in report["videos"] if video["overlay"])


def test_the_checkpoint_is_small_and_the_demo_is_held_out():
    assert CHECKPOINT.stat().st_size <= 30e6
    assert load_checkpoint(CHECKPOINT, "tiny").categories[0].name == "disc"
    # Videos are those of the split by checksum; the seeds trained on are in training/checkpoints/README.md.
    assert SPLIT == "test"
    trained = re.findall(r"--seed (\d+)", (CHECKPOINT.parent / "README.md").read_text())
    assert trained
    assert str(SPLITS[SPLIT].seed) not in trained


def test_a_video_of_ones_own_has_pictures_and_no_ap(finished):
    out, _ = finished
    (out.parent / "own").mkdir()
    (out.parent / "own" / "engine").symlink_to(out / "engine")  # which --reuse finds unchanged
    done = demo(out.parent / "own", "--video", str(out / "00000.mp4"))
    assert done.returncode == 0, done.stderr
    assert "kept " in done.stdout
    report = json.loads((out.parent / "own" / "report.json").read_text())
    assert "ap" not in report
    assert report["frames"] == 16
    assert re.search(r"^found +\d+ \w+.* \(tracks with a score of at least 0\.3\)$", done.stdout, re.M)
    assert "ten drawn shapes only" in done.stdout
    assert (out.parent / "own" / "contact_sheet.png").is_file()


def test_a_wrong_path_is_one_line_before_anything_long_starts(tmp_path):
    done = demo(tmp_path / "run", "--video", str(tmp_path / "nothing.mp4"))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "nothing.mp4" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("file", "message"), [("absent.pth", "no such file; expected a checkpoint"), ("released.pth", "pass --video")]
)
def test_a_checkpoint_that_cannot_do_is_one_line_before_anything_long_starts(tmp_path, file, message):
    (tmp_path / "released.pth").touch()
    done = demo(tmp_path / "run", "--checkpoint", str(tmp_path / file))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_passes_checkpoint_and_video_on():
    command = ["make", "--dry-run", "--no-print-directory", "demo", "CHECKPOINT=my weights.pth", "VIDEO=a clip.mp4"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}  # of `make test`
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    printed = done.stdout
    assert printed.splitlines()[-1].endswith('mssts demo --checkpoint "my weights.pth" --video "a clip.mp4"')


@pytest.mark.long
def test_released_weights_on_a_video_of_ones_own(finished, tmp_path):
    """R50 of the released form, all layers and queries. Two minutes."""
    checkpoint = write_released(tmp_path / "released.pth", golden_keys())
    done = demo(tmp_path / "run", "--checkpoint", str(checkpoint), "--video", str(finished[0] / "00000.mp4"))
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["parity"]["holds"] is True
    assert report["frames"] == 16
    assert "ap" not in report
    manifest = json.loads((tmp_path / "run" / "engine" / "manifest.json").read_text())
    assert manifest["preset"] == "mssts_r50"
    entries = json.loads((tmp_path / "run" / "results.json").read_text())
    assert entries and {len(entry["segmentations"]) for entry in entries} == {16}
    assert (tmp_path / "run" / "00000.mp4").is_file()
    found = re.search(r"^found +(.*) \(tracks", done.stdout, re.M)
    assert found is not None
    assert {name.split(maxsplit=1)[1] for name in found[1].split(", ")} <= {*YOUTUBE_VIS_2019, "unused_0", "unused_41"}
    assert "ten drawn shapes" not in done.stdout


def test_ctrl_c_leaves_no_server(finished, tmp_path):
    out, _ = finished
    marker = str(tmp_path / "stopped")
    # The export is there already, so the server starts at once.
    (tmp_path / "stopped").mkdir()
    (tmp_path / "stopped" / "engine").symlink_to(out / "engine")
    before = set(processes("triton_python_backend_stub") + processes("tritonserver"))  # of others
    command = [sys.executable, "-m", "mssts.cli", "demo", "--out", marker]
    # What a shell starts in the background ignores the interrupt, and so would what it starts.
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if "is ready at" in line:
                break
        children = set(processes("triton_python_backend_stub") + processes("tritonserver")) - before
        assert children
        time.sleep(1.0)
        process.send_signal(signal.SIGINT)
        process.wait(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert not (tmp_path / "stopped" / "results.json").exists()
    deadline = time.monotonic() + 10
    while alive := [pid for pid in children if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < deadline, alive
        time.sleep(0.1)
