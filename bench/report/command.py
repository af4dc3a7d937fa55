"""`mssts bench report`: all records as one page, and the README's figures."""

from __future__ import annotations

import argparse
from pathlib import Path

from mssts.files import write_text

HELP = "all records as one self-contained HTML page"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument(
        "records", nargs="*", type=Path, metavar="FILE|FOLDER", default=[Path("bench/results")],
        help="records, or folders of them (default: bench/results)",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.html", help="the page")
    parser.add_argument(
        "--readme", nargs="+", default=[], type=Path, metavar="PAGE.md",
        help="also write the figures between the marks of these pages",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> None:
    """Writes the page, and the figures of Markdown pages if asked."""
    from mssts.bench.records import read_records
    from mssts.bench.report.marks import rewritten
    from mssts.bench.report.page import render

    records = read_records(arguments.records)
    page = render(records)
    pages = {
        path: rewritten(path, records) for path in arguments.readme
    }  # all that can fail, before anything is written
    write_text(arguments.out, page)
    print(f"wrote {arguments.out}: {len(records)} records, {len(page) / 1e3:.0f} kB")
    for path, text in pages.items():
        write_text(path, text)
        print(f"wrote the figures of {path}")
