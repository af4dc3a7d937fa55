"""Each fault of bulk prediction, with real Ray processes and `kill -9`."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.bulk import (
    command,
    descendants,
    finish,
    killing_workers,
    parts,
    started,
    wait_for,
    write_video,
    write_videos,
)

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.soak

VIDEOS, LENGTH = 12, 400


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos that take long enough for something to happen meanwhile."""
    return write_videos(tmp_path_factory.mktemp("videos"), VIDEOS, LENGTH)


@pytest.fixture(scope="module")
def expected(folder: Path, by_one_process: Callable[[Path], bytes]) -> bytes:
    return by_one_process(folder)


def report_in(out: Path) -> dict[str, Any]:
    return json.loads((out / "report.json").read_text())


@pytest.fixture
def two_machines() -> Iterator[Any]:
    """A cluster of two nodes of one core each, and the function that adds one."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    yield cluster
    cluster.shutdown()


def test_a_killed_worker(engine: Path, folder: Path, expected: bytes, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with started(folder, "--model", engine, "--out", out, "--ray", "local", "--workers", 2) as driver:
        wait_for(lambda: parts(out), what="a first video")
        with killing_workers(driver.pid, lambda pid: True, limit=1) as killed:
            wait_for(lambda: killed, what="a worker")
        code, _, errors = finish(driver)
    assert code == 0, errors
    assert (out / "results.json").read_bytes() == expected
    report = report_in(out)
    assert report["retries"] == 1 and report["failed"] == []
    assert [worker["pid"] for worker in report["workers"] if worker["lost"]] == killed


def test_a_lost_machine(engine: Path, folder: Path, expected: bytes, tmp_path: Path, two_machines: Any) -> None:
    """All processes of one node are killed with `kill -9`, as when its power goes."""
    other = two_machines.add_node(num_cpus=1)
    out = tmp_path / "out"
    with started(folder, "--model", engine, "--out", out, "--ray", two_machines.address) as driver:
        wait_for(lambda: len(parts(out)) >= 3, what="the third video")
        (raylet,) = other.all_processes["raylet"]
        for pid in (raylet.process.pid, *descendants(raylet.process.pid)):
            os.kill(pid, signal.SIGKILL)
        code, _, errors = finish(driver)
    assert code == 0, errors
    assert (out / "results.json").read_bytes() == expected
    report = report_in(out)
    lost = {worker["node"] for worker in report["workers"] if worker["lost"]}
    assert len(lost) == 1 and len({worker["node"] for worker in report["workers"]}) == 2, report["workers"]
    assert report["retries"] >= 1


def test_a_driver_that_dies_and_is_started_again(engine: Path, folder: Path, expected: bytes, tmp_path: Path) -> None:
    """It goes on with another number of workers, and leaves no process behind."""
    out = tmp_path / "out"
    arguments = (folder, "--model", engine, "--out", out, "--ray", "local")
    with started(*arguments, "--workers", 2) as driver:
        wait_for(lambda: len(parts(out)) >= 3, what="the third video")
        left = descendants(driver.pid)
        assert any("raylet" in line for line in left.values())
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait(10)
    done = len(parts(out))
    # Ray's agents notice last, within half a minute on a quiet machine.
    wait_for(lambda: not any(running(pid, line) for pid, line in left.items()), 180, "the end of Ray's processes")
    assert not (out / "results.json").exists()
    with started(*arguments, "--workers", 1, "--resume") as driver:
        code, _, errors = finish(driver)
    assert code == 0, errors
    assert (out / "results.json").read_bytes() == expected
    made = sum(worker["videos"] for worker in report_in(out)["workers"])
    assert made <= VIDEOS - done + 2 and made < VIDEOS


def running(pid: int, line: str) -> bool:
    """Whether a process still runs, and not another with its number."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state != "Z" and bool(line) and line.split()[0] in Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return False


def test_an_endless_video(engine: Path, by_one_process: Callable[[Path], bytes], tmp_path: Path) -> None:
    """A video of ten minutes of work is given up after ten seconds."""
    good = by_one_process(write_videos(tmp_path / "good", 4))
    folder, out = write_videos(tmp_path / "videos", 4), tmp_path / "out"
    write_video(folder / "z_endless.mp4", 60_000)
    began = time.monotonic()
    arguments = ("--model", engine, "--out", out, "--ray", "local", "--workers", 1, "--video-timeout", 10)
    with started(folder, *arguments) as driver:
        code, _, errors = finish(driver)
    assert code == 1 and "z_endless: not done within 10 seconds" in errors
    assert time.monotonic() - began < 90
    assert (out / "results.json").read_bytes() == good
    (failed,) = report_in(out)["failed"]
    assert failed["attempts"] == 1, "not tried again"


