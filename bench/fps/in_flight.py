"""Throughput and latency where several clips are in flight.

A new clip is taken as soon as one is done. Only the clips that are done between the first and the last few count, as
the engine or the stages around it are not full before and after.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from mssts.bench.fps.times import summary
from mssts.runners.base import Runner
from mssts.segmenters.base import Segmenter


@dataclass(frozen=True)
class Flow:
    """Clips that went through with others in flight.

    Attributes:
        in_flight: clips that were inside at once.
        latencies: seconds of each clip from its start to its end.
        seconds: between the end of the clip before the first of them and the end of the last.
    """

    in_flight: int
    latencies: tuple[float, ...]
    seconds: float

    def row(self, frames: int) -> dict[str, Any]:
        """The figures of a row.

        Times are those of each clip, the rate that of all.

        Args:
            frames: of a clip.
        """
        rate = frames * len(self.latencies) / self.seconds
        return {"in_flight": self.in_flight, **summary(list(self.latencies), frames), "frames_per_second": rate}


def engine_flow(runner: Runner, frames_BTHWC: np.ndarray, sizes_B2: np.ndarray, repeats: int) -> Flow:
    """An engine called by as many threads as it works for at once.

    Args:
        runner: whose `in_flight` is above 1.
        frames_BTHWC: of one call.
        sizes_B2: their valid sizes.
        repeats: clips of each thread that count.
    """
    lanes = runner.in_flight
    left = iter(range((repeats + 2) * lanes))  # each thread's first and last clip do not count
    spans: list[tuple[float, float]] = []

    def call_repeatedly() -> None:
        while next(left, None) is not None:
            start = time.perf_counter()
            runner.infer(frames_BTHWC, sizes_B2)
            spans.append((start, time.perf_counter()))

    with ThreadPoolExecutor(lanes, "mssts-bench") as threads:
        calls = [threads.submit(call_repeatedly) for _ in range(lanes)]
        for call in calls:
            call.result()
    return counted(spans, lanes, repeats * lanes)


def segmenter_flow(segmenter: Segmenter, jpegs: Sequence[bytes], repeats: int) -> Flow:
    """A segmenter's `segment_many`, which says itself how many clips it takes.

    Args:
        segmenter: it has answered one clip before.
        jpegs: the frames of a clip.
        repeats: clips that count.
    """
    starts: list[float] = []
    spans: list[tuple[float, float]] = []
    enough = threading.Event()

    def clips() -> Iterator[Sequence[bytes]]:
        while not enough.is_set():
            starts.append(time.perf_counter())
            yield jpegs

    in_flight = 1
    for index, _ in enumerate(segmenter.segment_many(clips())):
        spans.append((starts[index], time.perf_counter()))
        in_flight = len(starts) if index == 0 else in_flight
        if len(spans) == in_flight + repeats:
            enough.set()
    return counted(spans, in_flight, repeats)


def counted(spans: Sequence[tuple[float, float]], in_flight: int, clips: int) -> Flow:
    """The clips that are done after the first `in_flight`.

    Args:
        spans: start and end of each clip.
        in_flight: clips inside at once.
        clips: how many count.
    """
    done = sorted(spans, key=lambda span: span[1])[: in_flight + clips]
    latencies = tuple(end - start for start, end in done[in_flight:])
    return Flow(in_flight, latencies, done[-1][1] - done[in_flight - 1][1])
