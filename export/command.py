"""`mssts export`: checkpoint → model.onnx + manifest.json."""

from __future__ import annotations

import argparse
from pathlib import Path

from mssts.errors import MsstsError
from mssts.export.arguments import add_gate, add_reuse, gate_of
from mssts.manifest import FixedShape, Manifest
from mssts.runners import best_precision

HELP = "export a checkpoint to ONNX, with a parity report"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("checkpoint", type=Path, nargs="?", help="one of `mssts train`, or of the released code")
    parser.add_argument("--out", type=Path, required=True, help="folder for model.onnx and manifest.json")
    parser.add_argument("--preset", help="refuse a checkpoint of any other; with --random-weights: the model")
    parser.add_argument(
        "--random-weights",
        action="store_true",
        help="no checkpoint: the preset's model untrained, to measure its speed",
    )
    parser.add_argument(
        "--precision",
        default="fp32",
        help="of the graph: fp32, fp16, bf16, or auto: the fastest on the processor of this machine "
        "(default: %(default)s, which runs everywhere)",
    )
    parser.add_argument(
        "--shape", metavar="BxTxHxW", help="the one input shape, as 1x5x360x640 (default: any number, length and size)"
    )
    parser.add_argument(
        "--no-functions",
        action="store_true",
        help="leave the ops' definitions out: only our kernels and plugins run it",
    )
    parser.add_argument(
        "--resize-inside",
        action="store_true",
        help="frames of any size in: the engine resizes them, which moves that work from the processor to a GPU",
    )
    parser.add_argument("--top-k", type=int, help="instances the engine keeps (default: the preset's)")
    add_gate(parser, "in PyTorch and of the export")
    add_reuse(parser)


def run(arguments: argparse.Namespace) -> int:
    """Exports and prints the parity report."""
    from mssts.export.existing import existing_export
    from mssts.export.exporter import export_checkpoint, export_model
    from mssts.export.options import ExportOptions
    from mssts.model.config import preset
    from mssts.model.random_weights import random_checkpoint

    shape = FixedShape.parse("--shape", arguments.shape)
    precision = arguments.precision
    if precision == "auto":
        precision, reason = best_precision()
        print(f"exporting in {precision}: {reason}", flush=True)
    options = ExportOptions(
        precision, shape, not arguments.no_functions, arguments.top_k, resize=arguments.resize_inside
    )
    gate = gate_of(arguments)
    if arguments.random_weights:
        if arguments.checkpoint is not None or arguments.preset is None:
            raise MsstsError("--random-weights takes --preset NAME and no checkpoint")
        if gate is not None:
            raise MsstsError("--random-weights find nothing whose AP --data could score; leave one of the two out")
        manifest = export_model(random_checkpoint(preset(arguments.preset)), arguments.out, options)
        _print(manifest, arguments.out, "wrote")
        return 0
    if arguments.checkpoint is None:
        raise MsstsError("no checkpoint given; name one, or pass --preset NAME --random-weights to measure speed alone")
    kept = existing_export(arguments.checkpoint, arguments.out, options, gate) if arguments.reuse else None
    manifest = kept or export_checkpoint(arguments.checkpoint, arguments.out, arguments.preset, options, gate)
    _print(manifest, arguments.out, "kept" if kept else "wrote")
    return 0


def _print(manifest: Manifest, out: Path, verb: str) -> None:
    from mssts.export.average_precision import ap_lines
    from mssts.export.parity import parity_lines

    parity = manifest.checks["parity"]
    shape = "any shape" if manifest.shape is None else str(manifest.shape)
    print(f"{verb} {out / manifest.artefact}: {manifest.preset}, {manifest.precision}, {shape}, top {manifest.top_k}")
    print(f"parity with PyTorch over {parity['compared']} instances (error against fp64; a faithful engine's bound):")
    for line in parity_lines(parity):
        print(f"  {line}")
    print(f"  thresholded masks agree to an IoU of {parity['mask_iou']:.6f} (≥ {parity['mask_iou_bound']:.6f})")
    for line in ap_lines(manifest.checks):
        print(line)
