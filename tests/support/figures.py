"""Figures of soak tests, kept in a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mssts.files import write_json
from mssts.provenance import provenance

FIGURES = Path("runs/soak.json")


def record(name: str, figures: dict[str, Any]) -> None:
    """Prints figures and adds them to the file."""
    print(f"\n{name}: {json.dumps(figures)}")
    known = json.loads(FIGURES.read_text())["rows"] if FIGURES.exists() else []
    FIGURES.parent.mkdir(exist_ok=True)
    rows = [*(row for row in known if row["name"] != name), {"name": name, **figures}]
    write_json(FIGURES, {"benchmark": "soak", "rows": rows, **provenance()})
