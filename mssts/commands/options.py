"""Options that several commands share."""

from __future__ import annotations

import argparse


def add_exif(parser: argparse.ArgumentParser) -> None:
    """`--exif`, of every command that reads a data set's frames."""
    parser.add_argument(
        "--exif", choices=("apply", "ignore"),
        help="whether images are turned as their EXIF orientation says, or read as stored (default: apply; an image of "
        "a data set with masks that has one is refused until this is given)",
    )  # fmt: skip
