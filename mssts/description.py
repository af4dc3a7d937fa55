"""Description of a model on disk: a checkpoint, an exported graph or a plan."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from mssts.artefact import Artefact, Kind
from mssts.contract import ENGINE_INPUTS, ENGINE_OUTPUTS
from mssts.errors import MsstsError, first_line
from mssts.kernels import library
from mssts.manifest import Manifest
from mssts.runners.tensorrt_library import deserialised, first_gpu, message_log, tensorrt_module

_ONNX_TYPES = {1: "float32", 2: "uint8", 6: "int32", 7: "int64", 10: "float16", 16: "bfloat16"}
# Our libraries that run our ops in a file.
_LIBRARIES = {Kind.ONNX: ("onnxruntime", "openvino"), Kind.PLAN: ("tensorrt",)}


def describe(model: Artefact | Path | str) -> dict[str, Any]:
    """The description of a model, as a JSON value.

    Raises:
        MsstsError: it is absent, broken, truncated, of an unknown kind, or not the file that its manifest describes.
    """
    artefact = Artefact.open(model)
    if artefact.kind is Kind.CHECKPOINT:
        details = _checkpoint(artefact.path)
    elif artefact.kind is Kind.ONNX:
        details = {**_from_manifest(artefact.manifest), **_graph(artefact.path), "sha256": artefact.sha256}
    else:
        details = {**_from_manifest(artefact.described()), **_plan(artefact), "sha256": artefact.sha256}
    return {"path": str(artefact.path), "bytes": artefact.path.stat().st_size, **details}


def _from_manifest(manifest: Manifest | None) -> dict[str, Any]:
    if manifest is None:
        return {"preset": None, "precision": None, "parity": None, "provenance": None}
    return {
        "preset": manifest.preset,
        "precision": manifest.precision,
        "runner": manifest.runner,
        "shape": "any" if manifest.shape is None else str(manifest.shape),
        "classes": [category.name for category in manifest.categories],
        "clip_frames": manifest.clip_frames,
        "top_k": manifest.top_k,
        "companions": manifest.companions,
        "parity": manifest.checks.get("parity"),
        "provenance": manifest.provenance,
    }


def _graph(file: Path) -> dict[str, Any]:
    """The description in the ONNX file itself."""
    try:
        import onnx
    except ImportError:
        raise MsstsError(f"{file}: reading a graph needs the package onnx: `pip install onnx`") from None
    try:
        model = onnx.load(file, load_external_data=False)
    except Exception as error:  # protobuf's
        raise MsstsError(
            f"{file}: not an ONNX file, or truncated ({first_line(error)}); export the model again"
        ) from None
    if not model.graph.node:
        raise MsstsError(f"{file}: not an ONNX file, or truncated (it has no nodes); export the model again")
    functions = {function.name for function in model.functions}
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
        "ops": {name: {"nodes": count, "body": name in functions} for name, count in sorted(ours.items())},
        "kernels": _kernels(Kind.ONNX),
        "memory": {"weights_bytes": dict(sorted(weights.items()))},
        "metadata": {entry.key: entry.value for entry in model.metadata_props},
    }


def _port(value: Any) -> dict[str, Any]:
    tensor = value.type.tensor_type
    shape = [dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in tensor.shape.dim]
    return {"name": value.name, "dtype": _ONNX_TYPES.get(tensor.elem_type, str(tensor.elem_type)), "shape": shape}


def _plan(plan: Artefact) -> dict[str, Any]:
    """The description of a plan by its manifest, with its memory if it can be loaded."""
    file, manifest = plan.path, plan.described()
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
        "kernels": _kernels(Kind.PLAN) if nodes else {},
        "memory": memory,
    }


def _device_memory(file: Path, built: dict[str, Any]) -> int:
    """Scratch memory of an execution context, in bytes."""
    trt = tensorrt_module(built["target"])
    if first_gpu() is None:
        raise MsstsError("no GPU")
    log = message_log(trt)
    plugins, compatible = built["plugin_sha256"] is not None, built["options"]["version_compatible"]
    _runtime, engine = deserialised(trt, log, file.read_bytes(), plugins=plugins, version_compatible=compatible)
    if engine is None:
        raise MsstsError(f"TensorRT cannot load it ({log.last()})")
    return int(engine.device_memory_size_v2)


def _kernels(kind: Kind) -> dict[str, str]:
    """The libraries for our ops: an empty text, or the reason why not here."""
    return {name: library(name).reason for name in _LIBRARIES[kind]}


def _checkpoint(file: Path) -> dict[str, Any]:
    try:
        from mssts.model.checkpoint import load_checkpoint
    except ImportError:
        raise MsstsError(f"{file}: a checkpoint needs PyTorch: `pip install 'mssts[train]'`") from None
    loaded = load_checkpoint(file)
    manifest = loaded.manifest(file)
    tensors = list(loaded.weights.values())
    return {
        "kind": "checkpoint",
        "sha256": manifest.artefact_sha256,
        **_from_manifest(manifest),
        "parity": None,
        "parameters": sum(tensor.numel() for tensor in tensors),
        "memory": {"weights_bytes": {"all": sum(tensor.numel() * tensor.element_size() for tensor in tensors)}},
    }
