"""The goals of the engines on a processor, and what stops them, from profiles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mssts.bench.records import Record, newest

_PRESET = "mssts_r50"
_OF_FLOOR = {"fp32": 1.10, "bf16": 1.20}
_OF_BF16 = 0.60  # int8's time
_ABSENT = f"No profile of {_PRESET} in OpenVINO by kind of work is among the records yet."


def goals(records: Sequence[Record]) -> str:
    """Two tables as Markdown: goals beside what takes the time, and by module."""
    found = _profiles(records)
    if not found:
        return _ABSENT
    columns = {precision: _column(precision, record, found) for precision, record in found.items()}
    names = list(next(iter(columns.values())))
    machine = next(iter(found.values())).machine
    lines = [
        f"| ms a clip, on {machine} | {' | '.join(found)} |",
        f"| --- |{' --- |' * len(found)}",
        *(f"| {name} | {' | '.join(column[name] for column in columns.values())} |" for name in names),
        "",
        f"| floor / at its own rates / in the engine, ms | {' | '.join(found)} |",
        f"| --- |{' --- |' * len(found)}",
    ]
    for name in dict.fromkeys(row["name"] for record in found.values() for row in record.value["modules"]):
        cells = [_module(record, name) for record in found.values()]
        if any(cells):
            lines.append(f"| {name} | {' | '.join(cell or '–' for cell in cells)} |")
    return "\n".join(lines)


def _profiles(records: Sequence[Record]) -> dict[str, Record]:
    """The newest profile of each precision that has the time by kind of work."""
    same = [
        record for record in records
        if record.what == "profile" and record.value.get("preset") == _PRESET
        if record.value.get("runner") == "openvino"
        if record.value.get("total", {}).get("products_ms") is not None
    ]  # fmt: skip
    of = {name: [record for record in same if record.value["precision"] == name] for name in ("fp32", "bf16", "int8")}
    return {name: newest(found) for name, found in of.items() if found}


def _column(precision: str, record: Record, found: dict[str, Record]) -> dict[str, str]:
    total = record.value["total"]
    own, rest = total["own_rate_ms"], total["ops_ms"] + total["passes_ms"]
    goal, shown = None, "–"
    if precision in _OF_FLOOR:
        goal = _OF_FLOOR[precision] * total["floor_ms"]
        shown = f"{goal:,.0f}, {_OF_FLOOR[precision]:.2f} × floor"
    elif "bf16" in found:
        goal = _OF_BF16 * found["bf16"].value["total"]["ms"]
        shown = f"{goal:,.0f}, {_OF_BF16:.2f} × bf16"
    return {
        "floor: all products at the best rate of any shape": f"{total['floor_ms']:,.0f}",
        "the goal": shown,
        "products, each at the best rate of its own shape": _beside(own, total),
        "the engine": _beside(total["ms"], total),
        "its products": f"{total['products_ms']:,.0f}",
        "our two ops": f"{total['ops_ms']:,.0f}",
        "passes over memory: norms, sums, softmax, conversions": f"{total['passes_ms']:,.0f}",
        "ops and passes now, and what the goal leaves for them beside products at their own rates": (
            "–" if goal is None else f"{rest:,.0f}, {goal - own:,.0f}"
        ),
    }


def _beside(ms: float, total: dict[str, Any]) -> str:
    return f"{ms:,.0f}, {ms / total['floor_ms']:.2f} × floor"


def _module(record: Record, name: str) -> str:
    row = next((row for row in record.value["modules"] if row["name"] == name), None)
    if row is None or row["ms"] < 0.001 * record.value["total_ms"]:
        return ""
    return f"{row['floor_ms']:,.0f} / {row['own_rate_ms']:,.0f} / {row['ms']:,.0f}"
