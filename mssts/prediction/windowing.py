"""Overlapping windows of a video, cut as its frames come.

`predict` and `stream` cut, send and link windows by what is here and in `mssts.prediction.tracking`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from mssts.errors import MsstsError
from mssts.media.images import encode_jpeg
from mssts.media.video import Frame

_Frame = TypeVar("_Frame")

# Instances below it change no average precision, but an engine returns as many as it is asked for in every window.
MIN_SCORE = 0.01
_JPEG_QUALITY = 95


@dataclass(frozen=True)
class Window(Generic[_Frame]):
    """Consecutive frames that the segmenter gets as one clip.

    Attributes:
        start: index of its first frame, counting the frames that lie in windows.
        frames: at most a clip's.
        new: how many of them, the last ones, lie in no window before.
        is_last: no window follows directly: the video ends there, or frames are missing.
    """

    start: int
    frames: list[_Frame]
    new: int
    is_last: bool = False

    @property
    def end(self) -> int:
        """Index of the frame after its last."""
        return self.start + len(self.frames)


class WindowCutter(Generic[_Frame]):
    """Cuts a stream of frames into windows that overlap.

    Holds no more than `clip_frames` frames. Where windows are cut later than they are ready, they become wider apart,
    and from `clip_frames` new frames on, the oldest are lost.

    Raises:
        MsstsError: the overlap is negative or as long as the window.
    """

    def __init__(self, clip_frames: int, clip_overlap: int) -> None:
        if not 0 <= clip_overlap < clip_frames:
            raise MsstsError(f"a window of {clip_frames} frames cannot overlap the next by {clip_overlap}")
        self._stride = clip_frames - clip_overlap
        self._recent: deque[_Frame] = deque(maxlen=clip_frames)
        self._new = 0
        self._covered = 0  # frames that lie in a window

    @property
    def new(self) -> int:
        """Frames that lie in no window yet."""
        return self._new

    @property
    def is_ready(self) -> bool:
        """Whether there are as many frames as a window needs."""
        return len(self._recent) == self._recent.maxlen and self._new >= self._stride

    def push(self, frame: _Frame) -> bool:
        """Appends a frame, and returns whether an older one was lost."""
        lost = self._new == self._recent.maxlen
        self._recent.append(frame)
        self._new += not lost
        return lost

    def cut(self, is_last: bool = False) -> Window[_Frame]:
        """The window that ends with the newest frame.

        It has `clip_frames` frames, or all there are since the beginning or the last break. After one that `is_last`
        the next window shares no frame with it.
        """
        window = Window(self._covered + self._new - len(self._recent), list(self._recent), self._new, is_last)
        self._covered += self._new
        self._new = 0
        if is_last:
            self._recent.clear()
        return window


def windows(frames: Iterable[_Frame], clip_frames: int, clip_overlap: int) -> Iterator[tuple[int, list[_Frame]]]:
    """Yields the windows of a stream of frames: (index of the first frame, frames).

    Consecutive windows share `clip_overlap` frames. The last window is shifted back to end with the video rather than
    cut short: an engine sees as much context at the end as elsewhere, and always the same shape. Only a video shorter
    than `clip_frames` gives a shorter window. No more than `clip_frames` frames are held.

    Raises:
        MsstsError: the overlap is negative or as long as the window.
    """
    cutter: WindowCutter[_Frame] = WindowCutter(clip_frames, clip_overlap)
    for frame in frames:
        cutter.push(frame)
        if cutter.is_ready:
            window = cutter.cut()
            yield window.start, window.frames
    if cutter.new:
        window = cutter.cut(is_last=True)
        yield window.start, window.frames


def owned_from(start: int, covered: int) -> int:
    """The first frame whose masks a window from `start` on decides.

    Of the frames that it shares with the window before, which ends at `covered`, these are the second half.
    """
    return (start + covered + 1) // 2


def clip_of(frames: Sequence[Frame], transfer: str) -> np.ndarray | list[bytes]:
    """A window's frames as they are sent, see `PredictOptions.transfer`."""
    encoded = [frame.encoded for frame in frames if frame.encoded is not None]
    if transfer != "raw" and len(encoded) == len(frames):
        return encoded
    if transfer == "jpeg":
        return [encode_jpeg(frame.rgb_HWC, _JPEG_QUALITY) for frame in frames]
    return np.stack([frame.rgb_HWC for frame in frames])
