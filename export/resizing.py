"""Resizing inside the engine: frames of any size in, for exports that ask for it.

The nodes are put before an exported graph. They compute what `mssts.segmenters.preprocessing.engine_input` computes
with OpenCV, to one step of 255: the area average where frames shrink, the bilinear filter where they grow, each as two
matrix products whose weights follow from the sizes. Everything is of standard ops that ONNX Runtime, OpenVINO and
TensorRT have, and sizes are whole numbers, so that they come out as on the host.

Letters: n pixels of a side before, m after.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mssts import contract
from mssts.errors import CheckFailed
from mssts.manifest import InputRule
from mssts.segmenters.preprocessing import engine_input

_PREFIX = "resize/"
# Sizes of frames that the nodes are checked with: smaller, larger, in one direction alone, and left as they are.
_CHECKED = ((1, 1), (2, 1), (0.5, 0.5), (1.37, 1.91), (2.6, 2.6), (0.7, 1.4))


class _Nodes:
    """Appends nodes. `nodes("Add", x, y)` returns the name of its output."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def __call__(self, op: str, *inputs: str | int | float | list[int], **attributes: Any) -> str:
        given = [value if isinstance(value, str) else self._constant(value) for value in inputs]
        name = f"{_PREFIX}{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, given, [f"{name}_output"], name=name, **attributes))
        return f"{name}_output"

    def _constant(self, value: int | float | list[int]) -> str:
        array = np.asarray(value, np.float32 if isinstance(value, float) else np.int64)
        name = f"{_PREFIX}constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(array, name))
        return name


def put_resizing_before(model: onnx.ModelProto, rule: InputRule) -> None:
    """Has a graph resize its frames by `rule`.

    Its inputs and outputs keep their names, types and ranks. `sizes` stays what it was: the valid height and width that
    the engine computes with, those after the resizing.
    """
    name = contract.FRAMES.name
    before = _Nodes()
    resized = _resized(before, name, rule)
    after = []
    for node in model.graph.node:
        if node.op_type == "Cast" and list(node.input) == [name]:
            # TensorRT has uint8 at its inputs alone, so what follows the cast gets the floats as they are.
            node = helper.make_node("Cast", [resized], node.output, name=node.name, to=_type_of(node))
        elif name in node.input:
            node.input[:] = [resized if value == name else value for value in node.input]
        after.append(node)
    del model.graph.node[:]
    model.graph.node.extend([*before.nodes, *after])
    model.graph.initializer.extend(before.constants)


