"""`mssts quantize`: an exported engine in 8 bits, with AP before and after."""

from __future__ import annotations

import argparse
from pathlib import Path

from mssts.artefact import Artefact
from mssts.export.arguments import add_gate, add_reuse, gate_of

HELP = "quantize an exported engine to int8 or fp8, calibrated on your clips"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("engine", type=Path, metavar="ENGINE_DIR", help="a folder of `mssts export`, in fp32")
    parser.add_argument(
        "--calibrate", type=Path, required=True, metavar="CLIPS",
        help="a video, a folder of images, or a YouTube-VIS or COCO-video JSON, like what the engine is for",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the new artefact")
    parser.add_argument("--format", default="int8", help="int8 or fp8 (E4M3) (default: %(default)s)")
    parser.add_argument(
        "--target",
        default="cpu",
        help="whose an int8 graph is: cpu (OpenVINO) or gpu (TensorRT) (default: %(default)s)",
    )
    parser.add_argument("--clips", type=int, default=16, help="of the calibration, at most (default: %(default)s)")
    parser.add_argument(
        "--exclude", type=Path, metavar="FILE",
        help="layers that stay in floating point, a glob of node names a line (default: export/exclusions/default.txt)",
    )  # fmt: skip
    add_gate(parser, "before and after")
    add_reuse(parser)


def run(arguments: argparse.Namespace) -> int:
    """Quantises and prints what it costs in accuracy."""
    from mssts.export.average_precision import ap_lines
    from mssts.export.quantization.quantizer import QuantizationOptions, existing_quantized, quantize

    options = QuantizationOptions(
        arguments.format, arguments.target, arguments.clips, arguments.exclude, arguments.exif
    )
    source, gate = Artefact.open(arguments.engine), gate_of(arguments)
    kept = existing_quantized(source, arguments.calibrate, arguments.out, options, gate) if arguments.reuse else None
    manifest = kept or quantize(source, arguments.calibrate, arguments.out, options, gate)
    verb = "kept" if kept else "wrote"
    made, difference = manifest.provenance["quantization"], manifest.checks["difference"]
    layers = ", ".join(f"{count} {name}" for name, count in made["quantized"].items())
    print(f"{verb} {arguments.out / manifest.artefact}: {manifest.preset}, {manifest.precision}, for {made['target']}")
    print(f"quantized {layers}; {len(made['excluded'])} excluded; calibrated on {made['clips']} clips")
    print(f"over these clips, of the best instances {difference['compared']:.0%} are the same as in fp32; of those")
    for name in ("scores", "boxes"):
        largest, median = difference[f"{name}_max"], difference[f"{name}_median"]
        print(f"  {name:6} differ by up to {largest:.3f}, median {median:.4f}")
    print(f"  masks  agree to an IoU of {difference['mask_iou_mean']:.4f}, at least {difference['mask_iou_min']:.4f}")
    print("\n".join(ap_lines(manifest.checks)) or "AP was not measured; --data JSON does it")
    return 0
