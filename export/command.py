"""`mssts export`: checkpoint → model.onnx + manifest.json."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "export a checkpoint to ONNX, with a parity report"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("checkpoint", type=Path, help="a checkpoint that `mssts train` wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder for model.onnx and manifest.json")
    parser.add_argument("--preset", help="refuse a checkpoint of any other preset")
    parser.add_argument("--reuse", action="store_true", help="do nothing if --out holds this export already")
    parser.add_argument("--top-k", type=int, help="instances the engine keeps (default: the preset's)")


def run(arguments: argparse.Namespace) -> int:
    """Exports and prints the parity report."""
    from export.existing import existing_export
    from export.exporter import export_checkpoint

    manifest = existing_export(arguments.checkpoint, arguments.out, arguments.top_k) if arguments.reuse else None
    verb = "kept" if manifest else "wrote"
    if manifest is None:
        manifest = export_checkpoint(arguments.checkpoint, arguments.out, arguments.preset, arguments.top_k)
    parity = manifest.checks["parity"]
    print(f"{verb} {arguments.out / manifest.artefact}: {manifest.preset}, {manifest.precision}, top {manifest.top_k}")
    print(f"parity with PyTorch over {parity['compared']} instances (error against fp64; a faithful engine's bound):")
    for error in parity["outputs"]:
        print(
            f"  {error['case']:20} {error['output']:12} max {error['max_abs']:.1e} (≤ {error['max_bound']:.1e})"
            f"  rms {error['rms']:.1e} (≤ {error['rms_bound']:.1e})"
        )
    print(f"  thresholded masks agree to an IoU of {parity['mask_iou']:.6f}")
    return 0
