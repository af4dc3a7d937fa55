"""What OpenVINO (seen in 2026.4, CPU plugin) does wrong with our graph, repaired before it is compiled.

Both repairs write the same mathematics in another way, and do nothing to a graph that has no such nodes. The third
change is of where the weights lie.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from openvino import Model, Output, Tensor, opset13


def repair(model: Model) -> None:
    """Repairs a model whose input shapes are fixed, in place."""
    for op in model.get_ordered_ops():
        if op.get_type_name() == "GatherElements":
            _keep_slice(op)
        elif op.get_type_name() == "Interpolate":
            _resize_by_gather(op)
    model.validate_nodes_and_infer_types()


def keep_slices(model: Model) -> None:
    """The repair without which a model cannot be given a shape."""
    for op in model.get_ordered_ops():
        if op.get_type_name() == "GatherElements":
            _keep_slice(op)
    model.validate_nodes_and_infer_types()


def use_in_place(model: Model, weights: Mapping[str, np.ndarray]) -> None:
    """Constants become the weights [bytes], uint8, that have their name and hold the same, without a copy of them."""
    for constant in model.get_ordered_ops():
        name = constant.get_friendly_name()
        if constant.get_type_name() != "Constant" or name not in weights:
            continue
        if np.array_equal(constant.data.reshape(-1).view(np.uint8), weights[name]):
            values = Tensor(weights[name], constant.get_output_shape(0), constant.get_element_type())
            in_place = opset13.constant(values, name=name, shared_memory=True).output(0)
            for target in list(constant.output(0).get_target_inputs()):
                target.replace_source_output(in_place)


def _keep_slice(op: Any) -> None:
    """A slice before a GatherElements becomes a gather of the same elements.

    A pass drops the slice where it cuts along an axis that is not gathered, and the shape check then refuses the graph.
    """
    data = op.input_value(0)
    piece = data.get_node()
    if piece.get_type_name() != "Slice":
        return
    start, _, step, axes = (_constant(piece, i) for i in range(1, 5))
    if axes is None or len(axes) != 1 or start != [0] or step != [1]:
        return
    length = data.get_partial_shape()[axes[0]]
    if length.is_static:
        kept = _gather(piece.input_value(0), np.arange(length.get_length()), axes[0])
        op.input(0).replace_source_output(kept)


def _resize_by_gather(op: Any) -> None:
    """Nearest-neighbour resizing becomes a gather of rows and one of columns.

    Where the sizes are fixed, the addition that follows is fused into the resizing, and the sum is wrong.
    """
    attributes = op.get_attributes()
    expected = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    if any(attributes.get(name) != value for name, value in expected.items()):
        return
    found = op.input_value(0)
    before, after = list(found.get_shape()), list(op.output(0).get_shape())
    for axis, (length, wanted) in enumerate(zip(before, after, strict=True)):
        if length != wanted:
            found = _gather(found, np.arange(wanted) * length // wanted, axis)
    for target in list(op.output(0).get_target_inputs()):
        target.replace_source_output(found)


def _gather(data: Output, indices: np.ndarray, axis: int) -> Output:
    return opset13.gather(data, opset13.constant(indices), opset13.constant(np.int64(axis))).output(0)


def _constant(node: Any, index: int) -> list[int] | None:
    source = node.input_value(index).get_node()
    return [int(value) for value in source.data.flatten()] if source.get_type_name() == "Constant" else None
