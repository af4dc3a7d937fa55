"""A stream: a source read, segmented and linked at the same time."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING

from mssts.errors import MsstsError
from mssts.media.images import size_text
from mssts.prediction.windowing import MIN_SCORE, Window, clip_of
from mssts.segmenters.base import Instances, Segmenter
from mssts.streaming.buffer import ArrivedFrame, WindowBuffer
from mssts.streaming.linking import WindowLinking
from mssts.streaming.meter import Meter
from mssts.streaming.options import StreamOptions
from mssts.streaming.results import FrameResult, StreamFigures
from mssts.streaming.sources import Gap, StreamSource, open_stream_source

if TYPE_CHECKING:
    from typing_extensions import Self

_LINES = 20
# That threads may take to end. A source that hangs ends by its own time limit; a window in work must end before the
# engine may be closed.
_SOURCE_SECONDS, _WINDOW_SECONDS = 1.0, 30.0

_Window = Window[ArrivedFrame]


def stream(
    source: StreamSource | Path | str | int,
    segmenter: Segmenter,
    options: StreamOptions | None = None,
    say: Callable[[str], None] | None = None,
) -> Stream:
    """Segments and tracks a source as it comes.

        with mssts.load("runs/engine") as segmenter, mssts.stream("rtsp://camera/1", segmenter) as results:
            for result in results:
                print(result.frame, [(item.track, item.name) for item in result.instances])

    Args:
        source: a video file, a folder of images, `rtsp://`, `http(s)://`, `udp://`, a webcam's number, or `-` for
            stdin.
        segmenter: from `mssts.load`; it stays open.
        options: `StreamOptions()` if None.
        say: is given a line when the source is lost, back or changes; Python's log of warnings if None. It is called by
            a thread of the stream.

    Raises:
        MsstsError: the source cannot be opened, or the options do not fit it or the engine.
    """
    options = options or StreamOptions()
    if not isinstance(source, StreamSource):
        source = open_stream_source(source, options)
    return Stream(source, segmenter, options, say)


class Stream:
    """The results of a source, a frame each and in order: an iterator, plain or async.

    A frame comes once the window that owns it is known, and its result never changes. The source is read, windows are
    segmented and results are used at the same time, each by its own threads; all queues between them are bounded.

    A context manager, which ends the stream. Also ends with the source.

    Raises:
        MsstsError: while iterating: the source broke or was lost for longer than is tried, or a window was refused.
    """

    def __init__(
        self,
        source: StreamSource,
        segmenter: Segmenter,
        options: StreamOptions,
        say: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        manifest = segmenter.manifest
        self._clip_frames = manifest.clip_frames
        stride = options.stride or manifest.clip_frames - manifest.clip_overlap
        if stride > self._clip_frames:
            raise MsstsError(
                f"a stride of {stride} would leave out frames; the engine's windows have {self._clip_frames}"
            )
        self._overlap = self._clip_frames - stride
        self.source = source
        self.is_live = source.is_live if options.live is None else options.live
        self._segmenter = segmenter
        self._options = options
        self._say = say or logging.getLogger("mssts.stream").warning
        self._clock = clock
        self._buffer: WindowBuffer[ArrivedFrame] = WindowBuffer(self._clip_frames, self._overlap, self.is_live)
        # Several windows at one server wait for each other: good for throughput, bad for latency.
        in_flight = options.in_flight or (max(1, segmenter.in_flight // 2) if self.is_live else segmenter.in_flight)
        self._slots = threading.Semaphore(in_flight)
        self._turn = threading.Lock()
        self._sent: queue.SimpleQueue[tuple[_Window, Future[Instances]] | None] = queue.SimpleQueue()
        self._stopped = threading.Event()
        self._error: BaseException | None = None
        self._lines: deque[str] = deque(maxlen=_LINES)
        self._meter = Meter(clock)
        self._threads = [threading.Thread(target=self._read, name="mssts-source", daemon=True)]
        self._threads += [
            threading.Thread(target=self._segment, name="mssts-window", daemon=True) for _ in range(in_flight)
        ]
        self._results = self._linked()
        self._is_started = False

    # --- use ------------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[FrameResult]:
        return self

    def __next__(self) -> FrameResult:
        if not self._is_started:
            self._is_started = True
            for thread in self._threads:
                thread.start()
        return next(self._results)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> FrameResult:
        result = await asyncio.to_thread(next, self, None)
        if result is None:
            raise StopAsyncIteration
        return result

    def figures(self) -> StreamFigures:
        """The figures now, from any thread."""
        return self._meter.figures(self._buffer.dropped)

    def lines(self) -> tuple[str, ...]:
        """The last things that were said of the source, the newest last."""
        return tuple(self._lines)

    def stop(self) -> None:
        """Ends reading.

        What was read until now still gets its results.
        """
        self._stopped.set()
        self._buffer.end()

    def close(self) -> None:
        """Ends the stream at once."""
        self._stopped.set()
        self._buffer.abandon()
        for _ in self._threads:
            self._slots.release()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(_SOURCE_SECONDS if thread is self._threads[0] else _WINDOW_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await asyncio.to_thread(self.close)

    # --- threads --------------------------------------------------------------------------------------------------

    def _read(self) -> None:
        """Reads the source into windows."""
        number = 0
        size: tuple[int, int] | None = None
        try:
            for item in self.source.items(self._stopped, self.is_live):
                if isinstance(item, Gap):
                    self._buffer.break_off()
                    self._tell(item)
                    continue
                if size not in (None, item.size):
                    self._buffer.break_off()
                    sizes = f"frames are {_text(item.size)} from frame {number} on, {_text(size)} before"
                    self._tell(Gap(f"{self.source}: {sizes}; identities begin again, with new numbers"))
                size = item.size
                if not self._buffer.put(ArrivedFrame(number, item.frame, item.size, self._clock())):
                    return
                number += 1
        except BaseException as error:
            self._error = error
        finally:
            self._buffer.end()

    def _segment(self) -> None:
        """Runs windows, each in its turn.

        The results wait in that order.
        """
        while True:
            self._slots.acquire()
            with self._turn:
                window = self._buffer.take()
                if window is None:
                    self._sent.put(None)
                    return
                future: Future[Instances] = Future()
                self._sent.put((window, future))
            if not window.frames:
                future.cancel()
                continue
            try:
                clip = clip_of([item.frame for item in window.frames], "auto")
                future.set_result(self._segmenter.segment(clip, MIN_SCORE))
            except BaseException as error:
                future.set_exception(error)

    def _tell(self, gap: Gap) -> None:
        self._lines.append(gap.line)
        if gap.is_back:
            self._meter.reconnected()
        self._say(gap.line)

    # --- results --------------------------------------------------------------------------------------------------

    def _linked(self) -> Iterator[FrameResult]:
        linking = WindowLinking(self._segmenter.manifest.categories, self._overlap, self._options)
        while (sent := self._sent.get()) is not None:
            window, future = sent
            yield from self._counted(linking.before(window))
            if window.frames:
                found = future.result()
                self._slots.release()
                self._meter.window()
                yield from self._counted(linking.after(window, found))
            else:
                self._slots.release()
        if self._error is not None:
            raise self._error

    def _counted(self, results: Iterator[tuple[ArrivedFrame, FrameResult]]) -> Iterator[FrameResult]:
        for arrived, result in results:
            self._meter.result(arrived.arrived)
            yield result


def _text(size: tuple[int, int] | None) -> str:
    return "unknown" if size is None else size_text(size)
