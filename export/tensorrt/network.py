"""TensorRT network of an ONNX file, with checks of plugins and precision."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mssts import contract
from mssts.errors import CheckFailed, MsstsError
from mssts.ops.exporting import DOMAIN

# Modules that keep fp32 in every precision (mssts.model.deployment).
_WIDE = ("model.class_embed.", "model.decoder.bbox_embed.", "model.decoder.reference_points", "model.mask_head")
_TYPES = {"fp32": "FLOAT", "fp16": "HALF", "bf16": "BF16"}
# How the engine's layer report names a precision.
_REPORTED = {"fp32": {"float", "fp32"}, "fp16": {"half", "fp16"}, "bf16": {"bfloat16", "bf16"}}


def our_nodes(path: Path) -> list[str]:
    """Names of the nodes of our ops in an ONNX file, without its weights."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    return [node.name for node in model.graph.node if node.domain == DOMAIN]


def parse_network(trt: Any, log: Any, builder: Any, path: Path) -> Any:
    """Parses an ONNX file into a strongly typed network.

    Raises:
        MsstsError: TensorRT's parser refuses it; the message names the node.
    """
    flags = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)  # what later releases have alone
    network = builder.create_network(0 if flags is None else 1 << int(flags))
    parser = trt.OnnxParser(network, log)
    if parser.parse_from_file(os.fspath(path)):
        return network
    reasons = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        reason = " ".join(str(error.desc()).split())
        if reason in ("", "false"):  # its condition, printed
            reason = "not supported"
        stack = error.local_function_stack()
        within = f" in the body of {stack[0]}" if stack else ""
        reasons.append(f"node {error.node_name()} ({error.node_operator()}){within}: {reason}")
    raise MsstsError(f"{path}: TensorRT {trt.__version__} cannot parse it: {'; '.join(reasons[:3]) or log.last()}")


def layers_of(network: Any) -> list[Any]:
    """All layers of a network."""
    return [network.get_layer(index) for index in range(network.num_layers)]


def check_contract(network: Any, path: Path) -> None:
    """Inputs and outputs are those of `mssts.contract`.

    Raises:
        MsstsError: they are not.
    """
    for kind, count, get, specs in (
        ("input", network.num_inputs, network.get_input, contract.ENGINE_INPUTS),
        ("output", network.num_outputs, network.get_output, contract.ENGINE_OUTPUTS),
    ):
        found = {get(index).name for index in range(count)}
        expected = {spec.name for spec in specs}
        if found != expected:
            raise MsstsError(
                f"{path}: not an engine of this project: its {kind}s are {', '.join(sorted(found))}; expected "
                f"{', '.join(sorted(expected))}; export the model with `mssts export`"
            )


def check_plugins(trt: Any, layers: Sequence[Any], nodes: Sequence[str], plugins: bool) -> None:
    """Checks that every node of our ops became a plugin, or none without plugins.

    The parser falls back to a node's function body in silence, so this has to be asked.

    Raises:
        CheckFailed: a node has no plugin, or a plugin is none of our nodes.
    """
    found = [layer for layer in layers if layer.type == trt.LayerType.PLUGIN_V3]
    if not plugins:
        if found:
            raise CheckFailed(f"{found[0].name} became a plugin and no plugins were asked for; nothing was written")
        return
    missing = [node for node in nodes if not any(_leads_to(layer, node) for layer in found)]
    if missing:
        raise CheckFailed(
            f"{len(missing)} of {len(nodes)} nodes of our ops did not become plugins, such as {missing[0]}; nothing "
            "was written; rebuild the plugin library for this TensorRT (`make plugins`) or pass --no-plugins"
        )
    if len(found) != len(nodes):
        raise CheckFailed(f"the network has {len(found)} plugins for {len(nodes)} of our nodes; nothing was written")


def _leads_to(layer: Any, node: str) -> bool:
    return layer.name == node or f"[ONNX Layer: {node}]" in str(layer.metadata)


def check_precision(trt: Any, layers: Sequence[Any], precision: str) -> int:
    """Checks the precision of every convolution and matrix product.

    Modules that keep fp32 are left out.

    Returns the number of layers looked at.

    Raises:
        CheckFailed: one is not.
    """
    kinds = (trt.LayerType.CONVOLUTION, trt.LayerType.MATRIX_MULTIPLY)
    expected = getattr(trt.DataType, _TYPES[precision])
    # A layer of a function body is not named after a module, and computes in fp32.
    judged = [
        layer
        for layer in layers
        if layer.type in kinds and layer.name.startswith("model.") and not layer.name.startswith(_WIDE)
    ]
    wrong = [layer for layer in judged if layer.get_input(0).dtype != expected]
    if not judged:
        raise CheckFailed("no convolution and no matrix product of the model is in the network; nothing was written")
    if wrong:
        raise CheckFailed(
            f"{len(wrong)} of {len(judged)} convolutions and matrix products are not in {precision}, such as "
            f"{wrong[0].name} ({_short(wrong[0].get_input(0).dtype)}); nothing was written; export the model again"
        )
    return len(judged)


def check_report(
    report: Sequence[dict[str, Any]], nodes: Iterable[str], plugins: bool, precision: str
) -> list[dict[str, str]]:
    """Checks a built engine's layer report.

    Plugins must be there, and convolutions of another precision are returned.

    The report is the inspector's JSON with all details. It tells the type of a layer's first input, which is not the
    type that a fused layer computes in (one that normalises uint8 frames reads UInt8). So those layers are for people
    to look at: the network's precision was checked before the build, and parity checks the plan.

    Returns:
        `name` and `input` of each convolution whose first input has another type.

    Raises:
        CheckFailed: a node of our ops has no plugin.
    """
    built = [layer for layer in report if "plugin" in str(layer.get("LayerType", "")).lower()]
    if plugins:
        texts = [f"{layer.get('Name', '')} {layer.get('Metadata', '')}" for layer in built]
        missing = [node for node in nodes if not any(node in text for text in texts)]
        if missing:
            raise CheckFailed(f"the built engine has no plugin for {missing[0]}; nothing was written")
    others = []
    for layer in report:
        inputs = layer.get("Inputs") or [{}]
        if "conv" not in str(layer.get("LayerType", "")).lower():
            continue
        datatype = str(inputs[0].get("Format/Datatype", ""))
        if datatype and not _REPORTED[precision] & set(re.findall(r"[a-z]+\d*", datatype.lower())):
            others.append({"name": str(layer.get("Name")), "input": datatype})
    return others


def _short(dtype: Any) -> str:
    return str(dtype).rpartition(".")[2]
