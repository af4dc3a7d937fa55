"""Weights of an OpenVINO model in the memory that maps their file."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from openvino import Model, Tensor, opset13


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
