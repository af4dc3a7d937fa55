"""`mssts describe`: prints what a model on disk is."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mssts.files import write_json

HELP = "what a checkpoint, a model.onnx or a model.plan is: inputs, precision, kernels, parity, origin, size"

_WIDTH = 12  # of the names


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument(
        "artefact", type=Path, help="a folder with a manifest, a model.onnx, a model.plan, a checkpoint"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the same as JSON")


def run(arguments: argparse.Namespace) -> None:
    """Prints what the artefact is."""
    from mssts.description import describe

    found = describe(arguments.artefact)
    if arguments.json is not None:
        write_json(arguments.json, found)
    _print(found)


def _print(found: dict[str, Any]) -> None:
    def line(name: str, text: object) -> None:
        print(f"{name:{_WIDTH}}{text}")

    beside = "".join(f" and {name}" for name in found.get("companions", {}))
    print(f"{found['path']}{beside}: {found['kind']}, {_mebibytes(found['bytes'])}")
    line("SHA-256", found["sha256"])
    line("model", _model(found))
    for kind in ("inputs", "outputs"):
        for port in found.get(kind, []):
            line(kind[:-1], f"{port['name']} {port['dtype']} [{', '.join(map(str, port['shape']))}]")
    if "profile" in found:
        profile = found["profile"]
        line("shapes", f"{profile['min']} to {profile['max']}, tuned for {profile['opt']}")
        gpu = found["gpu"]
        line("built by", f"{found['built_by']} {'without a GPU' if gpu is None else 'on ' + gpu['name']}")
    if "opset" in found:
        line("opset", ", ".join(f"{domain} {version}" for domain, version in found["opset"].items()))
    if "ops" in found:
        none = "as function bodies" if "profile" in found else "none"
        line("our ops", ", ".join(_op(name, op) for name, op in found["ops"].items()) or none)
        for name, reason in found["kernels"].items():
            line("  kernels", f"{name}: {reason or 'run them here'}")
    line("memory", _memory(found["memory"]))
    line("parity", _parity(found["parity"]))
    origin = found["provenance"] or {}
    line(
        "origin", ", ".join(f"{key} {origin[key]}" for key in ("weights", "commit") if origin.get(key)) or "not stated"
    )


def _model(found: dict[str, Any]) -> str:
    if found["preset"] is None:
        return "no manifest beside it"
    shape = "" if "profile" in found else f", input {found['shape']}"
    classes = len(found["classes"])
    return f"{found['preset']}, {found['precision']}{shape}, {classes} classes, top {found['top_k']}"


def _op(name: str, op: dict[str, Any]) -> str:
    how = "as a plugin" if op.get("plugin") else "with body" if op["body"] else "without body"
    return f"{op['nodes']} {name} {how}"


def _memory(memory: dict[str, Any]) -> str:
    if "weights_bytes" in memory:
        parts = ", ".join(f"{kind} {_mebibytes(size)}" for kind, size in memory["weights_bytes"].items())
        return f"weights: {parts}"
    if "device_bytes" in memory:
        return f"scratch on the GPU: {_mebibytes(memory['device_bytes'])}"
    return f"scratch on the GPU: {memory['device']}"


def _parity(parity: dict[str, Any] | None) -> str:
    if parity is None:
        return "not stated"
    if parity.get("holds") is None:
        return str(parity.get("reason", "not stated"))
    verdict = "holds" if parity["holds"] else "does not hold"
    return f"{verdict} against {parity['reference']}, masks agree to an IoU of {parity['mask_iou']:.6f}"


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
