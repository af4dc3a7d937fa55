"""`mssts bench`: figures of anything that runs, each also in a JSON file.

A benchmark is a module with three things, as a command is: `HELP` (one line), `add_arguments(parser)` and
`run(arguments)`, which returns an exit code or None for 0. It imports nothing heavy at its top.
"""

from __future__ import annotations

import argparse
from importlib import import_module

HELP = "measure engines, kernels, servers and accuracy; render and compare what was measured"

BENCHMARKS = {
    "ablation": "mssts.bench.ablation.command",
    "ap": "mssts.bench.ap.command",
    "compare": "mssts.bench.compare",
    "fps": "mssts.bench.fps.command",
    "gpu-model": "mssts.bench.gpu_model.command",
    "kernels": "mssts.bench.kernels.command",
    "linking": "mssts.bench.linking.command",
    "load": "mssts.bench.load",
    "profile": "mssts.bench.profile.command",
    "report": "mssts.bench.report.command",
    "scaling": "mssts.bench.scaling.command",
    "stream": "mssts.bench.stream.command",
    "switches": "mssts.bench.switches",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments: those of each benchmark."""
    benchmarks = parser.add_subparsers(dest="benchmark", metavar="BENCHMARK", required=True)
    for name, path in BENCHMARKS.items():
        module = import_module(path)
        benchmark = benchmarks.add_parser(name, help=module.HELP, description=module.HELP)
        module.add_arguments(benchmark)
        benchmark.set_defaults(run_benchmark=module.run)


def run(arguments: argparse.Namespace) -> int:
    """Runs the chosen benchmark."""
    return int(arguments.run_benchmark(arguments) or 0)
