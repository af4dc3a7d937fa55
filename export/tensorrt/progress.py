"""A progress bar for a TensorRT build."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm


@contextmanager
def progress_monitor(trt: Any) -> Iterator[Any]:
    """Progress bars of a build, one for each phase, removed at the end."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.bars: dict[str, Any] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.bars[phase_name] = tqdm(
                total=num_steps, desc=phase_name, position=len(self.bars), leave=False, disable=None, unit="step"
            )

        def step_complete(self, phase_name: str, step: int) -> bool:
            """Whether to go on.

            TensorRT calls this, and an exception must not pass through it."""
            bar = self.bars.get(phase_name)
            if bar is not None:
                bar.update(step + 1 - bar.n)
            return True

        def phase_finish(self, phase_name: str) -> None:
            bar = self.bars.pop(phase_name, None)
            if bar is not None:
                bar.close()

    monitor = Monitor()
    try:
        yield monitor
    finally:
        for bar in monitor.bars.values():
            bar.close()