def test_a_full_disk(engine: Path, folder: Path, expected: bytes, tmp_path: Path) -> None:
    """One line says so, and with more room the run goes on."""
    disk, results = tmp_path / "disk", tmp_path / "results.json"
    disk.mkdir()
    arguments = shlex.join(command(folder, "--model", engine, "--out", disk / "out", "--ray", "local", "--workers", 1))
    quoted = shlex.quote(str(disk))
    script = (
        f"mount -t tmpfs -o size=192k none {quoted} || exit 99\n"
        f"{arguments}; echo first=$? parts=$(ls {quoted}/out/parts/*/*.jsonl | wc -l) whole=$(ls {quoted}/out)\n"
        f"mount -o remount,size=64m {quoted}\n"
        f"{arguments} --resume; echo second=$?; cp {quoted}/out/results.json {shlex.quote(str(results))}\n"
    )
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, timeout=300, check=False
    )
    if done.returncode == 99 or "unshare" in done.stderr:
        pytest.skip(f"no small file system can be mounted here: {done.stderr.strip()}")
    assert "first=2 " in done.stdout and "whole=parts\n" in done.stdout, done
    assert 0 < int(done.stdout.split("parts=")[1].split()[0]) < VIDEOS
    errors = [line for line in done.stderr.splitlines() if "error: " in line]
    assert len(errors) == 1 and "the disk is full" in errors[0] and "--resume" in errors[0]
    assert "second=0" in done.stdout and "Traceback" not in done.stderr, done
    assert results.read_bytes() == expected


def test_an_engine_that_cannot_load_on_one_machine(
    engine: Path, folder: Path, expected: bytes, tmp_path: Path, two_machines: Any
) -> None:
    """On one node ONNX Runtime is broken, which is found by loading the engine there."""
    broken = tmp_path / "broken" / "onnxruntime"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('libonnxruntime.so.1: cannot open shared object file')\n")
    path = os.pathsep.join([str(broken.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    two_machines.add_node(num_cpus=1, env_vars={"PYTHONPATH": path})
    out = tmp_path / "out"
    arguments = (folder, "--model", engine, "--out", out, "--ray", two_machines.address, "--runner", "onnxruntime")
    with started(*arguments) as driver:
        code, _, errors = finish(driver)
    assert code == 0, errors
    assert "warning: no worker on " in errors
    report = report_in(out)
    assert len(report["left_out"]) == 1 and "onnxruntime" in report["left_out"][0]["reason"].lower()
    assert {bool(worker["lost"]): worker["videos"] for worker in report["workers"]} == {True: 0, False: VIDEOS}


def test_no_cluster_and_no_engine(engine: Path, folder: Path, tmp_path: Path) -> None:
    """Both are one line and exit code 2, soon."""
    for arguments, words in (
        (["--ray", "127.0.0.1:1", "--model", engine], "no cluster answers there"),
        (["--ray", "local", "--model", tmp_path], "a folder without manifest.json"),
    ):
        with started(folder, "--out", tmp_path / "out", *arguments) as driver:
            code, _, errors = finish(driver, 60)
        assert code == 2 and words in errors and len(errors.splitlines()) == 1, errors


def test_what_an_answer_of_a_thousand_costs() -> None:
    """`ray.wait` over a thousand answers to come, as the driver does for each video."""
    from mssts.bulk.options import BulkOptions
    from mssts.bulk.ray_cluster import RayCluster, connected
    from mssts.bulk.worker import Job
    from mssts.prediction.predictor import PredictOptions

    job = Job("", "", "auto", 1, False, PredictOptions(), "", (), "", {})
    with connected("local", BulkOptions(), job) as cluster:
        assert isinstance(cluster, RayCluster)

        @ray.remote(num_cpus=0, max_concurrency=1000)
        class Sleepers:
            async def sleep(self, seconds: float) -> float:
                import asyncio

                await asyncio.sleep(seconds)
                return seconds

        sleepers = Sleepers.remote()
        waiting = [sleepers.sleep.remote(3600.0) for _ in range(999)]
        ray.get(sleepers.sleep.remote(0))
        begun, cpu, answers = time.perf_counter(), time.process_time(), 0
        while answers < 300:
            waiting.append(sleepers.sleep.remote(0.0))
            for reference in cluster.wait(waiting, 5.0):
                cluster.result(reference)
                waiting.remove(reference)
                answers += 1
        each = (time.perf_counter() - begun) / answers
        print(
            f"\n{each * 1e3:.1f} ms an answer of a thousand, {(time.process_time() - cpu) / answers * 1e3:.1f} ms CPU"
        )
    assert each < 0.1
