"""The two ops and their ONNX function bodies against independent definitions.

The definitions are in float64.

What is true of an op is asked of its definition in PyTorch and of the kernel, where one is built.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from support.deformable import SHAPES, deformable_by_loops, deformable_inputs
from support.packing import PACKINGS, attributes, packed

from mssts.export.options import OPSET
from mssts.kernels import library
from mssts.ops import ms_deform_attn, reference_ops, split_temporal_attn
from mssts.ops.exporting import DOMAIN, PLUGIN_ATTRIBUTES
from mssts.ops.function_bodies import DOMAIN_VERSION, function_bodies


@pytest.fixture(params=["definition", "kernel"])
def either(request: pytest.FixtureRequest) -> Iterator[None]:
    """The test runs twice: with the ops' definitions and with the kernels."""
    if request.param == "definition":
        with reference_ops():
            yield
    elif reason := library("cpu").reason:
        pytest.skip(f"the CPU kernels: {reason}")
    else:
        yield


@pytest.mark.parametrize("R", [2, 4])
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("spread", [0.3, 3.0, 50.0], ids=["near", "far", "mostly outside"])
def test_deformable_attention_is_the_papers_equation(either, shapes, R, spread):
    inputs = deformable_inputs(shapes, R=R, spread=spread)
    np.testing.assert_allclose(ms_deform_attn(*inputs).numpy(), deformable_by_loops(*inputs), rtol=0, atol=1e-13)


def test_a_point_on_a_pixel_centre_returns_that_pixel(either):
    shapes = ((3, 4),)
    value = torch.arange(12, dtype=torch.float64).view(1, 12, 1, 1)
    reference = torch.tensor([[(2 + 0.5) / 4, (1 + 0.5) / 3]], dtype=torch.float64).view(1, 1, 1, 2)
    zeros = torch.zeros(1, 1, 1, 1, 2, 2, dtype=torch.float64)
    out = ms_deform_attn(value, torch.tensor(shapes), reference, zeros, zeros[..., 0], list(shapes))
    assert out.item() == pytest.approx(1 * 4 + 2, abs=1e-14)


@pytest.mark.parametrize("R", [2, 4])
def test_deformable_attention_has_right_gradients(either, R):
    value, shapes_L2, reference, offsets, logits, shapes = deformable_inputs(((4, 5), (2, 3)), 1, 3, 2, 2, 2, R, 1.0)
    leaves = [x.requires_grad_() for x in (value, offsets, logits)]
    torch.autograd.gradcheck(lambda v, o, a: ms_deform_attn(v, shapes_L2, reference, o, a, shapes), leaves)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bit_storage_costs_only_the_rounding_of_the_storage(either, dtype):
    shapes = SHAPES["four levels"]
    value, shapes_L2, reference, offsets, logits, _ = deformable_inputs(shapes, dtype=torch.float32)
    stored = [x.to(dtype) for x in (value, offsets, logits)]
    out = ms_deform_attn(stored[0], shapes_L2, reference, stored[1], stored[2], list(shapes))
    exact = ms_deform_attn(
        stored[0].double(), shapes_L2, reference.double(), stored[1].double(), stored[2].double(), list(shapes)
    )
    assert out.dtype == dtype
    # Half a unit in the last place of the largest output, and fp32 arithmetic far below it.
    assert (out.double() - exact).abs().max() <= torch.finfo(dtype).eps * exact.abs().max()


@pytest.mark.parametrize("U", [5, 10])
def test_temporal_attention_is_attention_at_each_location(either, U):
    gen = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, t, 6, 8, generator=gen, dtype=torch.float64) for t in (5, U, U))
    out = split_temporal_attn(q, k, v, heads=2)
    for b, s, m in itertools.product(range(2), range(6), range(2)):
        cut = slice(4 * m, 4 * m + 4)
        weights = (q[b, :, s, cut] @ k[b, :, s, cut].T / math.sqrt(4)).softmax(-1)
        torch.testing.assert_close(out[b, :, s, cut], weights @ v[b, :, s, cut], rtol=0, atol=1e-13)


def test_temporal_attention_has_right_gradients(either):
    gen = torch.Generator().manual_seed(0)
    leaves = [torch.randn(1, t, 2, 4, generator=gen, dtype=torch.float64, requires_grad=True) for t in (3, 6, 6)]
    torch.autograd.gradcheck(lambda q, k, v: split_temporal_attn(q, k, v, heads=2), leaves)


