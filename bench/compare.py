"""`mssts bench compare`: what got slower between two records, and by how much.

Rows are the same if all that was chosen is the same: runner, precision, shape and so on. A ratio is the second record's
time divided by the first's, so above 1 is slower; rates are turned over. Its noise is an interval that holds 95 % of
ratios of medians drawn from the samples with replacement, or the ratio of the opposite percentiles (p5, p95) where a
record holds no samples. What was chosen for a whole record, such as its frame size, may differ: a note says so.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mssts.bench.records import Record, is_number, read_record, save_record
from mssts.errors import MsstsError

HELP = "two records of one benchmark: what got slower, by ratio, with its noise"

_TIMES = ("ms_median", "ms_p50", "ms", "total_ms", "seconds")
_RATES = ("frames_per_second", "clips_per_second")
_CHOICES = (
    "mode", "concurrency", "rate", "runner", "variant", "precision", "threads", "workload", "op", "device", "dtype",
    "direction", "impl", "name", "kernel", "implementation", "architecture", "configuration", "seed", "scope", "axis",
    "value", "gpu", "model", "module", "artefact", "offset_pixels", "in_flight",
)  # fmt: skip
_SETTINGS = (
    "preset", "checkpoint", "switches", "runner", "precision", "size", "frames", "batch", "threads", "encoding",
    "device",
)  # fmt: skip
_UNSAID = (None, "")
_USUAL = {"in_flight": 1}  # what rows of records from before have, which do not say it
_DRAWS = 2000


@dataclass(frozen=True)
class Change:
    """A row that both records have.

    Attributes:
        row: what was chosen for it.
        figure: the name of the time or rate that was compared.
        before: its value in the first record.
        after: in the second.
        ratio: how many times as long it takes now.
        low: lower end of the ratio's noise, None if the records tell nothing of it.
        high: upper end.
    """

    row: str
    figure: str
    before: float
    after: float
    ratio: float
    low: float | None
    high: float | None

    def slower(self, tolerance: float) -> bool:
        """Whether it takes longer than before, beyond tolerance and noise."""
        return self.ratio > 1 + tolerance and (self.low is None or self.low > 1)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("before", type=Path, metavar="A.json", help="a record")
    parser.add_argument("after", type=Path, metavar="B.json", help="a later one of the same benchmark")
    parser.add_argument(
        "--tolerance", type=float, default=0.05, metavar="X", help="slower by this share is an error (default: 0.05)"
    )
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="the ratios as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Prints the ratios.

    The exit code is 1 if a row got slower beyond the tolerance.
    """
    if not arguments.tolerance >= 0:
        raise MsstsError(f"--tolerance {arguments.tolerance}: expected a share of at least 0, such as 0.05")
    before, after = read_record(arguments.before), read_record(arguments.after)
    if _kind(before) != _kind(after):
        raise MsstsError(
            f"{after.path}: is a record of {after.what}, and {before.path} one of {before.what}; expected two of one "
            "benchmark"
        )
    changes, missing = compare(before, after)
    if not changes:
        raise MsstsError(f"{after.path}: has no row with a time in common with {before.path}")
    if before.machine != after.machine:
        print(f"note: measured on different machines: {before.machine}; {after.machine}")
    settings = _different_settings(before, after)
    for name, values in settings.items():
        print(f"note: {name} is not the same: {values[0]}; {values[1]}")
    slower = [change for change in changes if change.slower(arguments.tolerance)]
    width = max(len(change.row) for change in changes)
    print(f"{'row':{width}}  {'figure':18}{'before':>11}{'after':>11}{'ratio':>8}  noise")
    for change in sorted(changes, key=lambda change: -change.ratio):
        noise = "unknown" if change.low is None else f"{change.low:.3f} to {change.high:.3f}"
        mark = "  SLOWER" if change in slower else ""
        print(
            f"{change.row:{width}}  {change.figure:18}{change.before:11.2f}{change.after:11.2f}{change.ratio:8.3f}"
            f"  {noise}{mark}"
        )
    for row, where in missing:
        print(f"{row}: only in {where}")
    if arguments.out is not None:
        report = {
            "before": before.path.name, "after": after.path.name, "tolerance": arguments.tolerance,
            "different_settings": settings,
            "rows": [{**asdict(change), "slower": change in slower} for change in changes],
            "missing": [{"row": row, "only_in": str(where)} for row, where in missing],
        }  # fmt: skip
        save_record("compare", report, arguments.out)
    print(f"{len(slower)} of {len(changes)} rows got slower by more than {100 * arguments.tolerance:g} %")
    return int(bool(slower))


