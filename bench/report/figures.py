"""The README's figures, which are written from the records and from nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mssts.bench.records import Record, is_number, newest
from mssts.errors import MsstsError

_PRESET = "mssts_r50"


def figures(records: Sequence[Record]) -> str:
    """The table of the README, as Markdown.

    Raises:
        MsstsError: a record that it needs is missing.
    """
    demo = _latest([record for record in records if is_number(record.value.get("ap"))], "demo")
    r50 = [record for record in records if record.value.get("preset", _PRESET) == _PRESET]
    fps = _latest([record for record in r50 if _engine(record, "released", "fp32")], "fps")
    released = _engine(fps, "released", "fp32")
    assert released is not None
    rows = [
        ("AP of the shipped `tiny` on MovingShapes v1's test split, through Triton", f"{100 * demo.value['ap']:.1f}"),
        ("the same run, end to end", f"{demo.value['frames_per_second']:.0f} frames/s"),
    ]
    H, W = fps.value["size"]
    for precision in ("fp32", "bf16", "int8"):
        row = _engine(fps, "openvino", precision)
        if row is not None:
            rows.append(
                (
                    f"R50, {fps.value['frames']} frames of {H}×{W}, OpenVINO in {precision}, against the released "
                    "code's computation in PyTorch fp32",
                    _beside(row, released),
                )
            )
    machines = [demo.machine] * 2 + [fps.machine] * (len(rows) - 2)
    lines = [f"| {what} | {figure} | {machine} |" for (what, figure), machine in zip(rows, machines, strict=True)]
    return "\n".join(["| what | figure | machine |", "| --- | --- | --- |", *lines])


def _beside(row: dict[str, Any], released: dict[str, Any]) -> str:
    times = f"{released['ms_median'] / row['ms_median']:.1f} times as fast"
    if not all(is_number(each.get("peak_memory_mb")) for each in (row, released)):  # measured with --no-memory
        return times
    return f"{times}, {row['peak_memory_mb'] / released['peak_memory_mb']:.2f} of its memory"


def _latest(records: Sequence[Record], what: str) -> Record:
    found = [record for record in records if record.what == what]
    if not found:
        raise MsstsError(f"no record of {what} has what the README's figures need; expected one among the records")
    return newest(found)


def _engine(record: Record, runner: str, precision: str) -> dict[str, Any] | None:
    """The row of an engine's model, None if it was not measured.

    It is that of one clip at a time.
    """
    rows = [row for row in record.value.get("rows", []) if row.get("in_flight", 1) == 1]
    same = [row for row in rows if (row.get("runner"), row.get("precision")) == (runner, precision)]
    return next((row for row in same if row.get("scope", "model") == "model"), None)
