"""`mssts bench linking`: quality of linking on long videos, against an oracle."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mssts.bench.arguments import check_outputs
from mssts.errors import MsstsError

HELP = "quality of linking on long videos, against an oracle that knows the identities"

# The demo's held-out set, and seeds that the options of linking were not chosen on.
_SETS = ("20220:40x12", "910001:16x150", "910003:16x150", "910002:8x300", "910004:8x300")
_SHARES = {"ap": "AP", "ap50": "AP50", "ap75": "AP75", "hota": "HOTA", "det_a": "DetA", "ass_a": "AssA", "idf1": "IDF1"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's arguments."""
    parser.add_argument(
        "--model", type=Path, required=True, metavar="PATH", help="an export of `tiny`, or a checkpoint"
    )
    parser.add_argument(
        "--sets", nargs="+", default=_SETS, metavar="SEED:VIDEOSxFRAMES", help="default: " + " ".join(_SETS)
    )
    parser.add_argument(
        "--cache", type=Path, metavar="DIR", help="keep what the engine found there, and take it from there"
    )
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="file or folder (default: into runs/bench)")


def run(arguments: argparse.Namespace) -> None:
    """Measures, prints the table and writes the file."""
    from mssts.bench.linking.measurement import measure_linking, pooled, windows_of
    from mssts.bench.records import save_record
    from mssts.categories import map_by_name
    from mssts.data.moving_shapes import CATEGORIES
    from mssts.prediction.tracking import LinkOptions
    from mssts.segmenters import load

    check_outputs(arguments)
    sets = [_parsed(text) for text in arguments.sets]
    with load(arguments.model) as segmenter:
        map_by_name(segmenter.manifest.categories, CATEGORIES, "MovingShapes")  # refused now, not in minutes
        found = {spec: windows_of(segmenter, *spec, arguments.cache) for spec in sets}
        engine = segmenter.describe()
    rows = []
    for frames in sorted({spec[2] for spec in sets}):
        rows += measure_linking(pooled([found[spec] for spec in sets if spec[2] == frames]), frames)
    print_linking(rows)
    report = {"engine": engine, "sets": list(arguments.sets), "options": asdict(LinkOptions()), "rows": rows}
    save_record("linking", report, arguments.out)


def print_linking(rows: Sequence[dict[str, Any]]) -> None:
    """The rows as a table, in percent."""
    print(f"{'frames':>6} {'linking':20}" + "".join(f"{name:>7}" for name in (*_SHARES.values(), "switch", "tracks")))
    for row in rows:
        shares = "".join(f"{100 * row[name]:7.1f}" for name in _SHARES)
        print(f"{row['frames']:6} {row['linking']:20}{shares}{row['id_switches']:7}{row['tracks']:7}")


def _parsed(text: str) -> tuple[int, int, int]:
    match = re.fullmatch(r"(\d+):([1-9]\d*)x([1-9]\d*)", text)
    if match is None:
        raise MsstsError(f"--sets {text}: expected SEED:VIDEOSxFRAMES, such as {_SETS[0]}")
    return int(match[1]), int(match[2]), int(match[3])
