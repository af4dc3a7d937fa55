"""`mssts repo`: model repositories for a Triton server of your own."""

from __future__ import annotations

import argparse
from pathlib import Path

from mssts.artefact import Kind
from mssts.manifest import FixedShape
from mssts.runners import AUTO, runner_help
from mssts.serving import NONE, USUAL

HELP = "write a model repository for a Triton server that is not `mssts serve`"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the subcommand's options."""
    subparsers = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    build_help = "write a folder that holds an engine, the models around it and their configurations"
    build = subparsers.add_parser("build", help=build_help, description=build_help)
    build.add_argument(
        "--artefact", type=Path, required=True, metavar="DIR",
        help="the folder that `mssts export`, `quantize` or `build-engine` wrote",
    )  # fmt: skip
    build.add_argument(
        "--target", required=True,
        help="who runs the engine: python (any artefact), or Triton's own backend onnxruntime (an export) or tensorrt "
        "(a plan)",
    )  # fmt: skip
    build.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to make; absent or empty")
    build.add_argument(
        "--seen-at", type=Path, metavar="PATH",
        help="the folder's path on the server, where that is another (default: that of --out)",
    )  # fmt: skip
    build.add_argument("--threads", type=int, metavar="N", help="cores for the engine (default: all)")
    build.add_argument("--runner", default=AUTO, help=f"of the target python: {runner_help(Kind.ONNX)}")
    build.add_argument(
        "--warm", metavar="BxTxHxW", default=USUAL,
        help="run this input shape once before the server is ready, or none (default: the one that the engine is for)",
    )  # fmt: skip
    build.add_argument(
        "--max-queue",
        type=int,
        default=2,
        metavar="N",
        help="clips that may wait for the engine (default: %(default)s)",
    )
    build.add_argument(
        "--max-queue-seconds", type=float, default=30.0, metavar="SECONDS",
        help="a clip that has waited longer is refused, 0 for no limit; target python (default: %(default)g)",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> None:
    """Builds and prints how to serve it."""
    from mssts.serving.admission import QueueLimits
    from mssts.serving.build import Options, build_repository
    from mssts.serving.model_config import MODELS

    warm = arguments.warm if arguments.warm in (USUAL, NONE) else FixedShape.parse("--warm", arguments.warm)
    options = Options(
        target=arguments.target,
        threads=arguments.threads,
        runner=arguments.runner,
        warm=warm,
        queue=QueueLimits(arguments.max_queue, arguments.max_queue_seconds),
        seen_at=arguments.seen_at,
    )
    built = build_repository(arguments.artefact, arguments.out, options)
    print(f"wrote {arguments.out}: {', '.join(MODELS)}; the engine runs in Triton's backend {arguments.target}")
    print(f"  our kernels: {built.kernels}")
    place = arguments.seen_at or arguments.out.absolute()
    flags = ("--model-control-mode=none", "--disable-auto-complete-config", *built.flags)
    print(f"  tritonserver --model-repository={place} {' '.join(flags)}")
