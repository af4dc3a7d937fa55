"""`mssts data`: makes data sets."""

from __future__ import annotations

import argparse
import re
import sys
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
    synth.add_argument(
        "--version", type=int, choices=(0, 1), default=0,
        help="1: ten classes and seven scenarios, see docs/moving-shapes.md (default %(default)s: five classes)",
    )  # fmt: skip
    synth.add_argument(
        "--split", choices=("train", "val", "test"), help="a frozen part of version 1, instead of --videos and --seed"
    )
    synth.add_argument("--videos", type=int, metavar="N", help="number of videos")
    synth.add_argument("--seed", type=int, metavar="S", help="which set; equal seeds, equal bytes")
    synth.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to make; absent or empty")
    synth.add_argument("--frames", type=int, metavar="T", help="frames a video (default 12, in version 1 16)")
    synth.add_argument("--size", type=_size, metavar="WxH", help="of a frame (default 256x144)")
    synth.set_defaults(action_run=_synth)


def run(arguments: argparse.Namespace) -> None:
    """Runs the chosen subcommand."""
    arguments.action_run(arguments)


def _synth(arguments: argparse.Namespace) -> None:
    from mssts.data.moving_shapes import MovingShapes1Config, MovingShapesConfig, write_dataset
    from mssts.errors import MsstsError

    if arguments.split is not None:
        _synth_split(arguments)
        return
    for name in ("videos", "seed"):
        if getattr(arguments, name) is None:
            raise MsstsError(f"--{name} is missing; pass it, or --version 1 --split train, val or test")
    make = MovingShapes1Config if arguments.version == 1 else MovingShapesConfig
    width, height = arguments.size or (make.width, make.height)
    length = make.length if arguments.frames is None else arguments.frames
    config = make(width=width, height=height, length=length)
    annotations = write_dataset(arguments.out, arguments.videos, arguments.seed, config)
    print(f"{arguments.videos} videos of {length} frames: {annotations}")


def _synth_split(arguments: argparse.Namespace) -> None:
    from mssts.data.moving_shapes import SPLITS, write_split
    from mssts.errors import MsstsError

    if arguments.version != 1:
        raise MsstsError(f"--split {arguments.split}: only version 1 has splits; pass --version 1 as well")
    for name in ("videos", "seed", "frames", "size"):
        if getattr(arguments, name) is not None:
            raise MsstsError(f"--{name} and --split {arguments.split}: a split is frozen; leave one of them out")
    annotations, frozen = write_split(arguments.out, arguments.split)
    print(f"{SPLITS[arguments.split].videos} videos of the split {arguments.split}: {annotations}")
    if not frozen:
        print(
            "warning: these videos differ from the frozen ones, because the libraries of this machine round "
            "otherwise; figures on them are close to those published, but not equal",
            file=sys.stderr,
        )
