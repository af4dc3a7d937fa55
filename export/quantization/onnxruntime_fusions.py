"""How a graph must look for ONNX Runtime's CPU provider to compute it in 8 bits, and not in fp32 between conversions.

It fuses what it finds between DequantizeLinear and QuantizeLinear: a convolution to QLinearConv only if its result is
quantised too, a sum to QLinearAdd likewise, a linear layer with its bias to QGemm only if it is a Gemm of matrices. A
Relu vanishes into the QuantizeLinear after it where the zero point is 0, which takes unsigned, asymmetric activations.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper


@dataclass(frozen=True)
class EightBits:
    """What is in 8 bits besides the inputs of quantised layers.

    Attributes:
        tensors: results of convolutions, of residual sums and of pooling, whatever takes them. After the Relu, if any.
        pools: names of the MaxPool nodes that pass 8 bits on; input and output share a scale.
    """

    tensors: frozenset[str]
    pools: frozenset[str]


def eight_bits(model: ModelProto, layers: Collection[str]) -> EightBits:
    """`EightBits` where the nodes named `layers` are quantised."""
    users = _users(model)
    tensors: set[str] = set()
    pools: set[str] = set()

    def activated(name: str) -> str:
        after = users.get(name, [])
        return after[0].output[0] if len(after) == 1 and after[0].op_type == "Relu" else name

    for node in model.graph.node:
        is_layer = node.op_type == "Conv" and node.name in layers
        if is_layer or (node.op_type == "Add" and tensors.issuperset(node.input)):
            tensors.add(activated(node.output[0]))
        elif node.op_type == "MaxPool" and node.input[0] in tensors:
            tensors.add(node.output[0])
            pools.add(node.name)
    return EightBits(frozenset(tensors), frozenset(pools))


def to_gemms(model: ModelProto, layers: Collection[str]) -> dict[str, str]:
    """Turns those products with a constant matrix that are among `layers` into Gemm nodes of the same names, in place.

    A bias and a Relu after it come along; two such layers in a row stay matrices in between.

    Returns:
        New tensors, each with the tensor of the same values that it had before: [rows, C] for [..., C].
    """
    users = _users(model)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    outputs = {output.name for output in model.graph.output}
    products = {
        node.name
        for node in model.graph.node
        if node.op_type == "MatMul" and node.name in layers and len(constants[node.input[1]].dims) == 2
    }
    matrices: dict[str, str] = {}  # of a tensor; also of one that is there as a matrix alone
    shaped_as: dict[str, str] = {}  # for the latter: a tensor with the leading dimensions
    merged: set[str] = set()  # results of the nodes that come along
    nodes: list[NodeProto] = []

    def only_user(name: str, kind: str) -> NodeProto | None:
        after = users.get(name, [])
        return after[0] if len(after) == 1 and after[0].op_type == kind and name not in outputs else None

    for node in model.graph.node:
        if node.output[0] in merged:
            continue
        if node.name not in products:
            nodes.append(node)
            continue
        source, weight = node.input
        width = constants[weight].dims[1]
        result, bias = node.output[0], []
        add = only_user(result, "Add")
        if add is not None:
            bias = [name for name in add.input if name in constants and list(constants[name].dims) == [width]]
        relu = None
        if add is not None and bias:
            result = add.output[0]
            merged.add(result)
            relu = only_user(result, "Relu")
        if source not in matrices:
            matrices[source] = f"{source}_matrix"
            nodes.append(helper.make_node("Flatten", [source], [matrices[source]], f"{node.name}/Flatten", axis=-1))
        product = f"{result}_rows"
        nodes.append(helper.make_node("Gemm", [matrices[source], weight, *bias], [product], node.name))
        if relu is not None:
            result = relu.output[0]
            merged.add(result)
            nodes.append(helper.make_node("Relu", [product], [f"{result}_rows"], relu.name))
            product = f"{result}_rows"
        leading = shaped_as.get(source, source)
        if result not in outputs and all(user.name in products for user in users.get(result, [])):
            matrices[result], shaped_as[result] = product, leading
            continue
        # Whatever takes 8 bits of it flattens it anew: ONNX Runtime wants one user of a Gemm that it fuses.
        shape, size = f"{product}_shape", f"mssts_width_{width}"
        if size not in constants:
            constants[size] = numpy_helper.from_array(np.array([width], np.int64), size)
            model.graph.initializer.append(constants[size])
        nodes += [
            helper.make_node("Shape", [leading], [f"{shape}_leading"], f"{node.name}/Shape", start=0, end=-1),
            helper.make_node("Concat", [f"{shape}_leading", size], [shape], f"{node.name}/Concat", axis=0),
            helper.make_node("Reshape", [product, shape], [result], f"{node.name}/Reshape"),
        ]
    kept = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    return {matrix: name for name, matrix in matrices.items()}


def own_biases(model: ModelProto, layers: Collection[str]) -> None:
    """Gives each of `layers` that shares its bias with another node one of its own, in place.

    Exports hold equal constants once, such as zeros. A norm would dequantise the bias of a layer at each inference.
    """
    users = _users(model)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.name not in layers or len(node.input) < 3 or node.input[2] not in constants:
            continue
        if len(users[node.input[2]]) > 1:
            bias = model.graph.initializer.add()
            bias.CopyFrom(constants[node.input[2]])
            node.input[2] = bias.name = f"{node.name}/bias"


def _users(model: ModelProto) -> dict[str, list[NodeProto]]:
    users: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    return users
