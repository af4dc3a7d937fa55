"""An engine without training that finds red, green and blue things.

It has the contract's inputs and outputs.

With it the tests of serving, of the clients and of pre- and postprocessing run a real ONNX file in milliseconds, and
what it must answer for a picture is obvious to the eye.
"""

from __future__ import annotations

from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mssts import contract
from mssts.files import sha256
from mssts.manifest import Category, FixedShape, InputRule, Manifest

CATEGORIES = (Category(1, "red"), Category(2, "green"), Category(3, "blue"))
COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255))  # RGB, by label

_ONNX_TYPES = {"uint8": TensorProto.UINT8, "int32": TensorProto.INT32, "float32": TensorProto.FLOAT}


class _Graph:
    """Builds a graph by calls.

    `graph("Add", x, y)` appends a node and returns the name of its output.
    """

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def constant(self, value: Any) -> str:
        name = f"constant_{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def __call__(self, op_type: str, *inputs: Any, outputs: int = 1, **attributes: Any) -> Any:
        names = [f"{op_type}_{len(self.nodes)}_{i}" for i in range(outputs)]
        given = [value if isinstance(value, str) else self.constant(value) for value in inputs]
        self.nodes.append(helper.make_node(op_type, given, names, **attributes))
        return names[0] if outputs == 1 else names


def _value_info(spec: contract.TensorSpec) -> onnx.ValueInfoProto:
    shape = [len(CATEGORIES) if size == "K" else size for size in spec.shape]
    return helper.make_tensor_value_info(spec.name, _ONNX_TYPES[spec.dtype], shape)


