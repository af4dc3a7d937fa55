"""Names for the nodes of a graph that lead back to the modules of the model."""

from __future__ import annotations

import ast
from collections import Counter

import onnx

_SCOPES = "pkg.torch.onnx.name_scopes"  # the exporter's list of modules around a node, the operator's own name last


def name_nodes(graph: onnx.GraphProto) -> None:
    """Names each node `MODULE/OP`, and numbers nodes of one name.

    For example `model.encoder.layers.0.deformable/MSDeformAttn`.

    The exporter's own notes on the nodes, which hold paths of the machine that exported, are removed.
    """
    taken: Counter[str] = Counter()
    for node in graph.node:
        name = f"{_module(node)}/{node.op_type}"
        taken[name] += 1
        node.name = name if taken[name] == 1 else f"{name}_{taken[name]}"
        node.doc_string = ""
        del node.metadata_props[:]
    for value in (*graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del value.metadata_props[:]


def _module(node: onnx.NodeProto) -> str:
    """The module that a node comes from, or `engine` if the exporter made it."""
    for entry in node.metadata_props:
        if entry.key == _SCOPES:
            scopes = ast.literal_eval(entry.value)
            return next((scope for scope in reversed(scopes[:-1]) if scope), "engine")
    return "engine"