def resizing_graph(rule: InputRule, opset: int) -> onnx.ModelProto:
    """The nodes alone: uint8 `frames` → fp32 `resized`, both [B, T, H, W, 3]."""
    nodes = _Nodes()
    resized = _resized(nodes, contract.FRAMES.name, rule)
    nodes.nodes.append(helper.make_node("Identity", [resized], ["resized"]))
    frames = helper.make_tensor_value_info(contract.FRAMES.name, TensorProto.UINT8, list(contract.FRAMES.shape))
    found = helper.make_tensor_value_info("resized", TensorProto.FLOAT, ["B", "T", "h", "w", 3])
    graph = helper.make_graph(nodes.nodes, "resizing", [frames], [found], nodes.constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def check_resizing(rule: InputRule, opset: int) -> int:
    """The greatest difference, of 255, between the nodes and `engine_input`.

    The nodes run in ONNX Runtime, on noise of several sizes.

    Raises:
        CheckFailed: it is more than 1, or a size differs.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(resizing_graph(rule, opset).SerializeToString())
    rng = np.random.default_rng(0)
    greatest = 0
    for high, wide in _CHECKED:
        height, width = max(8, round(rule.short_edge * high)), max(8, round(rule.short_edge * 1.6 * wide))
        frames_THWC = rng.integers(0, 256, (1, height, width, 3), np.uint8)
        expected, _ = engine_input(frames_THWC, replace(rule, in_engine=False))
        (found,) = session.run(None, {contract.FRAMES.name: frames_THWC[None]})
        if found.shape != expected.shape:
            raise CheckFailed(
                f"frames of {height}x{width} become {found.shape[2]}x{found.shape[3]} inside the engine and "
                f"{expected.shape[2]}x{expected.shape[3]} outside; nothing was written"
            )
        greatest = max(greatest, int(np.abs(found - expected).max()))
    if greatest > 1:
        raise CheckFailed(f"resizing inside the engine is off by {greatest} of 255; nothing was written")
    return greatest


def _type_of(cast: onnx.NodeProto) -> int:
    return int(next(attribute.i for attribute in cast.attribute if attribute.name == "to"))


def _resized(nodes: _Nodes, frames: str, rule: InputRule) -> str:
    """The frames in the engine's size, fp32 with whole values from 0 to 255."""
    shape = nodes("Shape", frames)
    clips, count, height, width = (nodes("Gather", shape, [axis]) for axis in range(4))
    low, high = nodes("Min", height, width), nodes("Max", height, width)
    new_height, new_width = (_new_side(nodes, side, low, high, rule) for side in (height, width))
    shrinks = nodes(
        "Less", nodes("Mul", new_height, new_width), nodes("Mul", height, width)
    )  # OpenCV is asked for area averages then
    averages = nodes(
        "And",
        shrinks,
        nodes("And", nodes("GreaterOrEqual", height, new_height), nodes("GreaterOrEqual", width, new_width)),
    )
    rows, columns = (
        _weights(nodes, before, after, shrinks, averages)
        for before, after in ((height, new_height), (width, new_width))
    )
    pixels = nodes("Cast", frames, to=TensorProto.FLOAT)
    flat = nodes("Reshape", pixels, nodes("Concat", clips, count, height, [-1], axis=0))
    by_rows = nodes("MatMul", rows, flat)  # [B, T, m, W·3]
    apart = nodes("Reshape", by_rows, nodes("Concat", clips, count, new_height, width, [3], axis=0))
    turned = nodes("Transpose", apart, perm=[0, 1, 3, 2, 4])  # [B, T, W, m, 3], so that one product does all rows
    flat = nodes("Reshape", turned, nodes("Concat", clips, count, width, [-1], axis=0))
    by_columns = nodes("MatMul", columns, flat)
    apart = nodes("Reshape", by_columns, nodes("Concat", clips, count, new_width, new_height, [3], axis=0))
    back = nodes("Transpose", apart, perm=[0, 1, 3, 2, 4])
    # Halves go up, as in OpenCV's whole numbers.
    return nodes("Floor", nodes("Add", nodes("Clip", back, 0.0, 255.0), 0.5))


def _new_side(nodes: _Nodes, side: str, low: str, high: str, rule: InputRule) -> str:
    """`preprocessing.input_size` of one side.

    Rounding keeps the order of two scales, so the lesser of the rounded sides belongs to the lesser scale.
    """

    def multiples(edge: int, of: str) -> str:
        """⌊side · edge / of / multiple + ½⌋."""
        doubled = nodes("Add", nodes("Mul", side, [2 * edge]), nodes("Mul", of, [rule.multiple]))
        return nodes("Div", doubled, nodes("Mul", of, [2 * rule.multiple]))

    least = nodes("Min", multiples(rule.short_edge, low), multiples(rule.long_edge, high))
    return nodes("Mul", nodes("Max", least, [1]), [rule.multiple])


def _weights(nodes: _Nodes, n: str, m: str, shrinks: str, averages: str) -> str:
    """The matrix [m, n] that brings n pixels to m, whose rows sum to 1."""
    scalars = [nodes("Squeeze", value, [0]) for value in (n, m)]
    i = nodes("Unsqueeze", nodes("Range", 0, scalars[1], 1), [1])
    j = nodes("Unsqueeze", nodes("Range", 0, scalars[0], 1), [0])

    # Area averages: how much of pixel j lies in pixel i, in whole units of 1/m of a pixel.
    end = nodes("Min", nodes("Mul", nodes("Add", i, [1]), n), nodes("Mul", nodes("Add", j, [1]), m))
    start = nodes("Max", nodes("Mul", i, n), nodes("Mul", j, m))
    overlap = nodes("Max", nodes("Sub", end, start), [0])

    def real(value: str) -> str:
        return nodes("Cast", value, to=TensorProto.FLOAT)

    area = nodes("Div", real(overlap), real(n))

    # The bilinear filter, around where pixel i comes from. OpenCV asked for area averages of a frame that grows in one
    # direction leaves that one's pixels in place, and blends on their borders alone.
    ratio = nodes("Div", real(n), real(m))
    centre = nodes("Sub", nodes("Mul", nodes("Add", real(i), 0.5), ratio), 0.5)
    whole = nodes("Div", nodes("Mul", i, n), m)
    beyond = nodes("Sub", real(nodes("Add", i, [1])), nodes("Div", real(nodes("Add", whole, [1])), ratio))
    positive = nodes("Max", beyond, 0.0)
    border = nodes("Add", real(whole), nodes("Sub", positive, nodes("Floor", positive)))
    source = nodes("Where", shrinks, border, centre)
    inside = nodes("Min", nodes("Max", source, 0.0), real(nodes("Sub", n, [1])))
    tent = nodes("Max", nodes("Sub", 1.0, nodes("Abs", nodes("Sub", inside, real(j)))), 0.0)
    return nodes("Where", averages, area, tent)
