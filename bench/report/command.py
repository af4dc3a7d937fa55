"""`mssts bench report`: all records as one page, and the README's figures."""

from __future__ import annotations

import argparse
from pathlib import Path

from mssts.files import atomic_path

HELP = "all records as one self-contained HTML page"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument(
        "records", nargs="*", type=Path, metavar="FILE|FOLDER", default=[Path("bench/results")],
        help="records, or folders of them (default: bench/results)",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.html", help="the page")
    parser.add_argument("--readme", type=Path, metavar="README.md", help="also write the figures between its marks")


def run(arguments: argparse.Namespace) -> None:
    """Writes the page, and the README's figures if asked."""
    from mssts.bench.records import read_records
    from mssts.bench.report.figures import write
    from mssts.bench.report.page import render

    records = read_records(arguments.records)
    page = render(records)
    with atomic_path(arguments.out) as path:
        path.write_text(page, encoding="utf-8")
    print(f"wrote {arguments.out}: {len(records)} records, {len(page) / 1e3:.0f} kB")
    if arguments.readme is not None:
        write(arguments.readme, records)
        print(f"wrote the figures of {arguments.readme}")
