"""One run each of what `mssts bench stream` compares."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from tqdm import tqdm

from mssts.bench.stream.viewers import Viewers
from mssts.media.sources import open_source
from mssts.prediction.predictor import PredictOptions, predict
from mssts.segmenters.base import Segmenter
from mssts.streaming.jsonl import JsonlFile
from mssts.streaming.options import StreamOptions
from mssts.streaming.page import Page
from mssts.streaming.page_address import PageAddress
from mssts.streaming.results import FrameResult
from mssts.streaming.running import run_stream
from mssts.streaming.sinks import Monitored, Sink
from mssts.streaming.sources import open_stream_source
from mssts.streaming.stream import Stream

_MOST_BYTES = 1 << 40  # so that the file is not renamed


def lines_in(folder: str) -> JsonlFile:
    """The file of JSON lines that a run writes."""
    return JsonlFile(Path(folder) / "tracks.jsonl", _MOST_BYTES)


def interleaved(
    runs: Mapping[str, Callable[[], float]], rounds: int, deadline: float, what: str
) -> dict[str, list[float]]:
    """The results of runs that take turns, in a list a name.

    Every second round goes the other way round. None is begun that would end after the deadline, but for the first.

    Args:
        runs: by name.
        rounds: at most.
        deadline: by `time.monotonic`.
        what: is measured, for the progress bar.
    """
    found: dict[str, list[float]] = {name: [] for name in runs}
    longest = 0.0
    for number in tqdm(range(rounds), desc=what, unit="round", disable=None):
        begun = time.monotonic()
        if number and begun + longest > deadline:
            break
        for name in list(runs) if number % 2 == 0 else reversed(list(runs)):
            found[name].append(runs[name]())
        longest = max(longest, time.monotonic() - begun)
    return found


def predicted(video: Path, frames: int, segmenter: Segmenter) -> float:
    """Frames a second of `predict` without drawing, until its files are written."""
    with tempfile.TemporaryDirectory(prefix="mssts-bench-") as folder:
        begun = time.perf_counter()
        predict(open_source(video), segmenter, Path(folder) / "out", PredictOptions(pictures=0), progress=False)
        return frames / (time.perf_counter() - begun)


def streamed(video: Path, frames: int, segmenter: Segmenter) -> float:
    """Frames a second of `stream` into a file of JSON lines, until the last line."""
    return _streamed(video, frames, segmenter, None)


def watched(video: Path, frames: int, segmenter: Segmenter, viewers: int, pictures: list[int]) -> float:
    """The same with `--view`, while so many watch from before the first frame.

    Args:
        video: a file.
        frames: that it has.
        segmenter: it stays open.
        viewers: at least 1.
        pictures: gets the number that each viewer was sent.
    """
    watching = Viewers(viewers)
    rate = _streamed(video, frames, segmenter, watching)
    pictures += watching.end()
    return rate


def _streamed(video: Path, frames: int, segmenter: Segmenter, viewers: Viewers | None) -> float:
    with tempfile.TemporaryDirectory(prefix="mssts-bench-") as folder:
        options = StreamOptions(images=viewers is not None)
        clock = _Clock()
        sinks: list[Sink] = [lines_in(folder)]
        if viewers is not None:
            start = viewers.start

            def watch(line: str) -> None:
                start(line.split()[-1])  # of "watch it at ADDRESS"

            sinks.append(Page(PageAddress.parse("0"), video.name, segmenter, watch))
        stream = Stream(open_stream_source(video, options), segmenter, options)
        run_stream(stream, [*sinks, clock], tqdm.write)
        return frames / clock.seconds


class _Clock(Sink):
    """The time from the start to the last result, behind the other sinks."""

    def open(self, stream: Monitored) -> None:
        """Starts it, as everything else is open."""
        self._begun = self._last = time.perf_counter()

    def write(self, result: FrameResult) -> None:
        """Takes the time."""
        self._last = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Until now, or the end."""
        return self._last - self._begun
