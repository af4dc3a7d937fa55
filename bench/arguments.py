"""Arguments that several benchmarks share."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from mssts.bench.plotting import FORMATS, pyplot
from mssts.bench.records import DEFAULT_FOLDER
from mssts.errors import MsstsError


def frame_size(text: str) -> tuple[int, int]:
    """(height, width) in pixels of what `--size` says.

    Raises:
        MsstsError: it is not HEIGHTxWIDTH, each at least 8.
    """
    sides = text.lower().split("x")
    if len(sides) != 2 or not all(side.isdecimal() and int(side) >= 8 for side in sides):
        raise MsstsError(f"--size {text}: expected HEIGHTxWIDTH in pixels, such as 360x640")
    return int(sides[0]), int(sides[1])


def check_positive(arguments: argparse.Namespace, *names: str) -> None:
    """Raises MsstsError for the first of the named arguments that is below 1."""
    for name in names:
        if getattr(arguments, name) < 1:
            raise MsstsError(f"--{name.replace('_', '-')} is {getattr(arguments, name)}; expected at least 1")


def check_outputs(arguments: argparse.Namespace) -> None:
    """Checks that the record and the pictures that are asked for can be written.

    Measurements take minutes, and would be lost.

    Raises:
        MsstsError: one cannot.
    """
    out = arguments.out or DEFAULT_FOLDER
    _check_file("--out", out / "record.json" if out.is_dir() or arguments.out is None else out)
    sheet, plot = (getattr(arguments, name, None) for name in ("sheet", "plot"))
    if sheet is not None:
        _check_file("--sheet", sheet)
    if plot is not None:
        _check_file("--plot", plot)
        if plot.suffix.lower() not in FORMATS:
            raise MsstsError(f"--plot {plot}: expected a file that ends in {', '.join(FORMATS)}")
        pyplot()


def _check_file(option: str, path: Path) -> None:
    if path.is_dir():
        raise MsstsError(f"{option} {path}: is a folder; expected the name of a file to write")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir():
        raise MsstsError(f"{option} {path}: {folder} is a file; expected a folder there")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise MsstsError(f"{option} {path}: cannot be written: no permission in {folder}")
