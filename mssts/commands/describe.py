"""`mssts describe`: what an artefact is: a checkpoint, an exported graph or a built plan."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mssts.manifest import Manifest

HELP = "what a checkpoint, a model.onnx or a model.plan is: inputs, precision, kernels, parity, origin, size"

_WIDTH = 12  # of the names
_ONNX_TYPES = {1: "float32", 2: "uint8", 6: "int32", 7: "int64", 10: "float16", 16: "bfloat16"}
# What each library of ours runs.
_DOORS = {".onnx": ("onnxruntime", "openvino"), ".plan": ("tensorrt",)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument(
        "artefact", type=Path, help="a folder with a manifest, a model.onnx, a model.plan, a checkpoint"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the same as JSON")


def run(arguments: argparse.Namespace) -> None:
    """Prints what the artefact is."""
    from mssts.files import write_json

    found = describe(arguments.artefact)
    if arguments.json is not None:
        write_json(arguments.json, found)
    _print(found)


def describe(path: Path) -> dict[str, Any]:
    """What an artefact is, as a JSON value.

    Raises:
        MsstsError: it is absent, broken, truncated, of an unknown kind, or not the file that its manifest describes.
    """
    from mssts.errors import MsstsError
    from mssts.files import sha256
    from mssts.runners import is_checkpoint, model_path

    file = model_path(path)
    if not file.is_file():
        raise MsstsError(f"{file}: no such file; expected a checkpoint, a model.onnx, a model.plan or their folder")
    found = {"path": str(file), "bytes": file.stat().st_size, "sha256": sha256(file)}
    if is_checkpoint(file):
        return {**found, **_checkpoint(file)}
    if file.suffix not in _DOORS:
        raise MsstsError(f"{file}: not an artefact of this project; expected .onnx, .plan, .safetensors or .pth")
    manifest = _manifest_of(file, found)
    if file.suffix == ".onnx":
        return {**found, **_from_manifest(manifest), **_graph(file)}
    if manifest is None:
        raise MsstsError(
            f"{file}: no manifest.json of it beside it, and a plan does not say what it is; build it again"
        )
    return {**found, **_from_manifest(manifest), **_plan(file, manifest)}


def _manifest_of(file: Path, found: dict[str, Any]) -> Manifest | None:
    """The manifest beside a file, if it names that; the file is unchanged then."""
    from mssts.errors import MsstsError
    from mssts.manifest import FILE_NAME, Manifest

    if not (file.parent / FILE_NAME).is_file():
        return None
    manifest = Manifest.read(file)
    if manifest.artefact != file.name:
        return None
    whole = manifest.provenance.get("engine", {}).get("bytes")
    if whole is not None and found["bytes"] < whole:
        raise MsstsError(f"{file}: truncated: {found['bytes']} of {whole} bytes; copy it again, or build it again")
    if manifest.artefact_sha256 != found["sha256"]:
        again = "build" if file.suffix == ".plan" else "export"
        raise MsstsError(
            f"{file}: not the file that {FILE_NAME} describes (its SHA-256 differs), so it is unverified; {again} it "
            "again"
        )
    return manifest


def _from_manifest(manifest: Manifest | None) -> dict[str, Any]:
    if manifest is None:
        return {"preset": None, "precision": None, "parity": None, "provenance": None}
    return {
        "preset": manifest.preset,
        "precision": manifest.precision,
        "shape": "any" if manifest.shape is None else str(manifest.shape),
        "classes": [category.name for category in manifest.categories],
        "clip_frames": manifest.clip_frames,
        "top_k": manifest.top_k,
        "companions": manifest.companions,
        "parity": manifest.checks.get("parity"),
        "provenance": manifest.provenance,
    }


def _graph(file: Path) -> dict[str, Any]:
    """What the ONNX file itself says."""
    from mssts.errors import MsstsError

    try:
        import onnx
    except ImportError:
        raise MsstsError(f"{file}: reading a graph needs the package onnx: `pip install onnx`") from None
    try:
        model = onnx.load(file, load_external_data=False)
    except Exception as error:  # protobuf's
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise MsstsError(f"{file}: not an ONNX file, or truncated ({reason}); export the model again") from None
    if not model.graph.node:
        raise MsstsError(f"{file}: not an ONNX file, or truncated (it has no nodes); export the model again")
    bodies = {function.name for function in model.functions}
    ours = Counter(node.op_type for node in model.graph.node if node.domain == "mssts")
    weights: Counter[str] = Counter()
    for tensor in model.graph.initializer:
        values = 1
        for size in tensor.dims:
            values *= size
        kind = _ONNX_TYPES.get(tensor.data_type, f"type {tensor.data_type}")
        weights[kind] += values * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return {
        "kind": "ONNX graph",
        "opset": {entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        "inputs": [_port(value) for value in model.graph.input],
        "outputs": [_port(value) for value in model.graph.output],
        "nodes": len(model.graph.node),
        "ops": {name: {"nodes": count, "body": name in bodies} for name, count in sorted(ours.items())},
        "kernels": _kernels(".onnx"),
        "memory": {"weights_bytes": dict(sorted(weights.items()))},
        "metadata": {entry.key: entry.value for entry in model.metadata_props},
    }


def _port(value: Any) -> dict[str, Any]:
    tensor = value.type.tensor_type
    shape = [dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in tensor.shape.dim]
    return {"name": value.name, "dtype": _ONNX_TYPES.get(tensor.elem_type, str(tensor.elem_type)), "shape": shape}


def _plan(file: Path, manifest: Manifest) -> dict[str, Any]:
    """What the manifest of a plan says, and the memory it needs, where it can be loaded."""
    from mssts.contract import ENGINE_INPUTS, ENGINE_OUTPUTS
    from mssts.errors import MsstsError

    built = manifest.provenance.get("engine")
    if not isinstance(built, dict):
        raise MsstsError(f"{file}: its manifest does not say how it was built; build it again")
    nodes = manifest.checks.get("network", {}).get("plugins", [])
    ops = Counter(node.rpartition("/")[2].partition("_")[0] for node in nodes)
    memory: dict[str, Any] = {}
    try:
        memory["device_bytes"] = _device_memory(file, built)
    except MsstsError as error:
        memory["device"] = f"not measured here: {error}"
    return {
        "kind": f"{built['target']} plan",
        "inputs": [{"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)} for spec in ENGINE_INPUTS],
        "outputs": [{"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)} for spec in ENGINE_OUTPUTS],
        "profile": built["profile"],
        "built_by": f"{built['target']} {built['tensorrt']}",
        "gpu": built["gpu"],
        "ops": {name: {"nodes": count, "plugin": True} for name, count in sorted(ops.items())},
        "kernels": _kernels(".plan") if nodes else {},
        "memory": memory,
    }


def _device_memory(file: Path, built: dict[str, Any]) -> int:
    """Scratch memory of an execution context, in bytes."""
    from mssts.errors import MsstsError
    from mssts.runners.tensorrt_library import first_gpu, load_plugins, message_log, tensorrt_module

    trt = tensorrt_module(built["target"])
    if first_gpu() is None:
        raise MsstsError("no GPU")
    log = message_log(trt)
    runtime = trt.Runtime(log)
    if built["plugin_sha256"] is not None:
        load_plugins(runtime.get_plugin_registry())
    engine = runtime.deserialize_cuda_engine(file.read_bytes())
    if engine is None:
        raise MsstsError(f"TensorRT cannot load it ({log.last()})")
    return int(engine.device_memory_size_v2)


def _kernels(suffix: str) -> dict[str, str]:
    """Which of our libraries would run the ops here: empty where it would, else why not."""
    from mssts.kernels import library

    return {name: library(name).reason for name in _DOORS[suffix]}


def _checkpoint(file: Path) -> dict[str, Any]:
    from mssts.errors import MsstsError

    try:
        from mssts.model.checkpoint import load_checkpoint
    except ImportError:
        raise MsstsError(f"{file}: a checkpoint needs PyTorch: `pip install 'mssts[train]'`") from None
    loaded = load_checkpoint(file)
    tensors = list(loaded.weights.values())
    return {
        "kind": "checkpoint",
        **_from_manifest(loaded.manifest(file)),
        "parity": None,
        "parameters": sum(tensor.numel() for tensor in tensors),
        "memory": {"weights_bytes": {"all": sum(tensor.numel() * tensor.element_size() for tensor in tensors)}},
    }


def _print(found: dict[str, Any]) -> None:
    def line(name: str, text: object) -> None:
        print(f"{name:{_WIDTH}}{text}")

    print(f"{found['path']}: {found['kind']}, {_mebibytes(found['bytes'])}")
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
