"""Minutes of load on the real server (`make test-soak`, on a quiet machine).

Each test prints its figures and adds them to `runs/soak.json`. One alone: `pytest -m soak -s -k flood`.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from serving.fuzz import memory_mb
from support.figures import record
from support.serving import Served, assert_same, needs_server

import mssts
from mssts.commands.demo import CHECKPOINT
from mssts.prediction.predictor import PredictOptions, predict
from mssts.segmenters.local import LocalSegmenter
from mssts.segmenters.triton import ClientOptions
from mssts.serving import USUAL
from mssts.serving.repository import model_repository
from mssts.serving.server import TritonServer

pytestmark = [pytest.mark.soak]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped checkpoint, exported."""
    from mssts.export.exporter import export_checkpoint

    folder = tmp_path_factory.mktemp("tiny") / "engine"
    export_checkpoint(CHECKPOINT, folder)
    return folder


@pytest.fixture(scope="module")
def r50(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The baseline of the paper's first table, with random weights, exported."""
    from mssts.bench.fps.engines import saved_random_checkpoint
    from mssts.export.exporter import export_checkpoint
    from mssts.model.config import preset

    folder = tmp_path_factory.mktemp("r50")
    export_checkpoint(saved_random_checkpoint(preset("mssts_r50"), folder), folder / "engine")
    return folder / "engine"


@pytest.fixture
def server(tiny: Path) -> Iterator[TritonServer]:
    with model_repository(tiny, warm=USUAL) as repository, TritonServer(repository) as running:
        yield running


def moving(frames: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Frames [T, H, W, 3] of coarse noise, which moves."""
    noise = np.random.default_rng(seed).integers(0, 256, (height // 8 + 1, width // 8 + frames, 3), np.uint8)
    tiles = [noise[:, t : t + width // 8 + 1].repeat(8, 0).repeat(8, 1)[:height, :width] for t in range(frames)]
    return np.stack(tiles)


def is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as page:
            return page.status == 200
    except OSError:
        return False


@needs_server
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_dead_model_under_load(serve: Callable[..., Served], tiny: Path, number: signal.Signals) -> None:
    """Not ready within 2 s, served again within 15 s, nothing lost."""
    served = serve(tiny)
    clips = [moving(5, 96, 128, seed) for seed in range(4)]
    answers: list[tuple[int, mssts.Instances, float]] = []
    over = threading.Event()

    def client(index: int) -> None:
        with mssts.load(served.grpc) as segmenter:
            while not over.is_set():
                answers.append((index, segmenter.segment(clips[index]), time.monotonic()))

    threads = [threading.Thread(target=client, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(10)
    died = time.monotonic()
    os.kill(served.stub("engine"), number)
    while is_ready(f"{served.http}/v2/health/ready") or is_ready(served.health):
        time.sleep(0.02)
    noticed = time.monotonic() - died
    while not is_ready(served.health):
        time.sleep(0.02)
    ready = time.monotonic() - died
    time.sleep(10)
    over.set()
    for thread in threads:
        thread.join()
    again = min(at for _, _, at in answers if at > died + noticed) - died
    _, said = served.end()
    with LocalSegmenter(tiny, threads=1) as local:
        expected = [local.segment(clip) for clip in clips]
    for index, found, _ in answers:
        assert found.labels.tolist() == expected[index].labels.tolist()
        np.testing.assert_allclose(found.scores, expected[index].scores, atol=1e-3)
    figures = {"noticed_s": noticed, "ready_s": ready, "served_again_s": again, "answers": len(answers)}
    record(f"a model that is {'killed' if number == signal.SIGKILL else 'stopped'} under load", figures)
    assert noticed <= 2 and again <= 15, said


class TracedServer(TritonServer):
    """A server that writes the moments of each request to a file when it ends."""

    def __init__(self, model_repository: Path, trace: Path) -> None:
        super().__init__(model_repository)
        self._trace = trace

    def _flags(self, ports: dict[str, int]) -> list[str]:
        trace = ("rate=1", "level=TIMESTAMPS", f"triton,file={self._trace}")
        return [*super()._flags(ports), *(f"--trace-config={setting}" for setting in trace)]


def seconds_of_clips(trace: Path) -> list[float]:
    """Seconds from the last byte of each clip to its answer, in order of arrival."""
    moments: dict[int, dict[str, int]] = {}
    for entry in json.loads(trace.read_text()):
        for stamp in entry.get("timestamps", []):
            moments.setdefault(entry["id"], {})[stamp["name"]] = stamp["ns"]
    clips = [stamps for stamps in moments.values() if "GRPC_WAITREAD_END" in stamps]  # not the ensemble's own requests
    clips.sort(key=lambda stamps: stamps["GRPC_WAITREAD_END"])
    return [(stamps["GRPC_SEND_END"] - stamps["GRPC_WAITREAD_END"]) / 1e9 for stamps in clips]


@needs_server
def test_a_flood_of_large_clips(tiny: Path, tmp_path: Path) -> None:
    """60 clips of 44 MB: memory is bounded, each is answered or refused in 2 s."""
    trace = tmp_path / "trace.json"
    with model_repository(tiny, warm=USUAL) as repository, TracedServer(repository, trace) as server:
        counts, figures = flood(server)
    seconds = seconds_of_clips(trace)[-60:]  # the first ones were sent before
    figures |= {"outcomes": counts, "s_of_a_clip_mean": statistics.mean(seconds), "s_of_a_clip_max": max(seconds)}
    record("a flood of 60 clips of 44 MB", figures)
    assert set(counts) <= {"answered", "FULL"} and sum(counts.values()) == 60 == len(seconds)
    assert max(seconds) <= 2
    assert figures["peak_rss_mb"] <= 900 and figures["rss_2s_later_mb"] <= 550
    assert figures["peak_pss_of_all_mb"] <= 1150 and figures["pss_of_all_2s_later_mb"] <= 900


def flood(server: TritonServer) -> tuple[dict[str, int], dict[str, Any]]:
    """Sends 60 clips at once, and returns how they ended and the server's memory."""
    import tritonclient.grpc as triton

    from mssts.segmenters.triton.failures import failure_of

    clip_THWC = moving(16, 720, 1280)
    frames = triton.InferInput("frames_raw", clip_THWC.shape, "UINT8").set_data_from_numpy(clip_THWC)
    outcomes: list[str] = []
    memory: list[tuple[float, float]] = []
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            text = Path(f"/proc/{server.pid}/status").read_text(encoding="ascii")
            rss = next(int(line.split()[1]) / 1024 for line in text.splitlines() if line.startswith("VmRSS:"))
            memory.append((rss, memory_mb(server)))
            over.wait(0.1)

    def answered(result: Any, error: Any) -> None:
        outcomes.append("answered" if error is None else failure_of(error).kind.name)

    with triton.InferenceServerClient(server.grpc_url.removeprefix("grpc://")) as client:
        for _ in range(2):
            client.infer("mssts_vis", [frames])
        watcher = threading.Thread(target=look)
        watcher.start()
        start = time.monotonic()
        for _ in range(60):
            client.async_infer("mssts_vis", [frames], answered)
        while len(outcomes) < 60:
            assert time.monotonic() - start < 300
            time.sleep(0.05)
        seconds = time.monotonic() - start
        peak = [max(column) for column in zip(*memory, strict=True)]
        time.sleep(2)
        memory.clear()
        time.sleep(0.3)
        over.set()
        watcher.join()
        after = [max(column) for column in zip(*memory, strict=True)]
    return {outcome: outcomes.count(outcome) for outcome in sorted(set(outcomes))}, {
        "seconds": seconds, "peak_rss_mb": peak[0], "rss_2s_later_mb": after[0], "peak_pss_of_all_mb": peak[1],
        "pss_of_all_2s_later_mb": after[1],
    }  # fmt: skip


@needs_server
def test_ten_minutes_at_saturation(server: TritonServer) -> None:
    """Saturation at concurrency 4: no error, no growth, p99 ≤ 1.3 × p50."""
    import tritonclient.grpc as triton

    from mssts.segmenters.triton.failures import Kind, failure_of
    from mssts.segmenters.triton.messages import request_inputs

    minutes = int(os.environ.get("MSSTS_SOAK_MINUTES", "10"))
    inputs = request_inputs(moving(5, 96, 128), 0.0, ClientOptions())
    start = time.monotonic()
    seen: list[tuple[float, float]] = []
    errors: list[str] = []
    refused = [0]

    def client() -> None:
        with triton.InferenceServerClient(server.grpc_url.removeprefix("grpc://")) as plain:
            while time.monotonic() - start < 60 * minutes:
                sent = time.monotonic()
                try:
                    plain.infer("mssts_vis", inputs)
                except triton.InferenceServerException as error:
                    failure = failure_of(error)
                    if failure.kind is Kind.FULL:
                        refused[0] += 1
                        time.sleep(0.05)
                    else:
                        errors.append(failure.message)
                else:
                    seen.append((sent - start, time.monotonic() - sent))

    threads = [threading.Thread(target=client) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(min(60, 30 * minutes))
    memory_before = memory_mb(server)
    for thread in threads:
        thread.join()
    memory_after = memory_mb(server)
    settled = [1e3 * seconds for at, seconds in seen if at >= min(60, 30 * minutes)]
    cuts = statistics.quantiles(settled, n=100, method="inclusive")
    figures = {
        "minutes": minutes, "clips": len(seen), "refused": refused[0], "errors": len(errors), "ms_p50": cuts[49],
        "ms_p99": cuts[98], "ms_max": max(settled), "pss_mb": [memory_before, memory_after],
    }  # fmt: skip
    record("saturation", figures)
    assert errors == []
    assert memory_after <= 1.05 * memory_before
    assert cuts[98] <= 1.3 * cuts[49]


@needs_server
@pytest.mark.parametrize(
    ("name", "shape", "bound"), [("tiny", (6, 144, 256), 0.10), ("r50", (5, 360, 640), 0.05)], ids=["tiny", "r50"]
)
def test_what_the_ensemble_costs(
    name: str, shape: tuple[int, int, int], bound: float, request: pytest.FixtureRequest
) -> None:
    """A clip through the server beside the same engine in this process, turn by turn.

    Clips are those that the models are for, of the demo and of the paper.
    """
    engine: Path = request.getfixturevalue(name)
    clip = moving(*shape)
    seconds: dict[str, list[float]] = {"local": [], "served": []}
    with (
        model_repository(engine) as repository,
        TritonServer(repository) as server,
        mssts.load(server.grpc_url) as served,
        LocalSegmenter(engine) as local,
    ):
        assert_same(served.segment(clip), local.segment(clip))
        for _ in range(40 if name == "tiny" else 12):
            for key, segmenter in (("local", local), ("served", served)):
                start = time.perf_counter()
                segmenter.segment(clip)
                seconds[key].append(time.perf_counter() - start)
    medians = {key: 1e3 * statistics.median(values) for key, values in seconds.items()}
    overhead = medians["served"] / medians["local"] - 1
    record(f"the ensemble's cost, {name}", {**{f"{k}_ms": v for k, v in medians.items()}, "overhead": overhead})
    assert overhead <= bound


@needs_server
def test_the_rate_of_a_720p_file(server: TritonServer, tiny: Path, tmp_path: Path) -> None:
    """`mssts predict` through the server at 90 % of this process' rate or more."""
    path = tmp_path / "file.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 1280, 720, "yuv420p", 8_000_000
        for frame in moving(101, 720, 1280):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    rates: dict[str, list[float]] = {"local": [], "served": []}
    with LocalSegmenter(tiny) as local, mssts.load(server.grpc_url) as served:
        for _ in range(4):
            for key, segmenter in (("local", local), ("served", served)):
                report = predict(path, segmenter, tmp_path / key, PredictOptions(pictures=0), progress=False)
                rates[key].append(report.frames_per_second)
    best = {key: max(values[1:]) for key, values in rates.items()}  # the first of a size takes longer
    record("720p", {f"{key}_frames_per_second": rate for key, rate in best.items()})
    assert (tmp_path / "served" / "results.json").read_bytes() == (tmp_path / "local" / "results.json").read_bytes()
    assert best["served"] >= 0.9 * best["local"]
