"""The table of one part of `bench/gpu_session.sh`.

`python bench/gpu_summary.py FOLDER STEPS` reads what is there, whatever is not, and imports nothing but the
standard library.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_TESTS = re.compile(r"\d+ (?:passed|failed|error|skipped)|^FAILED |^ERROR |(?:ERROR|RACECHECK) SUMMARY|^==ERROR==")
_MOST_LINES = 40


def lines(folder: Path, steps: Path) -> Iterator[str]:
    """What happened, what the logs say, and the figures."""
    yield from (steps.read_text().splitlines() if steps.exists() else ["no step was run"])
    for path in sorted([*folder.glob("*.log"), *folder.glob("ncu.txt")]):
        found = [line.strip("= \n") for line in path.read_text(errors="replace").splitlines() if _TESTS.search(line)]
        yield from (f"{path.name}: {line[:150]}" for line in found[:_MOST_LINES])
    yield from _clocks(folder / "clocks.csv")
    for path in sorted(folder.glob("*.json")):
        try:
            report = json.loads(path.read_text())
        except ValueError as error:
            yield f"{path.name}: not whole ({error})"
            continue
        yield ""
        yield f"{path.name}: commit {report.get('commit')}, libraries {_libraries(report)}"
        for row in report.get("rows", []):
            yield _row(row)
        for entry in report.get("not_measured", []):
            yield f"  {entry['runner']:22} {entry['precision']:9} {entry['reason'][:120]}"


def _libraries(report: dict[str, Any]) -> str:
    return ", ".join(f"{name} {digest[:12]}" for name, digest in report.get("libraries", {}).items()) or "none"


def _row(row: dict[str, Any]) -> str:
    if "runner" in row:
        many = f" {row['in_flight']} in flight" if row["in_flight"] > 1 else ""
        name = f"{row['runner']} {row['variant']} {row['precision']} {row['scope']}{many}"
        return f"  {name:58} {row['ms_median']:9.3f} ms {row['frames_per_second']:9.1f} frames/s"
    name = f"{row['workload']} {row['dtype']} {row['direction']} {row.get('cache', '')}"
    if row["wrong"]:
        return f"  {name:58} {row['impl']:22} WRONG: {row['wrong'][:80]}"
    return f"  {name:58} {row['impl']:22} {row['ms_median']:9.4f} ms {row['gb_per_s'] or 0:7.0f} GB/s"


def _clocks(path: Path) -> Iterator[str]:
    """The range of the SM clock while the part ran."""
    if not path.exists():
        return
    found = [int(word) for word in re.findall(r"\b(\d+) MHz", path.read_text(errors="replace"))]
    if found:
        yield f"clocks.csv: {len(found)} samples, SM and memory between {min(found)} and {max(found)} MHz"


if __name__ == "__main__":
    print("\n".join(lines(Path(sys.argv[1]), Path(sys.argv[2]))))
