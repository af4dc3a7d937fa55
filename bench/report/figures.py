"""The README's figures, which are written from the records and from nothing else."""

from __future__ import annotations

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
    demo, fps = _newest(records, "demo"), _newest(records, "fps")
    released, best = _engine(fps, "released", "fp32"), min(fps.value["rows"], key=lambda row: row["ms_median"])
    rows = [
        ("AP of the shipped `tiny` on held-out MovingShapes videos, through Triton", f"{100 * demo.value['AP']:.1f}"),
        ("the same run, end to end", f"{demo.value['frames_per_second']:.0f} frames/s"),
    ]
    if released is not None:
        H, W = fps.value["size"]
        engine = f"{_RUNNERS.get(best['runner'], best['runner'])} in {best['precision']}"
        rows += [
            (
                f"R50, {fps.value['frames']} frames of {H}×{W}, {engine}, "
                "against the released computation in PyTorch fp32",
                f"{released['ms_median'] / best['ms_median']:.0f} times as fast",
            ),
            (
                "its peak memory against the released computation's",
                f"{best['peak_memory_mb'] / released['peak_memory_mb']:.2f}",
            ),
        ]
    lines = [f"| {what} | {figure} |" for what, figure in rows]
    return "\n".join([f"On {fps.machine}:", "", "| what | figure |", "| --- | --- |", *lines])


_RUNNERS = {"openvino": "OpenVINO", "onnxruntime-cpu": "ONNX Runtime", "pytorch": "PyTorch"}


def _newest(records: Sequence[Record], what: str) -> Record:
    found = [record for record in records if record.what == what]
    if not found:
        raise MsstsError(f"no record of {what} among {len(records)}; the README's figures need one")
    return found[-1]


def _engine(record: Record, runner: str, precision: str) -> dict[str, Any] | None:
    return next((row for row in record.value["rows"] if (row["runner"], row["precision"]) == (runner, precision)), None)


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