def _toy_model() -> onnx.ModelProto:
    """One instance a colour, best first.

    A pixel's excess is how much a channel is above both others, in [0, 1]; a cell of 4×4 pixels belongs to the colour
    whose mean excess is above 0.25. So red, green and blue rectangles on a grid of 4 pixels come back exactly. The
    score is 1 − exp(−40 × the covered fraction of the clip), the box the extent of the cells, both of the valid size.
    """
    g, f, i = _Graph(), np.float32, np.int64
    B, T, H, W, C = g("Split", g("Shape", "frames"), axis=0, num_outputs=5, outputs=5)
    height_B1, width_B1 = g("Split", g("Cast", "sizes", to=TensorProto.FLOAT), axis=1, num_outputs=2, outputs=2)

    rgb = g("Div", g("Cast", "frames", to=TensorProto.FLOAT), f(255))
    red, green, blue = g("Split", rgb, axis=4, num_outputs=3, outputs=3)
    over_red, over_green, over_blue = (
        g("Sub", channel, g("Max", *others))
        for channel, others in ((red, (green, blue)), (green, (red, blue)), (blue, (red, green)))
    )
    excess_BTHWC = g("Concat", over_red, over_green, over_blue, axis=4)

    def numbers(count: str) -> str:  # 0, 1, … count − 1 as floats
        return g("Cast", g("Range", i(0), g("Squeeze", count), i(1)), to=TensorProto.FLOAT)

    valid_BHW = g(
        "And",
        g("Unsqueeze", g("Less", numbers(H), height_B1), i([2])),
        g("Unsqueeze", g("Less", numbers(W), width_B1), i([1])),
    )
    excess_BTHWC = g("Where", g("Unsqueeze", valid_BHW, i([1, 4])), excess_BTHWC, f(-1))

    # Padding to multiples of 8 before the cells are averaged gives h = ⌈H/8⌉·2.
    excess_BTCHW = g("Transpose", excess_BTHWC, perm=[0, 1, 4, 2, 3])
    flat = g("Reshape", excess_BTCHW, g("Concat", g("Mul", B, T), C, H, W, axis=0))
    below, right = (g("Mod", g("Neg", size), i([8])) for size in (H, W))
    padded = g("Pad", flat, g("Concat", i([0, 0, 0, 0, 0, 0]), below, right, axis=0), f(-1))
    cells = g("AveragePool", padded, kernel_shape=[4, 4], strides=[4, 4])
    _, _, h, w = g("Split", g("Shape", cells), axis=0, num_outputs=4, outputs=4)
    cells_BTChw = g("Reshape", cells, g("Concat", B, T, C, h, w, axis=0))
    logits = g("Mul", g("Sub", g("Transpose", cells_BTChw, perm=[0, 2, 1, 3, 4]), f(0.25)), f(20))

    inside = g("Greater", logits, f(0))
    inside_float = g("Cast", inside, to=TensorProto.FLOAT)

    def extent(cell_count: str, other_axis: int, valid_B1: str) -> tuple[str, str]:
        """First and last edge of the cells along one axis, [B, C, T].

        They are fractions of the valid size, and 0, 0 if there are none.
        """
        number = numbers(cell_count)
        is_in = g("Cast", g("ReduceMax", inside_float, i([other_axis]), keepdims=0), to=TensorProto.BOOL)
        last = g("ReduceMax", g("Where", is_in, g("Add", number, f(1)), f(0)), i([3]), keepdims=0)
        first = g("Min", g("ReduceMin", g("Where", is_in, number, f(1e6)), i([3]), keepdims=0), last)
        valid_B11 = g("Unsqueeze", valid_B1, i([2]))
        low, high = (g("Min", g("Div", g("Mul", edge, f(4)), valid_B11), f(1)) for edge in (first, last))
        return low, high

    x1, x2 = extent(w, 3, width_B1)
    y1, y2 = extent(h, 4, height_B1)
    coordinates = (
        g("Mul", g("Add", x1, x2), f(0.5)), g("Mul", g("Add", y1, y2), f(0.5)), g("Sub", x2, x1), g("Sub", y2, y1),
    )  # fmt: skip
    boxes_BCT4 = g("Concat", *(g("Unsqueeze", coordinate, i([-1])) for coordinate in coordinates), axis=-1)

    covered = g("Mul", g("ReduceSum", inside_float, i([2, 3, 4]), keepdims=0), f(16))
    clip_area = g("Mul", g("Mul", height_B1, width_B1), g("Cast", T, to=TensorProto.FLOAT))
    scores_BC = g("Sub", f(1), g("Exp", g("Mul", g("Div", covered, clip_area), f(-40))))
    scores, order = g("TopK", scores_BC, i([len(CATEGORIES)]), axis=1, outputs=2)
    order_BK1 = g("Unsqueeze", order, i([-1]))
    results = {
        contract.SCORES.name: scores,
        contract.LABELS.name: g("Cast", order, to=TensorProto.INT32),
        contract.BOXES.name: g("GatherND", boxes_BCT4, order_BK1, batch_dims=1),
        contract.MASK_LOGITS.name: g("GatherND", logits, order_BK1, batch_dims=1),
    }
    g.nodes += [helper.make_node("Identity", [value], [name]) for name, value in results.items()]
    graph = helper.make_graph(
        g.nodes,
        "toy_engine",
        [_value_info(spec) for spec in contract.ENGINE_INPUTS],
        [_value_info(spec) for spec in contract.ENGINE_OUTPUTS],
        g.initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model


def write_toy_engine(folder: Path, shape: FixedShape | None = None) -> Path:
    """Writes `model.onnx` and `manifest.json` into `folder`.

    Returns the path of the model, which takes only `shape` if that is given.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.onnx"
    model = _toy_model()
    if shape is not None:
        frames, sizes = model.graph.input
        for info, dims in ((frames, astuple(shape)), (sizes, (shape.clips,))):
            for dim, size in zip(info.type.tensor_type.shape.dim, dims, strict=False):
                dim.dim_value = size
    onnx.save(model, path)
    Manifest(
        preset="toy",
        precision="float32",
        categories=CATEGORIES,
        input=InputRule(short_edge=64, long_edge=128),
        clip_frames=5,
        clip_overlap=1,
        top_k=len(CATEGORIES),
        artefact=path.name,
        artefact_sha256=sha256(path),
        shape=shape,
    ).write(folder)
    return path
