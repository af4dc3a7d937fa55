"""Kernels under torch.compile, torch.export and the ONNX exporter."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.model_inputs import build, geometry
from support.torch_ops import LEVELS, deformable, deformable_arguments, either_op, gradients, temporal
from torch import Tensor

from mssts.kernels import library
from mssts.model.config import tiny
from mssts.ops import ms_deform_attn, reference_ops, split_temporal_attn

pytestmark = pytest.mark.skipif(bool(library("cpu").reason), reason=f"the CPU kernels: {library('cpu').reason}")


@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
def test_the_operators_keep_pytorchs_rules(grad):
    torch.library.opcheck(torch.ops.mssts.ms_deform_attn.default, deformable_arguments(grad))
    leaves, _ = temporal(torch.float32)
    leaves = [leaf.requires_grad_(grad) for leaf in leaves]
    torch.library.opcheck(torch.ops.mssts.split_temporal_attn.default, (*leaves, 3))
    part = torch.randn(2, 5, 6, 36).chunk(3, -1)
    torch.library.opcheck(torch.ops.mssts.split_temporal_attn.default, (*part, 3))


@pytest.mark.parametrize("wanted", [True, False], ids=["all", "some"])
def test_the_backward_operators_keep_pytorchs_rules(wanted):
    inputs = deformable_arguments(False)
    grad = torch.randn(2, 7, 24)
    mask = [True, wanted, True, wanted]
    torch.library.opcheck(torch.ops.mssts.ms_deform_attn_backward.default, (grad, *inputs, mask))
    leaves, _ = temporal(torch.float32)
    operator = torch.ops.mssts.split_temporal_attn_backward.default
    torch.library.opcheck(operator, (torch.randn_like(leaves[0]), *leaves, 3, [True, wanted, True]))


@either_op
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compiled_functions_have_no_breaks(make, dynamic):
    torch._dynamo.reset()
    _, op = make()

    def function(*leaves: Tensor) -> Tensor:
        return op(*(leaf * 2 for leaf in leaves)) + 1

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for seed in range(2):
        size = {"N": 2 + seed} if make is deformable else {"S": 5 + seed}
        leaves, _ = make(seed=seed, **(size if dynamic else {}))
        for found, expected in zip(gradients(compiled, leaves), gradients(function, leaves), strict=True):
            assert torch.equal(found, expected)


def test_a_compiled_function_follows_the_choice():
    torch._dynamo.reset()
    leaves, op = temporal(torch.float32)
    graphs: list[str] = []

    def backend(module: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Tensor]:
        graphs.append(module.code)
        return module.forward

    compiled = torch.compile(op, backend=backend, fullgraph=True)
    compiled(*leaves)
    with reference_ops():
        compiled(*leaves)
    assert ["mssts" in graph for graph in graphs] == [True, False]


@pytest.mark.slow
@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
def test_inductor_compiles_a_layer(grad):
    """Compiles in a separate process.

    Inductor forks, which is unsafe with the runtimes that other tests have loaded.
    """
    program = f"from ops import test_torch_tracing; test_torch_tracing.compile_a_layer({grad})"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parents[1], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]


def compile_a_layer(grad):
    model = build(replace(tiny().model, width=32, heads=2, split_width=8))
    layer = model.encoder.layers[0].split
    tokens = torch.randn(1, 3, 21, 32, requires_grad=grad)
    where = geometry([(4, 4), (2, 2), (1, 1)], (32, 32))
    compiled = torch.compile(layer, fullgraph=True)
    with torch.set_grad_enabled(grad):
        found, expected = compiled(tokens, where), layer(tokens, where)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)  # of order 1, some 100 terms, in fp32
    if grad:
        ours, theirs = (torch.autograd.grad(out.square().sum(), tokens)[0] for out in (found, expected))
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


class Deformable(torch.nn.Module):
    def forward(self, value: Tensor, shapes_L2: Tensor, reference: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
        return ms_deform_attn(value, shapes_L2, reference, offsets, logits, list(LEVELS))


@pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])
def test_exported_programs_hold_the_operator(strict):
    N, Q = torch.export.Dim("N", min=1, max=8), torch.export.Dim("Q", min=1, max=99)
    free = {0: N, 1: Q}
    example = deformable_arguments(False)
    program = torch.export.export(Deformable(), example, dynamic_shapes=({0: N}, None, free, free, free), strict=strict)
    assert "mssts.ms_deform_attn" in program.graph_module.code
    assert program.run_decompositions({}).graph_module.code.count("mssts.ms_deform_attn") == 1
    (value, reference, offsets, logits), op = deformable(torch.float32, N=3, Q=5, seed=4)
    found = program.module()(value, example[1], reference, offsets, logits)
    assert torch.equal(found, op(value, reference, offsets, logits))


def test_onnx_export_never_meets_a_kernel(tmp_path):
    class Temporal(torch.nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return split_temporal_attn(q, k, v, heads=3)

    leaves, _ = temporal(torch.float32)
    program = torch.onnx.export(Temporal().eval(), tuple(leaves), dynamo=True, verbose=False)
    assert program is not None
    assert {node.domain for node in program.model.graph} <= {"", "ai.onnx", "pkg.onnxscript.torch_lib.common"}
