"""From the instances of windows to final results of frames."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

from mssts.manifest import Category
from mssts.prediction.appearance import colour_histograms
from mssts.prediction.tracking import Linker
from mssts.prediction.windowing import Window, owned_from
from mssts.segmenters.base import Instances
from mssts.streaming.buffer import ArrivedFrame
from mssts.streaming.options import StreamOptions
from mssts.streaming.results import FrameResult, frame_instances

_Results = Iterator[tuple[ArrivedFrame, FrameResult]]


class WindowLinking:
    """Links windows, and gives each frame's result as soon as it is final.

    The linker is that of `predict`. A frame's masks are decided by the window that owns it. Of the frames that two
    windows share, the first half belongs to the earlier one. Two things that `predict` does are left out, as they would
    change a result that was given: a later window does not fill in a mask that the owner lacks, and a score is that of
    the track so far.

    Args:
        categories: the engine's.
        overlap: frames that consecutive windows share.
        options: the score threshold, and whether results carry pictures.
    """

    def __init__(self, categories: Sequence[Category], overlap: int, options: StreamOptions) -> None:
        self._categories = categories
        self._overlap = overlap
        self._options = options
        self._linker = Linker()
        self._size: tuple[int, int] | None = None
        self._covered = 0  # frames in the windows so far
        self._skipped = 0  # frames that the linker does not know of, as their windows were dropped
        self._waiting: deque[tuple[int, ArrivedFrame]] = deque()  # the frames without a result, by their index

    def before(self, window: Window[ArrivedFrame]) -> _Results:
        """Results of the frames that earlier windows own.

        Where the next one begins decides that.
        """
        yield from self._final(owned_from(window.start, self._covered) if window.frames else window.end)

    def after(self, window: Window[ArrivedFrame], found: Instances) -> _Results:
        """Results of the frames that this window owns and no later one can."""
        size = window.frames[0].size
        if self._size not in (None, size):  # masks of two sizes cannot be compared
            self._linker = Linker(self._linker.known)
            self._skipped = self._covered
        self._size = size
        self._skipped += window.end - window.new - self._covered
        colours_ND = colour_histograms(found, [arrived.frame for arrived in window.frames])
        self._linker.add(window.start - self._skipped, len(window.frames), found, colours_ND)
        self._covered = window.end
        self._waiting.extend(enumerate(window.frames[-window.new :], window.end - window.new))
        # The next window shares at most `overlap` frames with this one, and owns the second half of them.
        yield from self._final(window.end if window.is_last else window.end - self._overlap // 2)
        self._linker.forget(window.end - self._skipped - len(window.frames))

    def _final(self, end: int) -> _Results:
        while self._waiting and self._waiting[0][0] < end:
            index, arrived = self._waiting.popleft()
            visible = self._linker.visible(index - self._skipped)
            yield (
                arrived,
                FrameResult(
                    frame=arrived.number,
                    time=None if arrived.frame.time is None else round(arrived.frame.time, 6),
                    instances=frame_instances(visible, arrived.size, self._categories, self._options.score_threshold),
                    picture=arrived.frame if self._options.images else None,
                ),
            )