@pytest.mark.parametrize("parts", PACKINGS.values(), ids=PACKINGS.keys())
def test_packed_queries_keys_and_values_compute_what_separate_ones_do(either, parts):
    gen = torch.Generator().manual_seed(0)
    tokens = [torch.randn(2, 3, 4, 8, generator=gen, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    expected = split_temporal_attn(*tokens, heads=2)
    found = split_temporal_attn(*packed(parts, *tokens), heads=2, channels=8, parts=parts)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
    for gradient, wanted in zip(
        torch.autograd.grad(found.square().sum(), tokens), torch.autograd.grad(expected.square().sum(), tokens),
        strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(gradient, wanted, rtol=0, atol=1e-13)


def test_a_part_that_a_tensor_does_not_have_is_an_error(either):
    tokens = torch.zeros(1, 2, 3, 16)
    with pytest.raises(RuntimeError, match="a tensor of 16 channels has no part 2 of 8 channels"):
        split_temporal_attn(tokens, tokens, tokens, heads=2, channels=8, parts=(0, 1, 2))


def run_function(op_type, inputs, attributes, out_dtype):
    """Runs one node with its function body in ONNX Runtime, all sizes free."""
    names = list(inputs)
    infos = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(x.dtype), [None] * x.ndim)
        for name, x in inputs.items()
    ]
    node = helper.make_node(op_type, names, ["out"], domain=DOMAIN, **attributes, **PLUGIN_ATTRIBUTES)
    rank = 3 if op_type == "MSDeformAttn" else 4
    out = helper.make_tensor_value_info("out", out_dtype, [None] * rank)
    graph = helper.make_graph([node], "test", infos, [out])
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, DOMAIN_VERSION)]
    model = helper.make_model(graph, functions=function_bodies(OPSET), opset_imports=opsets, ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run(None, inputs)[0]


@pytest.mark.parametrize("R", [2, 4])
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("spread", [3.0, 1e6], ids=["far", "absurdly far"])
def test_the_body_of_deformable_attention_computes_the_op(shapes, R, spread):
    inputs = deformable_inputs(shapes, R=R, spread=spread, dtype=torch.float32)
    exact = ms_deform_attn(*[x.double() if i not in (1, 5) else x for i, x in enumerate(inputs)]).numpy()
    names = ("value", "shapes", "reference", "offsets", "logits")
    found = run_function(
        "MSDeformAttn", {n: x.numpy() for n, x in zip(names, inputs, strict=False)}, {}, TensorProto.FLOAT
    )
    # A location is at most some 12 pixels from the origin, or outside: its rounding moves a sample by eps·12 of the
    # difference of neighbours, which are of order 1, in each of 2 coordinates; 16 samples are averaged.
    assert np.abs(found - exact).max() <= 64 * np.finfo(np.float32).eps


def test_the_body_of_deformable_attention_takes_half_precision_storage():
    shapes = SHAPES["four levels"]
    value, shapes_L2, reference, offsets, logits, _ = deformable_inputs(shapes, dtype=torch.float32)
    value, offsets, logits = value.half(), offsets.half(), logits.half()
    feeds = {"value": value, "shapes": shapes_L2, "reference": reference, "offsets": offsets, "logits": logits}
    found = run_function("MSDeformAttn", {n: x.numpy() for n, x in feeds.items()}, {}, TensorProto.FLOAT16)
    exact = ms_deform_attn(
        value.double(), shapes_L2, reference.double(), offsets.double(), logits.double(), list(shapes)
    )
    assert np.abs(found - exact.numpy()).max() <= np.finfo(np.float16).eps * exact.abs().max()


def test_bodies_avoid_what_tensorrt_computes_wrongly():
    used = {node.op_type for function in function_bodies(OPSET) for node in function.node}
    assert not used & {"GridSample", "If", "Loop", "Scan"}


@pytest.mark.parametrize("U", [3, 6])
def test_the_body_of_temporal_attention_computes_the_op(U):
    gen = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(2, t, 5, 12, generator=gen) for t in (3, U, U))
    exact = split_temporal_attn(q.double(), k.double(), v.double(), heads=3).numpy()
    feeds = {"query": q.numpy(), "key": k.numpy(), "value": v.numpy()}
    found = run_function("SplitTemporalAttn", feeds, {"heads": 3}, TensorProto.FLOAT)
    assert np.abs(found - exact).max() <= 32 * np.finfo(np.float32).eps


@pytest.mark.parametrize("parts", PACKINGS.values(), ids=PACKINGS.keys())
def test_the_body_of_temporal_attention_takes_parts(parts):
    gen = torch.Generator().manual_seed(1)
    tokens = [torch.randn(2, 3, 5, 12, generator=gen) for _ in range(3)]
    feeds = {n: x.numpy() for n, x in zip(("query", "key", "value"), packed(parts, *tokens), strict=True)}
    exact = split_temporal_attn(*(x.double() for x in tokens), heads=3).numpy()
    found = run_function("SplitTemporalAttn", feeds, {"heads": 3, **attributes(parts, 12)}, TensorProto.FLOAT)
    assert np.abs(found - exact).max() <= 32 * np.finfo(np.float32).eps
