"""The bounded queue between what reads a source and what runs its windows."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeVar

from mssts.media.video import Frame
from mssts.prediction.windowing import Window, WindowCutter


@dataclass(frozen=True)
class ArrivedFrame:
    """A frame of a source, and what is known of it when it comes.

    Attributes:
        number: in the source, from 0 on.
        frame: its pixels and time.
        size: height and width.
        arrived: seconds of a monotonic clock.
    """

    number: int
    frame: Frame
    size: tuple[int, int]
    arrived: float


_Item = TypeVar("_Item")


class WindowBuffer(Generic[_Item]):
    """Takes frames from one thread and gives windows to others.

    Where every frame counts, `put` waits while a window is ready that nobody took. Live, it never does: a window is cut
    when it is taken and ends with the newest frame, and frames that no window can hold any more are dropped and
    counted. It holds no more than two windows either way.

    Args:
        clip_frames: of a window.
        clip_overlap: frames that consecutive windows share.
        live: whether frames may be dropped.
    """

    def __init__(self, clip_frames: int, clip_overlap: int, live: bool) -> None:
        self._cutter: WindowCutter[_Item] = WindowCutter(clip_frames, clip_overlap)
        self._closed: deque[Window[_Item]] = deque()  # cut, and not taken
        self._live = live
        self._changed = threading.Condition()
        self._ended = False
        self._dropped = 0

    @property
    def dropped(self) -> int:
        """Frames that were dropped."""
        return self._dropped

    def put(self, item: _Item) -> bool:
        """Appends a frame, and returns whether more are wanted."""
        with self._changed:
            if self._ended:
                return False
            self._dropped += self._cutter.push(item)
            if not self._live and self._cutter.is_ready:
                self._wait_for_room()
                if self._ended:
                    return False
                self._closed.append(self._cutter.cut())
            self._changed.notify_all()
            return True

    def break_off(self) -> None:
        """Makes what follows share no window with the frames so far.

        Those that are in none yet become one at once.
        """
        with self._changed:
            if not self._live:
                self._wait_for_room()
            self._break_off()

    def end(self) -> None:
        """Ends the stream: `take` gives what there is, and then None.

        Does not wait, so that a handler of signals may call it.
        """
        with self._changed:
            if not self._ended:
                self._break_off()
                self._ended = True
                self._changed.notify_all()

    def abandon(self) -> None:
        """Ends the stream at once, whatever is left."""
        with self._changed:
            self._ended = True
            self._closed.clear()
            self._changed.notify_all()

    def take(self) -> Window[_Item] | None:
        """The next window, waited for, or None at the end."""
        with self._changed:
            while True:
                if self._closed:
                    window = self._closed.popleft()
                    self._changed.notify_all()
                    return window
                if self._ended:
                    return None
                if self._live and self._cutter.is_ready:
                    return self._cutter.cut()
                self._changed.wait()

    def _break_off(self) -> None:
        while self._live and self._closed:  # a source that breaks off again and again is not to fill the memory
            self._dropped += self._closed.popleft().new
        window = self._cutter.cut(is_last=True)
        if not window.new:  # what is left of the window before is final, and its reader must hear of it
            window = Window(window.end, [], 0, is_last=True)
        if not self._ended:
            self._closed.append(window)
        self._changed.notify_all()

    def _wait_for_room(self) -> None:
        self._changed.wait_for(lambda: not self._closed or self._ended)
