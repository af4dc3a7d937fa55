"""`mssts export`: checkpoint → model.onnx + manifest.json."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mssts.manifest import Manifest

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
    parser.add_argument("--top-k", type=int, help="instances the engine keeps (default: the preset's)")
    parser.add_argument(
        "--data", type=Path, metavar="JSON",
        help="a small data set with ground truth, YouTube-VIS or COCO-video: AP on it, in PyTorch and of the export",
    )  # fmt: skip
    parser.add_argument(
        "--max-ap-drop", type=float, default=0.5, metavar="POINTS",
        help="with --data: points of AP that the export may lose, else exit code 1 (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--reuse", action="store_true", help="do nothing if --out holds this export already")


def run(arguments: argparse.Namespace) -> int:
    """Exports and prints the parity report."""
    from mssts.errors import MsstsError
    from mssts.export.average_precision import ApGate
    from mssts.export.existing import existing_export
    from mssts.export.exporter import export_checkpoint, export_model
    from mssts.export.options import ExportOptions
    from mssts.manifest import FixedShape
    from mssts.model.config import preset
    from mssts.model.random_weights import random_checkpoint
    from mssts.runners import best_precision

    shape = FixedShape.parse("--shape", arguments.shape)
    precision = arguments.precision
    if precision == "auto":
        precision, reason = best_precision()
        print(f"exporting in {precision}: {reason}", flush=True)
    options = ExportOptions(precision, shape, not arguments.no_functions, arguments.top_k)
    gate = None if arguments.data is None else ApGate(arguments.data, arguments.max_ap_drop / 100)
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
    found = existing_export(arguments.checkpoint, arguments.out, options, gate) if arguments.reuse else None
    if found is not None:
        _print(found, arguments.out, "kept")
    else:
        made = export_checkpoint(arguments.checkpoint, arguments.out, arguments.preset, options, gate)
        _print(made, arguments.out, "wrote")
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
