"""Times of a live source, which may be missing, jump, or begin again."""

from __future__ import annotations

from collections.abc import Callable

_MOST_STEP = 10.0  # seconds between frames of one connection, beyond which the source's clock was set

_TIMELESS = 10  # frames; the first one of an RTSP session often has no time


class SourceClock:
    """Seconds since the first frame, by the source's clock where it can be trusted.

    Where a frame has no time, it gets that of its arrival. Where the source's clock begins again, as after a
    reconnection, or jumps, it is taken on from there: the step is that of the arrivals.

    Args:
        clock: seconds, never going back.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._offset: float | None = None  # from the source's seconds to ours, None where it must be found
        self._last = 0.0
        self._arrived: float | None = None  # the last frame
        self._without = 0  # frames in a row that had no time

    def reconnected(self) -> None:
        """Notes that the source's clock may have begun again."""
        self._offset = None

    def time(self, shown: float | None) -> tuple[float, str]:
        """The time of the next frame, and a line where something is wrong with it.

        Args:
            shown: the seconds that the source says, None if it does not.
        """
        now = self._clock()
        by_arrival = 0.0 if self._arrived is None else self._last + now - self._arrived
        self._arrived = now
        line = ""
        if shown is None:
            self._last = by_arrival
            self._without += 1
            if self._without == _TIMELESS:
                line = "frames come without times; those of their arrival are taken"
            return self._last, line
        self._without = 0
        if self._offset is not None:
            step = shown + self._offset - self._last
            if not 0 < step <= max(_MOST_STEP, 2 * (by_arrival - self._last)):
                line = f"its clock jumps by {step:.1f} s; times go on by the arrival of frames"
                self._offset = None
        if self._offset is None:
            self._offset = by_arrival - shown
        self._last = shown + self._offset
        return self._last, line
