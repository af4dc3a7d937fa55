"""A real RTSP server: latency, cameras that die or freeze, and passwords."""

from __future__ import annotations

import itertools
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import numpy as np
import pytest
from support.streams import PATIENCE, Collected, ColourSegmenter
from support.tools import needs_tool, tool

from mssts.bench.stream.camera import Camera
from mssts.errors import MsstsError
from mssts.streaming.options import StreamOptions
from mssts.streaming.results import FrameResult
from mssts.streaming.sources import open_stream_source
from mssts.streaming.stream import Stream

RATE, PERIOD, STEP = 12, 24, 4
HEIGHT, WIDTH = 96, 160
CLIP_FRAMES, STRIDE, CLIP_SECONDS = 5, 4, 0.25

pytestmark = needs_tool("gst-rtsp-server")


def pictures() -> np.ndarray:
    """A red square that is always there, and a blue bar by the picture's number."""
    pictures_NHWC = np.full((PERIOD, HEIGHT, WIDTH, 3), 0x3C, np.uint8)
    pictures_NHWC[:, 16:48, 64:96] = (255, 0, 0)
    for number, picture_HWC in enumerate(pictures_NHWC):
        picture_HWC[64:80, : STEP * (1 + number)] = (0, 0, 255)
    return pictures_NHWC


def age(camera: Camera, result: FrameResult) -> float:
    """Seconds since the camera took the picture, from what is in it."""
    (bar,) = [item for item in result.instances if item.name == "blue"]
    return camera.age(round(bar.bbox[2] / STEP) - 1)


@pytest.fixture
def serve() -> Iterator[Callable[..., Camera]]:
    with ExitStack() as started:
        yield lambda *account: started.enter_context(Camera(tool("gst-rtsp-server"), pictures(), RATE, account))


def take(results: Collected, count: int, server: Camera) -> list[tuple[FrameResult, float]]:
    """Results with the ages that their pictures had when they came."""
    found = []
    for _ in range(count):
        (result,) = results.next_results(1)
        found.append((result, age(server, result)))
    return found


def tracks(found: list[tuple[FrameResult, float]], name: str) -> set[int]:
    return {item.track for result, _ in found for item in result.instances if item.name == name}


def test_a_camera_is_followed_in_time_and_over_its_death(serve: Callable[..., Camera]) -> None:
    server = serve()
    options = StreamOptions(stride=STRIDE, timeout=3, reconnect=30)
    source = open_stream_source(server.url, options)
    assert source.is_live
    said: list[str] = []
    with Stream(source, ColourSegmenter(CLIP_FRAMES, seconds=CLIP_SECONDS), options, said.append) as stream:
        results = Collected(stream)
        take(results, 6, server)  # the first window waits until it is full
        before = take(results, 36, server)
        promised = max(STRIDE, -(-(CLIP_FRAMES + STRIDE) // 2) - 1) / RATE + CLIP_SECONDS
        assert statistics.median(age for _, age in before) <= promised + CLIP_SECONDS / 2
        steps = [b.time - a.time for (a, _), (b, _) in itertools.pairwise(before)]
        assert statistics.median(steps) == pytest.approx(1 / RATE, abs=2e-3)

        server.kill()
        time.sleep(1)
        server.start()
        while not any("back after" in line for line in said):
            (last,) = results.next_results(1)
        after = take(results, 12, server)
    assert tracks(after, "red") == tracks(before, "red") and len(tracks(before, "red")) == 1
    assert said[0].split(": ")[1] == "lost"
    assert stream.figures().reconnections == 1
    numbers = [result.frame for result, _ in after]
    assert numbers == list(range(last.frame + 1, last.frame + 13))
    assert 1 < after[-1][0].time - before[-1][0].time < PATIENCE  # times go on by the clock, over the gap


def test_a_camera_that_freezes_is_left_and_found_again(serve: Callable[..., Camera]) -> None:
    server = serve()
    options = StreamOptions(timeout=1, reconnect=30)
    said: list[str] = []
    with Stream(open_stream_source(server.url, options), ColourSegmenter(), options, said.append) as stream:
        results = Collected(stream)
        results.next(8)
        server.process.send_signal(signal.SIGSTOP)
        deadline = time.monotonic() + PATIENCE
        while not said and time.monotonic() < deadline:
            time.sleep(0.05)
        server.process.send_signal(signal.SIGCONT)
        while not any("back after" in line for line in said):
            results.next(1)
    assert "nothing came for 1 s" in said[0]


def test_a_camera_that_stays_away_ends_the_stream(serve: Callable[..., Camera]) -> None:
    server = serve()
    options = StreamOptions(timeout=1, reconnect=0.5)
    with Stream(open_stream_source(server.url, options), ColourSegmenter(), options, lambda line: None) as stream:
        results = Collected(stream)
        results.next(5)
        server.kill()
        with pytest.raises(MsstsError, match=r"not back after 0\.5 s: nothing listens"):
            results.rest()


def test_a_wrong_password_is_one_line_without_it(serve: Callable[..., Camera]) -> None:
    server = serve("admin", "right")
    address = server.url.removeprefix("rtsp://")
    with pytest.raises(MsstsError, match="refuses the user or the password") as error:
        open_stream_source(f"rtsp://admin:wr0ng@{address}", StreamOptions(timeout=3))
    assert "wr0ng" not in str(error.value) and "admin" not in str(error.value)
    options = StreamOptions(timeout=3)
    with Stream(open_stream_source(f"rtsp://admin:right@{address}", options), ColourSegmenter(), options) as stream:
        assert next(stream).frame == 0
