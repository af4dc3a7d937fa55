"""Bulk prediction with real Ray processes: one short run with common faults."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.bulk import (
    LONG,
    descendants,
    finish,
    has_open,
    killing_workers,
    parts,
    started,
    wait_for,
    write_video,
    write_videos,
)

from mssts.cli import main

pytest.importorskip("ray")


def test_faults_cost_no_other_video_anything(
    engine: Path, by_one_process: Callable[[Path], bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A corrupt video, and one whose worker is killed with `kill -9` each time.

    Then both are mended, and the run goes on.
    """
    good = by_one_process(write_videos(tmp_path / "good", 5))
    folder, out = write_videos(tmp_path / "videos", 5), tmp_path / "out"
    corrupt, killer = folder / "y_corrupt.mp4", write_video(folder / "z_killer.mp4", LONG)
    corrupt.write_bytes(b"no video" * 100)
    arguments = (folder, "--model", engine, "--out", out, "--ray", "local", "--workers", 2)
    with started(*arguments) as driver, killing_workers(driver.pid, lambda pid: has_open(pid, killer)) as killed:
        code, printed, errors = finish(driver)
    assert code == 1, errors
    assert "videos 5   failed 2" in printed and "Traceback" not in errors
    assert (out / "results.json").read_bytes() == good
    report = json.loads((out / "report.json").read_text())
    failed = {entry["name"]: entry for entry in report["failed"]}
    assert str(corrupt) in failed["y_corrupt"]["reason"] and failed["y_corrupt"]["attempts"] == 1
    assert "its process died" in failed["z_killer"]["reason"] and failed["z_killer"]["attempts"] == 3
    assert all(name in errors for name in failed)
    assert len(killed) == 3 and report["retries"] == 2
    assert {worker["pid"] for worker in report["workers"] if worker["lost"]} == set(killed)
    assert len(parts(out)) == 5

    write_video(corrupt, 20)
    write_video(killer, 20)
    assert main([*map(str, ("predict", *arguments))]) == 2
    assert "go on with --resume" in capsys.readouterr().err, "nothing that is done is thrown away"
    with started(*arguments, "--resume", "--pictures", 7) as driver:
        code, printed, errors = finish(driver)
    assert code == 0, errors
    assert (out / "results.json").read_bytes() == by_one_process(folder)
    report = json.loads((out / "report.json").read_text())
    assert [video["name"] for video in report["videos"]] == [path.stem for path in sorted(folder.iterdir())]
    assert sum(worker["videos"] for worker in report["workers"]) == 2, "the others were done"
    pictures = {"y_corrupt.mp4", "y_corrupt.png", "z_killer.mp4", "z_killer.png"}
    assert {path.name for path in out.iterdir()} == {"results.json", "report.json", *pictures}
    assert main([*map(str, ("predict", *arguments, "--resume"))]) == 0, "all is done, so Ray is not even started"


def test_a_cluster_of_its_own_is_closed_to_others(
    engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Token authentication is on, dashboard and reports on the use of Ray are off."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_USAGE_STATS_ENABLED"):
        monkeypatch.delenv(name, raising=False)
    video = write_video(tmp_path / "video.mp4", 20 * LONG)
    with started(video, "--model", engine, "--out", tmp_path / "out", "--ray", "local", "--workers", 1) as driver:
        wait_for(lambda: any(has_open(pid, video) for pid in descendants(driver.pid)), what="the video's worker")
        ((pid, raylet),) = [entry for entry in descendants(driver.pid).items() if "/raylet " in entry[1]]
        found = re.search(r"gcs[-_]address=(\S+)", raylet)
        assert found is not None, raylet
        assert b"RAY_USAGE_STATS_ENABLED=0" in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        assert "machines" in ask(found[1], {"RAY_AUTH_MODE": "token"}), "who has the token gets an answer"
        assert "Unauthenticated" in ask(found[1], {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a-guess"})
        with pytest.raises(OSError, match="refused"):  # the dashboard's port
            socket.create_connection((found[1].rpartition(":")[0], 8265), 5)


def ask(address: str, environment: dict[str, str]) -> str:
    """What a process prints that asks a cluster for its machines."""
    program = (
        "from ray._raylet import GcsClient\n"
        f"print(len(GcsClient(address={address!r}).get_all_node_info(timeout=30)), 'machines')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.stdout + done.stderr
