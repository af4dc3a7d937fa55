"""The metrics of a run, as CSV and for TensorBoard."""

from __future__ import annotations

import csv
import os
from pathlib import Path

from mssts.files import atomic_path

METRICS_FILE = "metrics.csv"


class MetricLog:
    """Metrics to `metrics.csv` and to TensorBoard.

    Rows after the resumed step are dropped first.
    """

    def __init__(self, out: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._path = out / METRICS_FILE
        self._names: list[str] = []
        rows: list[list[str]] = []
        if step and self._path.exists():
            with open(self._path, newline="", encoding="utf-8") as file:
                header, *rows = list(csv.reader(file)) or [[]]
            self._names = header[1:]
            # A killed process may have torn its last row.
            rows = [row for row in rows if len(row) == len(header) and int(row[0]) <= step]
        with atomic_path(self._path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([["step", *self._names], *rows] if self._names else [])
        self._file = open(self._path, "a", newline="", encoding="utf-8")  # noqa: SIM115 - closed in __exit__
        self._board = SummaryWriter(os.fspath(out / "tensorboard"), purge_step=step)

    def __enter__(self) -> MetricLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._board.close()

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Adds a row.

        The first row fixes the columns, so a term that is missing later leaves its cell empty.
        """
        writer = csv.writer(self._file)
        if not self._names:
            self._names = list(metrics)
            writer.writerow(["step", *self._names])
        writer.writerow([step, *(f"{metrics[name]:.6g}" if name in metrics else "" for name in self._names)])
        self._file.flush()
        self.board(metrics, step)

    def board(self, metrics: dict[str, float], step: int) -> None:
        """Shows metrics in TensorBoard alone."""
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step)
