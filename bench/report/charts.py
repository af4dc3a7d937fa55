"""Charts as inline SVG, whose colours are the page's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_LABEL, _BAR, _VALUE, _STEP = 250, 430, 90, 26
_LETTER = 7  # the width of most letters
_WIDTH = _LABEL + _BAR + _VALUE


@dataclass(frozen=True)
class Bar:
    """One bar: its label, its length, and where the least possible value lies.

    Attributes:
        label: text to its left.
        value: its length, at least 0.
        floor: the least that the machine could need, marked across the bar; None where nothing is known of it.
        low: lower end of its spread, drawn as a whisker with `high`.
        high: upper end.
    """

    label: str
    value: float
    floor: float | None = None
    low: float | None = None
    high: float | None = None


def bars(title: str, rows: Sequence[Bar]) -> str:
    """A chart of horizontal bars from zero, as SVG text. It is empty without a row."""
    if not rows:
        return ""
    most = max(max(row.value, row.floor or 0, row.high or 0) for row in rows) or 1.0
    parts = []
    label_width = min(_LABEL, max(_LETTER * len(_short(row.label)) for row in rows) + 16)
    bar_width = _LABEL + _BAR - label_width
    for index, row in enumerate(rows):
        y = index * _STEP + 4
        middle = y + 9
        parts.append(f'<text class="label" x="{label_width - 8}" y="{y + 13}">{escape(_short(row.label))}</text>')
        length = bar_width * row.value / most
        parts.append(f'<rect class="bar" x="{label_width}" y="{y}" width="{length:.1f}" height="18" rx="2"/>')
        if row.low is not None and row.high is not None:
            start, end = (label_width + bar_width * value / most for value in (row.low, row.high))
            parts.append(f'<path class="spread" d="M{start:.1f} {middle}H{end:.1f}"/>')
        if row.floor is not None:
            x = label_width + bar_width * row.floor / most
            parts.append(f'<path class="floor" d="M{x:.1f} {y - 2}V{y + 20}"/>')
        parts.append(f'<text class="value" x="{_WIDTH}" y="{y + 13}">{number(row.value)}</text>')
    note = " The line across a bar is the machine's floor." if any(row.floor is not None for row in rows) else ""
    return _figure(title + "." + note, len(rows) * _STEP + 4, parts)


def lines(title: str, x_name: str, series: dict[str, Sequence[tuple[float, float]]]) -> str:
    """A chart of lines over two logarithmic axes, as SVG text.

    Args:
        title: its caption.
        x_name: what lies along the horizontal axis.
        series: points (x, y) by name. Those that are not above 0 are left out.
    """
    series = {name: [point for point in points if min(point) > 0] for name, points in series.items()}
    points = [point for found in series.values() for point in found]
    if not points:
        return ""
    left, right, top, bottom = 70, _WIDTH - 130, 12, 220
    (x_low, x_high), (y_low, y_high) = (
        (math.log(min(values)), math.log(max(values))) for values in zip(*points, strict=True)
    )

    def place(point: tuple[float, float]) -> tuple[float, float]:
        x = (math.log(point[0]) - x_low) / (x_high - x_low or 1)
        y = (math.log(point[1]) - y_low) / (y_high - y_low or 1)
        return left + x * (right - left), bottom - y * (bottom - top)

    parts = [f'<path class="axis" d="M{left} {top}V{bottom}H{right}"/>']
    for value in sorted({x for x, _ in points}):
        x = place((value, math.exp(y_low)))[0]
        parts.append(f'<text class="tick" x="{x:.1f}" y="{bottom + 16}">{number(value)}</text>')
    for value in (math.exp(y_low), math.exp(y_high)):
        y = place((math.exp(x_low), value))[1]
        parts.append(f'<text class="label" x="{left - 8}" y="{y + 4:.1f}">{number(value)}</text>')
    for index, (name, found) in enumerate(series.items()):
        if not found:
            continue
        placed = [place(point) for point in sorted(found)]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in placed)
        parts.append(f'<path class="line l{index % 6}" d="M{path}"/>')
        parts += [f'<circle class="dot l{index % 6}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>' for x, y in placed]
        x, y = placed[-1]
        shown = escape(_short(name, 18))
        parts.append(f'<text class="name l{index % 6}" x="{x + 8:.1f}" y="{y + 4:.1f}">{shown}</text>')
    parts.append(f'<text class="tick" x="{(left + right) / 2}" y="{bottom + 34}">{escape(x_name)}</text>')
    return _figure(f"{title}. Both axes are logarithmic.", bottom + 42, parts)


def _figure(caption: str, height: int, parts: list[str]) -> str:
    return (
        f'<figure><svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(caption)}">{"".join(parts)}</svg>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _short(text: str, most: int = 40) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def number(value: float) -> str:
    """A number with at least three digits that count, and no more than needed."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"
