"""Counts what a stream does."""

from __future__ import annotations

import statistics
import threading
from collections import deque
from collections.abc import Callable

from mssts.streaming.results import StreamFigures

_RECENT = 100  # frames over which the rate and the latency are taken


class Meter:
    """Figures of a stream, counted by several threads."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._frames = self._windows = self._reconnections = 0
        self._recent: deque[tuple[float, float]] = deque(maxlen=_RECENT)  # when a result came, and its latency

    def result(self, arrived: float) -> None:
        """Counts the result of a frame that came at `arrived`."""
        now = self._clock()
        with self._lock:
            self._frames += 1
            self._recent.append((now, now - arrived))

    def window(self) -> None:
        """Counts a window."""
        with self._lock:
            self._windows += 1

    def reconnected(self) -> None:
        """Counts a source that is back."""
        with self._lock:
            self._reconnections += 1

    def figures(self, dropped: int) -> StreamFigures:
        """The figures now."""
        with self._lock:
            recent = list(self._recent)
            counts = self._frames, dropped, self._windows, self._reconnections
        # Results come a window at a time, so the rate is taken until now: it falls when none come.
        seconds = self._clock() - recent[0][0] if recent else 0.0
        return StreamFigures(
            *counts,
            frames_per_second=(len(recent) - 1) / seconds if seconds > 0 else 0.0,
            latency=statistics.median(latency for _, latency in recent) if recent else None,
        )
