"""Latency of a stream from a camera: from its picture to that picture's JSON line."""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from tqdm import tqdm

from mssts.bench.stream.camera import Camera
from mssts.bench.stream.runs import lines_in
from mssts.bench.stream.scene import RATE, number_of, numbered
from mssts.contract import Limits
from mssts.errors import MsstsError
from mssts.manifest import Manifest
from mssts.segmenters.base import Instances, Segmenter
from mssts.streaming.options import StreamOptions
from mssts.streaming.results import FrameResult
from mssts.streaming.running import run_stream
from mssts.streaming.sinks import Sink
from mssts.streaming.sources import open_stream_source
from mssts.streaming.stream import Stream

_SETTLING = 30  # frames at the start that do not count


def measure_latency(segmenter: Segmenter, python: str, pictures_NHWC: np.ndarray, seconds: float) -> dict[str, Any]:
    """A row of figures: the latency, beside what is promised.

    Raises:
        MsstsError: the camera broke off, or nothing came in that time.
    """
    timed = _TimedSegmenter(segmenter)
    options = StreamOptions(images=True, reconnect=5)
    with (
        tempfile.TemporaryDirectory(prefix="mssts-bench-") as folder,
        Camera(python, numbered(pictures_NHWC), RATE) as camera,
    ):
        ages = _Ages(camera)
        stream = Stream(open_stream_source(camera.url, options), timed, options, tqdm.write)
        ending = threading.Timer(seconds, stream.stop)
        ending.start()
        try:
            run_stream(stream, [lines_in(folder), ages], tqdm.write)
        finally:
            ending.cancel()
    if not ages.seconds:
        raise MsstsError(f"--seconds {seconds:g}: no frame came from the camera in that time; give it more")
    samples_ms = [1e3 * age for age in ages.seconds[min(_SETTLING, len(ages.seconds) // 2) :]]
    clips_ms = [1e3 * clip for clip in timed.seconds]
    T = segmenter.manifest.clip_frames
    N = T - segmenter.manifest.clip_overlap
    clip_ms = statistics.median(clips_ms)
    figures = stream.figures()
    numbers = ages.numbers
    return {
        "name": "camera", "ms_median": statistics.median(samples_ms), "ms_p5": float(np.percentile(samples_ms, 5)),
        "ms_p95": float(np.percentile(samples_ms, 95)), "ms_max": max(samples_ms), "clip_ms": clip_ms,
        # Over the frames of a window, the mean is about N frames and half a clip.
        "median_goal_ms": 1e3 * N / RATE + clip_ms / 2,
        "promised_ms": 1e3 * max(N, -(-(T + N) // 2) - 1) / RATE + clip_ms,
        "window": T, "stride": N, "frames": figures.frames, "dropped": figures.dropped,
        "gaps": sum((b[1] - a[1]) % len(pictures_NHWC) != b[0] - a[0] for a, b in pairwise(numbers)),
        "samples_ms": samples_ms, "samples_clip_ms": clips_ms,
    }  # fmt: skip


class _Ages(Sink):
    """The age of each frame's picture when its line is written.

    It stands behind the file of lines.
    """

    needs_images = True

    def __init__(self, camera: Camera) -> None:
        self._camera = camera
        self.seconds: list[float] = []
        self.numbers: list[tuple[int, int]] = []

    def write(self, result: FrameResult) -> None:
        """Takes it."""
        assert result.image is not None
        number = number_of(result.image)
        self.seconds.append(self._camera.age(number))
        self.numbers.append((result.frame, number))


class _TimedSegmenter(Segmenter):
    """Another segmenter, with the seconds that each clip takes."""

    def __init__(self, segmenter: Segmenter) -> None:
        self._segmenter = segmenter
        self.seconds: list[float] = []

    @property
    def manifest(self) -> Manifest:
        """That of the other."""
        return self._segmenter.manifest

    @property
    def limits(self) -> Limits:
        """That of the other."""
        return self._segmenter.limits

    @property
    def in_flight(self) -> int:
        """That of the other."""
        return self._segmenter.in_flight

    def segment(self, frames_THWC: np.ndarray | Sequence[bytes], score_threshold: float = 0.0) -> Instances:
        """As the other, timed."""
        begun = time.perf_counter()
        found = self._segmenter.segment(frames_THWC, score_threshold)
        self.seconds.append(time.perf_counter() - begun)
        return found
