"""Time of a prediction by stage."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from mssts.media.video import Frame


class StageClock:
    """Seconds by stage.

    Of a stage within another, the time counts as the inner one's alone."""

    def __init__(self) -> None:
        self.seconds = {"read": 0.0, "segment": 0.0, "link": 0.0, "render": 0.0}
        self._stages: list[str] = []
        self._since = 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Counts the time in the block for a stage."""
        self._count()
        self._stages.append(name)
        try:
            yield
        finally:
            self._count()
            self._stages.pop()

    def _count(self) -> None:
        now = time.perf_counter()
        if self._stages:
            self.seconds[self._stages[-1]] += now - self._since
        self._since = now

    def reading(self, frames: Iterator[Frame]) -> Iterator[Frame]:
        """The same frames, with the time that each takes to come counted as `read`."""
        while True:
            with self.stage("read"):
                frame = next(frames, None)
            if frame is None:
                return
            yield frame

    def split(self, before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
        """The seconds by stage, with those of `segment` split into the segmenter's own.

        Args:
            before: the segmenter's seconds by stage at the start, as `Segmenter.stage_seconds`.
            after: the same now.
        """
        inside = {stage: max(after[stage] - before[stage], 0.0) for stage in after}
        return {
            "read": self.seconds["read"],
            **(inside or {"segment": self.seconds["segment"]}),
            "link": self.seconds["link"],
            "render": self.seconds["render"],
        }
