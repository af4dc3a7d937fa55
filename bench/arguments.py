"""Arguments that several benchmarks share."""

from __future__ import annotations

import argparse

from mssts.errors import MsstsError


def frame_size(text: str) -> tuple[int, int]:
    """(height, width) in pixels of what `--size` says.

    Raises:
        MsstsError: it is not HEIGHTxWIDTH, each at least 8.
    """
    sides = text.lower().split("x")
    if len(sides) != 2 or not all(side.isdigit() and int(side) >= 8 for side in sides):
        raise MsstsError(f"--size {text}: expected HEIGHTxWIDTH in pixels, such as 360x640")
    return int(sides[0]), int(sides[1])


def check_positive(arguments: argparse.Namespace, *names: str) -> None:
    """Raises MsstsError for the first of the named arguments that is below 1."""
    for name in names:
        if getattr(arguments, name) < 1:
            raise MsstsError(f"--{name} is {getattr(arguments, name)}; expected at least 1")
