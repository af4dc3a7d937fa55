"""The README's figures, which are written from the records and from nothing else."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mssts.bench.records import Record
from mssts.errors import MsstsError
from mssts.files import atomic_path

BEGIN = "<!-- figures: written by `mssts bench report --readme` -->"
END = "<!-- end of figures -->"


def figures(records: Sequence[Record]) -> str:
    """The table of the README, as Markdown.

    Raises:
        MsstsError: a record that it needs is missing.
    """
    demo = _newest(records, "demo")
    fps = _newest([record for record in records if _engine(record, "released", "fp32")], "fps")
    released = _engine(fps, "released", "fp32")
    assert released is not None
    rows = [
        ("AP of the shipped `tiny` on held-out MovingShapes videos, through Triton", f"{100 * demo.value['ap']:.1f}"),
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
                    f"{released['ms_median'] / row['ms_median']:.1f} times as fast, "
                    f"{row['peak_memory_mb'] / released['peak_memory_mb']:.2f} of its memory",
                )
            )
    machines = [demo.machine] * 2 + [fps.machine] * (len(rows) - 2)
    lines = [f"| {what} | {figure} | {machine} |" for (what, figure), machine in zip(rows, machines, strict=True)]
    return "\n".join(["| what | figure | machine |", "| --- | --- | --- |", *lines])


_DATE = re.compile(r"_(\d{8})_")


def _newest(records: Sequence[Record], what: str) -> Record:
    found = [record for record in records if record.what == what]
    if not found:
        raise MsstsError(f"no record of {what} among {len(records)}; the README's figures need one")

    def date(record: Record) -> str:
        named = _DATE.search(record.path.name)
        return named[1] if named else ""

    return max(found, key=date)


def _engine(record: Record, runner: str, precision: str) -> dict[str, Any] | None:
    """The row of an engine's model, None if it was not measured."""
    rows = record.value.get("rows", [])
    same = [row for row in rows if (row.get("runner"), row.get("precision")) == (runner, precision)]
    return next((row for row in same if row.get("scope", "model") == "model"), None)


def written(readme: Path) -> str:
    """The figures that a README holds.

    Raises:
        MsstsError: it has no place for them.
    """
    text = readme.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise MsstsError(f"{readme}: has no place for figures; expected the lines {BEGIN} and {END}")
    return text.partition(BEGIN)[2].partition(END)[0].strip()


def write(readme: Path, records: Sequence[Record]) -> None:
    """Puts the figures into a README, between its two marks.

    Raises:
        MsstsError: it has no place for them, or a record is missing.
    """
    written(readme)
    before, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    table = figures(records)
    with atomic_path(readme) as path:
        path.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")
