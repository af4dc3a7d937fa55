"""How far a training has come, and how long it will take."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from tqdm import tqdm

_INTERVAL = 60.0  # seconds between lines where there is no terminal


class Progress:
    """A progress bar on a terminal, a line a minute elsewhere."""

    def __init__(self, step: int, total: int, shown: bool) -> None:
        self._first, self._step, self._total = step, step, total
        self._lines = shown and not sys.stderr.isatty()
        self._bar: tqdm[Any] = tqdm(total=total, initial=step, unit="step", disable=self._lines or not shown)
        self._shown = shown
        self._started = self._said = time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def update(self, loss: float, epoch: int) -> None:
        """Counts a step."""
        self._step += 1
        self._bar.update()
        self._bar.set_postfix(loss=f"{loss:.2f}", epoch=epoch, refresh=False)
        now = time.monotonic()
        if self._lines and now - self._said >= _INTERVAL:
            self._said = now
            each = (now - self._started) / (self._step - self._first)
            left = each * (self._total - self._step) / 60
            self.say(f"step {self._step} of {self._total}, loss {loss:.2f}, {each:.2f} s a step, {left:.0f} min left")

    def say(self, line: str) -> None:
        """Prints a line beside the bar."""
        if self._lines:
            print(line, file=sys.stderr, flush=True)
        elif self._shown:
            self._bar.write(line, file=sys.stderr)
