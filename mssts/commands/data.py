"""`mssts data`: makes data sets."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

HELP = "make a data set: synth (MovingShapes, synthetic, in YouTube-VIS format)"


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not WIDTHxHEIGHT, for example 256x144")
    return int(match[1]), int(match[2])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds one subparser for each way to make a data set."""
    subparsers = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    synth_help = "write MovingShapes videos: JPEG frames and instances.json; a function of the seed"
    synth = subparsers.add_parser("synth", help=synth_help, description=synth_help)
    synth.add_argument("--videos", type=int, required=True, metavar="N", help="number of videos")
    synth.add_argument("--seed", type=int, required=True, metavar="S", help="which set; equal seeds, equal bytes")
    synth.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to make; absent or empty")
    synth.add_argument("--frames", type=int, default=12, metavar="T", help="frames a video (default %(default)s)")
    synth.add_argument("--size", type=_size, default=(256, 144), metavar="WxH", help="of a frame (default 256x144)")
    synth.set_defaults(action_run=_synth)


def run(arguments: argparse.Namespace) -> None:
    """Runs the chosen subcommand."""
    arguments.action_run(arguments)


def _synth(arguments: argparse.Namespace) -> None:
    from mssts.data.moving_shapes import MovingShapesConfig, write_dataset

    width, height = arguments.size
    config = MovingShapesConfig(width=width, height=height, length=arguments.frames)
    annotations = write_dataset(arguments.out, arguments.videos, arguments.seed, config)
    print(f"{arguments.videos} videos of {arguments.frames} frames: {annotations}")
