"""Bounded queues: refusals of a full server, their clients, their metrics."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.serving import assert_same, clip_with_rectangles, metrics, needs_server, slow_down

from mssts import contract
from mssts.cli import main
from mssts.errors import MsstsError
from mssts.segmenters.local import LocalSegmenter
from mssts.segmenters.triton import ClientOptions, TritonSegmenter
from mssts.serving.admission import QueueLimits
from mssts.serving.repository import model_repository
from mssts.serving.server import TritonServer

ENGINE_SECONDS = 0.3
# One clip is computed and two wait; the second of them would wait for two clips, which is longer than it may.
QUEUE = QueueLimits(clips=2, seconds=1.9 * ENGINE_SECONDS)


@pytest.fixture(scope="module")
def server(engine: Path) -> Iterator[TritonServer]:
    with model_repository(engine, threads=1, queue=QUEUE) as repository:
        slow_down(repository, ENGINE_SECONDS)
        with TritonServer(repository) as running:
            yield running


def outcomes(server: TritonServer, clips: int) -> list[tuple[str, float]]:
    """Outcomes and seconds of clips that are sent at once, without retries."""
    import tritonclient.grpc as triton

    clip_THWC = clip_with_rectangles()
    frames = triton.InferInput("frames_raw", clip_THWC.shape, "UINT8").set_data_from_numpy(clip_THWC)

    def send(plain: triton.InferenceServerClient) -> tuple[str, float]:
        start = time.monotonic()
        try:
            plain.infer(contract.ENSEMBLE, [frames])
        except triton.InferenceServerException as error:
            return f"{error.status()} {error.message()}", time.monotonic() - start
        return "answered", time.monotonic() - start

    with triton.InferenceServerClient(server.grpc_url.removeprefix("grpc://")) as plain:
        for _ in range(2):  # the connection, and the first of a size, which takes long: for such an engine fewer wait
            send(plain)
        with ThreadPoolExecutor(clips) as pool:
            return list(pool.map(send, [plain] * clips))


@needs_server
def test_a_full_server_refuses_at_once_and_counts_it(server: TritonServer) -> None:
    before = metrics(server)
    answered = outcomes(server, 12)
    full = [seconds for said, seconds in answered if "the server is full: 2 clips wait" in said]
    late = [seconds for said, seconds in answered if "for the engine, over the limit of 0.57 s" in said]
    done = [seconds for said, seconds in answered if said == "answered"]
    assert all(said.startswith("StatusCode.UNAVAILABLE") for said, _ in answered if said != "answered")
    # One is computed and two wait, of which the second for too long; one more may slip in between two steps.
    assert len(full) + len(late) + len(done) == 12 and len(done) == 2 and len(late) in (1, 2)
    assert max(full) < ENGINE_SECONDS  # long before the first is computed
    assert max(done) < QUEUE.seconds + ENGINE_SECONDS + 0.3  # it waited no longer than it may, and was computed
    time.sleep(0.3)  # Triton counts a request a moment after it has answered it
    counted = metrics(server)
    counted.subtract(before)
    # As docs/serving.md says. (`outcomes` sent two clips before.)
    assert counted["mssts_clips_refused_full"] == len(full)
    assert counted["mssts_clips_refused_late"] == len(late)
    assert counted["nv_inference_request_success{mssts_vis}"] == len(done) + 2
    assert counted["nv_inference_request_failure{mssts_vis,OTHER}"] == 2 * (len(full) + len(late))


@needs_server
def test_the_engine_never_idles_while_clips_wait(server: TritonServer) -> None:
    """The engine does not idle while clips wait.

    Triton's own `max_queue_size` fails this: its scheduler often idles for half a second."""
    for _ in range(4):
        done = sorted(seconds for said, seconds in outcomes(server, 2) if said == "answered")
        assert len(done) == 2 and done[1] - done[0] < ENGINE_SECONDS + 0.2


@needs_server
def test_a_client_tries_again_until_it_is_its_turn(server: TritonServer, local: LocalSegmenter) -> None:
    clips = [clip_with_rectangles(frames) for frames in (2, 3, 4, 5)] * 2
    with TritonSegmenter(server.grpc_url, ClientOptions(in_flight=8)) as client:
        for found, clip in zip(client.segment_many(clips), clips, strict=True):
            assert_same(found, local.segment(clip))


@needs_server
def test_a_client_whose_deadline_ends_is_told_that_the_server_is_full(server: TritonServer) -> None:
    with ThreadPoolExecutor(1) as others:
        flood = others.submit(outcomes, server, 10)
        time.sleep(0.5)  # the first clip is through
        with (
            TritonSegmenter(server.grpc_url, ClientOptions(timeout=0.2)) as client,
            pytest.raises(MsstsError, match=r"127\.0\.0\.1:\d+: (the server is full.*--max-queue|no answer after)"),
        ):
            client.segment(clip_with_rectangles())
        flood.result()


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--max-queue", "0", "the queue must hold at least 1 clip, not 0"),
        ("--max-queue-seconds", "-1", r"from 0 \(no limit\) to 86400 seconds, not -1"),
        ("--max-queue-seconds", "nan", r"from 0 \(no limit\) to 86400 seconds, not nan"),
    ],
)
def test_serve_refuses_queue_limits_that_mean_nothing(
    engine: Path, capsys: pytest.CaptureFixture[str], option: str, value: str, said: str
) -> None:
    assert main(["serve", "--model", str(engine), option, value]) == 2

    assert re.search(said, capsys.readouterr().err)
