"""ONNX Runtime's binding, where queries, keys and values are parts of one tensor."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from support.packing import PACKINGS, attributes, packed

from mssts import kernels
from mssts.export.options import OPSET
from mssts.ops.exporting import DOMAIN, PLUGIN_ATTRIBUTES
from mssts.ops.function_bodies import DOMAIN_VERSION, function_bodies

NAMES = ("query", "key", "value")
FLOATS = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}


@pytest.fixture(params=["kernel", "body"])
def options(request) -> onnxruntime.SessionOptions:
    """Those of a session on our kernels, or on the function body."""
    found = kernels.library("onnxruntime")
    chosen = onnxruntime.SessionOptions()
    chosen.log_severity_level = 4
    if request.param == "kernel":
        if found.path is None or found.reason:
            pytest.skip(f"no kernels for ONNX Runtime: {found.reason}")
        chosen.register_custom_ops_library(str(found.path))
    return chosen


def session(options, stored: int = TensorProto.FLOAT, cast_back: bool = True, **parts: list[int]):
    """A session of one node between casts, all sizes free."""
    casts = [helper.make_node("Cast", [name], [f"{name}_stored"], to=stored) for name in NAMES]
    node = helper.make_node("SplitTemporalAttn", [f"{name}_stored" for name in NAMES], ["out_stored"], "ours",
                            domain=DOMAIN, heads=2, **parts, **PLUGIN_ATTRIBUTES)  # fmt: skip
    last = [helper.make_node("Cast", ["out_stored"], ["out"], to=TensorProto.FLOAT)] if cast_back else []
    graph = helper.make_graph(
        [*casts, node, *last],
        "test",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", "T", "S", name]) for name in NAMES],
        [helper.make_tensor_value_info("out" if cast_back else "out_stored", TensorProto.FLOAT, [None] * 4)],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, DOMAIN_VERSION)]
    model = helper.make_model(graph, functions=function_bodies(OPSET), opset_imports=opsets, ir_version=10)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("stored", FLOATS.values(), ids=FLOATS.keys())
@pytest.mark.parametrize("parts", PACKINGS.values(), ids=PACKINGS.keys())
def test_parts_compute_what_separate_tensors_do(options, stored, parts):
    gen = torch.Generator().manual_seed(0)
    tokens = [torch.randn(2, 5, 37, 32, generator=gen) for _ in NAMES]
    separate = {name: tensor.numpy() for name, tensor in zip(NAMES, tokens, strict=True)}
    together = {name: tensor.numpy() for name, tensor in zip(NAMES, packed(parts, *tokens), strict=True)}
    expected = session(options, stored).run(None, separate)[0]
    found = session(options, stored, **attributes(parts, 32)).run(None, together)[0]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("options", ["kernel"], indirect=True)
@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"starts": [0, 32, 64], "ends": [32, 64, 96]}, "value has 64 channels, but attributes .* are 64 to 96"),
        ({"starts": [0, 32, 32], "ends": [16, 64, 64]}, r"key is \[1,2,3,32\], expected .* C = 16 as in query"),
        ({"starts": [0, 32, 32], "ends": [32, 32, 64]}, "are 32 to 32 for key, expected a start"),
        ({"starts": [0, 32], "ends": [32, 32, 64]}, "attribute starts has 2 integers, expected 3"),
    ],
)
def test_parts_that_do_not_fit_are_an_error(options, parts, message):
    tokens = np.zeros((1, 2, 3, 64), np.float32)
    with pytest.raises(Exception, match=message):
        session(options, **parts).run(None, dict.fromkeys(NAMES, tokens))


@pytest.mark.parametrize("options", ["kernel"], indirect=True)
def test_the_shape_of_the_output_is_that_of_the_queries_part(options):
    alone = session(options, cast_back=False, **attributes(PACKINGS["qkv"], 32))
    assert alone.get_outputs()[0].shape == ["B", "T", "S", 32]
