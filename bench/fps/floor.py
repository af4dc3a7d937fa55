"""The floor of each engine of a processor.

It is the least that this machine needs for the engine's products.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mssts.bench.fps.engines import MEASURED, Setting
from mssts.bench.operations import count_operations
from mssts.bench.rates import DTYPES, best_rate, measure_rates
from mssts.model.checkpoint import load_checkpoint


def with_floors(report: dict[str, Any], checkpoints: Mapping[str, Path], setting: Setting) -> dict[str, Any]:
    """The report with `rates`, and `floor_ms` and `times_of_floor` in each row.

    Both are None on a GPU, and where neither PyTorch nor OpenVINO computes in a precision.

    Args:
        report: of `measure`.
        checkpoints: the weights of each variant.
        setting: of the run.
    """
    flops, rates = {}, []
    for variant, path in checkpoints.items():
        operations = count_operations(load_checkpoint(path).preset, (setting.batch, setting.frames, *setting.size))
        flops[variant] = sum(operation.flops for operation in operations)
    wanted = [
        dtype for dtype in DTYPES
        if any(row["precision"] == dtype and MEASURED[row["runner"]].device == "cpu" for row in report["rows"])
    ]  # fmt: skip
    if wanted:
        rates = measure_rates(operations, wanted, setting.threads)
    rows = []
    for row in report["rows"]:
        floor = None
        if row["precision"] in wanted and MEASURED[row["runner"]].device == "cpu":
            floor = flops[row["variant"]] / best_rate(rates, row["precision"]).gflop_per_s / 1e6
        clip_ms = 1e3 * setting.batch * setting.frames / row["frames_per_second"]  # the median of one clip at a time
        times = None if floor is None else clip_ms / floor
        rows.append({**row, "floor_ms": floor, "times_of_floor": times})
    best = [asdict(best_rate(rates, dtype)) for dtype in wanted]
    return {**report, "rows": rows, "flops": flops, "rates": [asdict(rate) for rate in rates], "best_rates": best}
