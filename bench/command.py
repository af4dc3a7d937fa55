"""`mssts bench`: figures of anything that runs, each also in a JSON file."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "measure: switches (what each of the paper's additions costs)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    benchmarks = parser.add_subparsers(dest="benchmark", metavar="BENCHMARK", required=True)
    switches = benchmarks.add_parser("switches", help="parameters and time of each of the paper's additions")
    switches.add_argument("--preset", default="mssts_r50", help="default: %(default)s")
    switches.add_argument("--size", default="360x640", metavar="HxW", help="of the frames (default: %(default)s)")
    switches.add_argument("--frames", type=int, default=5, help="of a clip (default: %(default)s)")
    switches.add_argument("--repeats", type=int, default=5, help="forward passes of each (default: %(default)s)")
    switches.add_argument("--out", type=Path, help="JSON file for the figures")


def run(arguments: argparse.Namespace) -> None:
    """Runs the chosen benchmark."""
    from bench.switches import measure_switches, print_switches
    from mssts.errors import MsstsError
    from mssts.files import write_json
    from mssts.model.config import preset

    sides = arguments.size.lower().split("x")
    if len(sides) != 2 or not all(side.isdigit() and int(side) >= 8 for side in sides):
        raise MsstsError(f"--size {arguments.size}: expected HEIGHTxWIDTH in pixels, such as 360x640")
    for name in ("frames", "repeats"):
        if getattr(arguments, name) < 1:
            raise MsstsError(f"--{name} is {getattr(arguments, name)}; expected at least 1")
    report = measure_switches(
        preset(arguments.preset), (int(sides[0]), int(sides[1])), arguments.frames, arguments.repeats
    )
    print_switches(report)
    if arguments.out is not None:
        write_json(arguments.out, report)
        print(f"wrote {arguments.out}")