def compare(before: Record, after: Record) -> tuple[list[Change], list[tuple[str, Path]]]:
    """The rows that both records have, and those that one alone has, with its path.

    Raises:
        MsstsError: two rows of a record are of the same choices.
    """
    old, new = _timed_rows(before), _timed_rows(after)
    changes = [_change(row, old[row], new[row]) for row in old if row in new]
    missing = [(row, before.path) for row in old if row not in new] + [
        (row, after.path) for row in new if row not in old
    ]
    return changes, missing


def _kind(record: Record) -> str:
    """What was measured.

    Names of older records add to it, as in `fps-tiny`, which is left out.
    """
    return record.what.partition("-")[0]


def _different_settings(before: Record, after: Record) -> dict[str, tuple[Any, Any]]:
    """The settings that both records have and that differ, with both values."""
    return {
        name: (before.value[name], after.value[name])
        for name in _SETTINGS
        if name in before.value and name in after.value and before.value[name] != after.value[name]
    }


def _timed_rows(record: Record) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for row in _rows(record):
        if _figure(row) is None:
            continue
        said = [key for key in _CHOICES if row.get(key) not in (*_UNSAID, _USUAL.get(key))]
        name = ", ".join(_choice(key, row[key]) for key in said)
        if name in found:
            raise MsstsError(f"{record.path}: has two rows of {name}")
        found[name] = row
    return found


def _rows(record: Record) -> Iterator[dict[str, Any]]:
    for rows in record.tables.values():
        yield from rows
    if (figure := _figure(record.value)) is not None:
        yield {"name": "whole", figure: record.value[figure]}


def _choice(key: str, value: Any) -> str:
    return f"{key} {value}" if isinstance(value, (int, float)) else str(value)


def _figure(row: dict[str, Any]) -> str | None:
    """The name of the row's time, or of its rate if it has no time."""
    return next((key for key in _TIMES + _RATES if _measured(row.get(key))), None)


def _measured(value: Any) -> bool:
    return is_number(value) and value > 0


def _change(name: str, old: dict[str, Any], new: dict[str, Any]) -> Change:
    figure = next((key for key in _TIMES + _RATES if all(_measured(row.get(key)) for row in (old, new))), None)
    if figure is None:
        raise MsstsError(f"{name}: one record has {_figure(old)}, the other {_figure(new)}")
    before, after = float(old[figure]), float(new[figure])
    ratio = before / after if figure in _RATES else after / before
    low, high = _noise(old, new)
    return Change(name, figure, before, after, ratio, low, high)


def _noise(old: dict[str, Any], new: dict[str, Any]) -> tuple[float | None, float | None]:
    """The ends of the ratio's noise."""
    samples: list[list[float]] = [row.get("samples_ms") or [] for row in (old, new)]
    if all(isinstance(values, list) and len(values) > 1 and all(map(_measured, values)) for values in samples):
        draw = random.Random(0)
        first, second = (
            [statistics.median(draw.choices(values, k=len(values))) for _ in range(_DRAWS)] for values in samples
        )
        ratios = sorted(after / before for before, after in zip(first, second, strict=True))
        return ratios[int(0.025 * _DRAWS)], ratios[int(0.975 * _DRAWS) - 1]
    if all(_measured(row.get(key)) for row in (old, new) for key in ("ms_p5", "ms_p95")):
        return new["ms_p5"] / old["ms_p95"], new["ms_p95"] / old["ms_p5"]
    return None, None
