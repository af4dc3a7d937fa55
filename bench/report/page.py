"""The page of all records: one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from mssts.bench.records import Record, is_number
from mssts.bench.report.charts import Bar, bars, lines, number
from mssts.bench.report.style import STYLE

_TITLES = {
    "demo": "The demo: the whole chain through Triton",
    "fps": "Whole engines: time of a clip",
    "fps-switches": "Whole engines with and without each switch",
    "gpu_model": "What a GPU would need, by the compiler and by arithmetic",
    "kernels": "The two custom ops",
    "load": "A server under load",
    "stream": "Streams: a file, viewers, a camera",
    "switches": "What each switch of the model costs",
    "profile": "Where the time of a clip goes",
    "scaling": "How time and memory grow",
    "ap": "Average precision",
    "linking": "Linking windows to tracks",
    "ablation": "What the paper's parts bring",
    "compare": "Two records side by side",
    "soak": "Minutes of load",
}
_NAMES = (
    "runner", "variant", "precision", "workload", "dtype", "direction", "threads", "impl", "mode", "concurrency",
    "rate", "name", "kernel", "implementation", "architecture", "configuration", "seed", "scope", "axis", "value",
    "gpu", "model", "offset_pixels",
)  # fmt: skip
_LENGTHS = (
    ("ms_median", "Milliseconds, median; the thin line is p5 to p95"),
    ("ms_p50", "Milliseconds, median"),
    ("ms", "Milliseconds"),
    ("least_ms", "Milliseconds, least possible"),
    ("ap", "AP"),
    ("instructions_per_point", "Instructions a point"),
    ("ratio", "Ratio"),
)
_MOST_BARS = 40


def render(records: Sequence[Record]) -> str:
    """The HTML of the page."""
    links = "".join(
        f'<a href="#{index}" title="{escape(record.path.stem)}">{escape(_TITLES.get(record.what, record.what))}</a>'
        for index, record in enumerate(records)
    )
    sections = "".join(_section(index, record) for index, record in enumerate(records))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><title>MS-STS VIS: measurements</title>'
        f'<link rel="icon" href="data:,"><style>{STYLE}</style></head><body><h1>MS-STS VIS: measurements</h1>'
        "<p>Each section is one record, as a benchmark wrote it, on the machine it names. Times of different machines "
        f"are not to be compared.</p><nav>{links}</nav>{sections}</body></html>\n"
    )


def _section(index: int, record: Record) -> str:
    value = record.value
    versions = ", ".join(f"{name} {version}" for name, version in value.get("versions", {}).items())
    parts = [
        f'<section id="{index}"><h2>{escape(_TITLES.get(record.what, record.what))}</h2>',
        f'<p class="from">{escape(record.path.name)} · {escape(record.machine)} · commit '
        f"{escape(str(value.get('commit', 'unknown')))}</p>",
    ]
    settings = {key: shown for key, found in value.items() if (shown := _setting(key, found))}
    if settings:
        listed = " · ".join(f"{escape(key.replace('_', ' '))}: {escape(shown)}" for key, shown in settings.items())
        parts.append(f'<p class="from">{listed}</p>')
    for name, rows in record.tables.items():
        parts.append(_chart(rows))
        parts.append(_table(name, rows))
    absent = value.get("not_measured") or value.get("absent") or []
    if isinstance(absent, list) and absent:
        reasons = "".join(f"<li>{escape(_absent(entry))}</li>" for entry in absent)
        parts.append(f"<details><summary>Not measured here: {len(absent)}</summary><ul>{reasons}</ul></details>")
    parts.append(f"<details><summary>Versions</summary><p>{escape(versions)}</p></details></section>")
    return "".join(parts)


def _setting(key: str, value: Any) -> str:
    """A setting of the record in a few words, empty for what is none."""
    if key in ("benchmark", "commit") or isinstance(value, (dict, bool)) or value is None:
        return ""
    if isinstance(value, list):
        return "×".join(map(str, value)) if value and all(isinstance(x, int) for x in value) else ""
    return number(value) if isinstance(value, float) else str(value)


def _absent(entry: Any) -> str:
    if not isinstance(entry, dict):
        return str(entry)
    named = " ".join(str(entry[key]) for key in _NAMES if entry.get(key))
    return f"{named or entry.get('name', '')}: {entry.get('reason', '')}"


def _chart(rows: list[dict[str, Any]]) -> str:
    if all({"axis", "value"} <= row.keys() for row in rows):
        return _growth(rows)
    for key, title in _LENGTHS:
        measured = [row for row in rows if is_number(row.get(key)) and row[key] >= 0]
        if measured and len(measured) <= _MOST_BARS:
            return bars(
                title,
                [
                    Bar(label(row), row[key], *(_known(row.get(other)) for other in ("floor_ms", "ms_p5", "ms_p95")))
                    for row in measured
                ],
            )
    return ""


def _known(value: Any) -> float | None:
    return value if is_number(value) else None


def _growth(rows: list[dict[str, Any]]) -> str:
    """A chart of milliseconds for each axis along which something grows."""
    charts = []
    for axis in dict.fromkeys(str(row["axis"]) for row in rows):
        points = [
            (float(row["value"]), float(row["ms_median"])) for row in rows
            if str(row["axis"]) == axis and is_number(row["value"]) and is_number(row.get("ms_median"))
        ]  # fmt: skip
        charts.append(lines(f"Milliseconds by {axis}", axis, {"time": points}))
    return "".join(charts)


def label(row: dict[str, Any]) -> str:
    """What a row is of, in a few words."""
    named = [str(row[key]) for key in _NAMES if row.get(key) not in (None, "")]
    if row.get("in_flight", 1) != 1:
        named.append(f"{row['in_flight']} in flight")
    return " ".join(named) or "–"


def _table(name: str, rows: list[dict[str, Any]]) -> str:
    columns = [
        key for key in dict.fromkeys(key for row in rows for key in row)
        if not all(isinstance(row.get(key), (dict, list)) or row.get(key) in (None, "") for row in rows)
    ]  # fmt: skip
    align = {
        key: " class=text" if any(isinstance(row.get(key), (str, bool)) for row in rows) else "" for key in columns
    }
    head = "".join(f"<th{align[key]}>{escape(key.replace('_', ' '))}</th>" for key in columns)
    body = "".join(
        f"<tr>{''.join(f'<td{align[key]}>{_cell(row.get(key))}</td>' for key in columns)}</tr>" for row in rows
    )
    opened = " open" if len(rows) <= _MOST_BARS else ""
    return (
        f"<details{opened}><summary>{escape(name)}: {len(rows)}</summary><div class=scroll><table>"
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div></details>"
    )


def _cell(value: Any) -> str:
    if value is None or isinstance(value, (dict, list)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return number(value)
    return escape(str(value))
