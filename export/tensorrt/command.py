"""`mssts build-engine`: an export to a plan for TensorRT or TensorRT-RTX."""

from __future__ import annotations

import argparse
from pathlib import Path

from mssts.artefact import Artefact
from mssts.export.arguments import add_gate, add_reuse, gate_of
from mssts.manifest import FixedShape, Manifest

HELP = "build a TensorRT or TensorRT-RTX engine from an export, checked layer by layer"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("model_dir", type=Path, metavar="MODEL_DIR", help="the folder that `mssts export` wrote")
    parser.add_argument("--target", required=True, help="tensorrt, or tensorrt-rtx, which builds without a GPU")
    parser.add_argument("--out", type=Path, required=True, help="folder for model.plan and manifest.json")
    shape = "BxTxHxW"
    parser.add_argument("--min", metavar=shape, help="the smallest input shape (default: one frame of 64x64)")
    parser.add_argument(
        "--opt", metavar=shape, help="the shape to tune for (default: one clip of the model's own size)"
    )
    parser.add_argument("--max", metavar=shape, help="the largest input shape (default: its long edge both ways)")
    parser.add_argument("--timing-cache", type=Path, metavar="FILE", help="measured kernels, read and added to")
    parser.add_argument("--version-compatible", action="store_true", help="for later TensorRT of the same major, too")
    parser.add_argument(
        "--hardware-compatible", default="none", metavar="LEVEL", help="none, ampere+ or same (default: %(default)s)"
    )
    parser.add_argument("--workspace-gib", type=float, metavar="N", help="scratch memory a layer may use")
    parser.add_argument(
        "--compute-capability", action="append", default=[], metavar="X.Y",
        help="a GPU to build for, as 8.9; may be repeated (tensorrt-rtx; default: all that it knows)",
    )  # fmt: skip
    parser.add_argument("--no-plugins", action="store_true", help="our ops as the function bodies that are in the file")
    add_gate(parser, "of the export and of the plan")
    add_reuse(parser)
    parser.add_argument("--optimization-level", type=int, metavar="N", help="0 (fast build) to 5 (default: TensorRT's)")


def run(arguments: argparse.Namespace) -> int:
    """Builds and prints what was checked."""
    from mssts.export.tensorrt.builder import build_engine, existing_engine
    from mssts.export.tensorrt.options import BuildOptions

    options = BuildOptions(
        target=arguments.target,
        least=FixedShape.parse("--min", arguments.min),
        best=FixedShape.parse("--opt", arguments.opt),
        most=FixedShape.parse("--max", arguments.max),
        plugins=not arguments.no_plugins,
        timing_cache=arguments.timing_cache,
        version_compatible=arguments.version_compatible,
        hardware_compatible=arguments.hardware_compatible,
        workspace_gib=arguments.workspace_gib,
        compute_capabilities=tuple(arguments.compute_capability),
        optimization_level=arguments.optimization_level,
    )
    source, gate = Artefact.open(arguments.model_dir), gate_of(arguments)
    kept = existing_engine(source, arguments.out, options, gate) if arguments.reuse else None
    manifest = kept or build_engine(source, arguments.out, options, gate)
    _print(manifest, arguments.out, "kept" if kept else "wrote")
    return 0


def _print(manifest: Manifest, out: Path, verb: str) -> None:
    from mssts.export.average_precision import ap_lines
    from mssts.export.parity import parity_lines

    engine, checks = manifest.provenance["engine"], manifest.checks
    profile, network, parity = engine["profile"], checks["network"], checks["parity"]
    print(
        f"{verb} {out / manifest.artefact}: {manifest.preset}, {manifest.precision}, {engine['target']} "
        f"{engine['tensorrt']}, {engine['bytes'] / 2**20:.1f} MiB"
    )
    print(f"  shapes {profile['min']} to {profile['max']}, tuned for {profile['opt']}")
    plugins = len(network["plugins"])
    print(
        f"  network: {network['layers']} layers, {plugins} plugins, {network['in_precision']} convolutions and matrix "
        f"products in {manifest.precision}"
    )
    layers = checks["layers"]
    print(f"  built layers: {layers if isinstance(layers, str) else str(layers['layers']) + ' checked'}")
    for layer in [] if isinstance(layers, str) else layers.get("in_another_precision", []):
        print(f"  warning: {layer['name']} reads {layer['input']}, not {manifest.precision}")
    if parity["holds"] is None:
        print(f"  parity: {parity['reason']}")
    else:
        print(f"  parity with {parity['reference']} over {parity['compared']} instances:")
        for line in parity_lines(parity):
            print(f"    {line}")
    for line in ap_lines(checks):
        print(f"  {line}")
