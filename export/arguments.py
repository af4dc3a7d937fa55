"""Options that `mssts export`, `quantize` and `build-engine` share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from mssts.commands.options import add_exif

if TYPE_CHECKING:
    from mssts.export.average_precision import ApGate


def add_gate(parser: argparse.ArgumentParser, data: str) -> None:
    """Adds `--data`, `--exif` and `--max-ap-drop`.

    `data` says whose AP is measured.
    """
    parser.add_argument(
        "--data", type=Path, metavar="JSON",
        help=f"a small data set with ground truth, YouTube-VIS or COCO-video: AP on it, {data}",
    )  # fmt: skip
    add_exif(parser)
    parser.add_argument(
        "--max-ap-drop", type=float, default=0.5, metavar="POINTS",
        help="with --data: points of AP that may be lost, else exit code 1 (default: %(default)s)",
    )  # fmt: skip


def gate_of(arguments: argparse.Namespace) -> ApGate | None:
    """The gate that the options of `add_gate` ask for.

    Raises:
        MsstsError: `--max-ap-drop` is out of range.
    """
    from mssts.export.average_precision import ApGate

    return None if arguments.data is None else ApGate(arguments.data, arguments.max_ap_drop / 100, arguments.exif)


def add_reuse(parser: argparse.ArgumentParser) -> None:
    """`--reuse`, by the rule of `mssts.export.existing`."""
    parser.add_argument(
        "--reuse",
        action="store_true",
        help="do nothing if --out holds the same already: same input, options and code, files unchanged",
    )
