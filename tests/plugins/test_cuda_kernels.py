"""The CUDA kernels against float64, in emulation and on a GPU.

An error is compared with that of the definition in PyTorch, from the same stored inputs: fp32 arithmetic, the result
rounded to the storage. Ours may err twice as much. `make test-gpu` runs the same functions on a GPU.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.cuda_backends import (
    DETERMINISTIC,
    NO_TENSOR_CORES,
    ORDERS,
    Backend,
)
from support.kernel_cases import (
    DEFORM_CASES,
    TEMPORAL_CASES,
    DeformCase,
    DeformInputs,
    TemporalCase,
    TemporalInputs,
    deform_gradients,
    deform_reference,
    temporal_gradients,
    temporal_reference,
)
from support.kernel_errors import assert_as_exact_as_pytorch, in_float32
from torch import Tensor

DTYPES = [torch.float32, torch.float16, torch.bfloat16]

by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
every_temporal_case = pytest.mark.parametrize("case", TEMPORAL_CASES, ids=lambda case: case.name)
every_deform_case = pytest.mark.parametrize("case", DEFORM_CASES, ids=lambda case: case.name)


def pytorch_gradients(
    op: Callable[[Any], Tensor], inputs: Any, leaves: dict[str, str], grad: Tensor
) -> dict[str, Tensor]:
    """Autograd's gradients, in fp32.

    `leaves` are attributes of `inputs` by the names of the gradients.
    """
    tensors = {name: getattr(inputs, attribute).detach().requires_grad_() for name, attribute in leaves.items()}
    out = op(replace(inputs, **{leaves[name]: tensor for name, tensor in tensors.items()}))
    found = torch.autograd.grad(out, list(tensors.values()), grad, allow_unused=True)
    return {name: torch.zeros_like(tensors[name]) if x is None else x for name, x in zip(tensors, found, strict=True)}


# SplitTemporalAttn

TEMPORAL_LEAVES = {"query": "query_BTSC", "key": "key_BUSC", "value": "value_BUSC"}
MORE_TEMPORAL_CASES = [
    TemporalCase("heads wider than a warp", M=2, D=300, T=3, U=4, S=2, B=1),
    TemporalCase("more heads than a block takes", M=70, D=8, T=2, U=3, S=2, B=1),
    TemporalCase("many clips", B=9, S=3, T=2, U=5),
    TemporalCase("frames for two passes", T=12, U=6, S=5, B=1),
]


def check_temporal(backend: Backend, inputs: TemporalInputs, offset: int = 0) -> None:
    exact, exact_gradients = temporal_gradients(inputs)
    upcast = in_float32(inputs)
    assert_as_exact_as_pytorch(backend.temporal_forward(inputs, offset), exact, temporal_reference(upcast))
    found = backend.temporal_backward(inputs, offset=offset)
    pytorch = pytorch_gradients(temporal_reference, upcast, TEMPORAL_LEAVES, upcast.grad_BTSC)
    for name, gradient in found.items():
        assert_as_exact_as_pytorch(gradient, exact_gradients[name], pytorch[name])


@by_dtype
@pytest.mark.parametrize("case", TEMPORAL_CASES + MORE_TEMPORAL_CASES, ids=lambda case: case.name)
def test_temporal_attention(backend: Backend, case: TemporalCase, dtype: torch.dtype) -> None:
    check_temporal(backend, case.inputs(dtype))


@pytest.mark.parametrize("T", [1, 2, 3, 5, 6, 9, 16, pytest.param(32, marks=pytest.mark.slow)])
@pytest.mark.parametrize("U", [1, 4, 10, 32])
def test_temporal_attention_of_any_number_of_frames(backend: Backend, T: int, U: int) -> None:
    check_temporal(backend, TemporalCase("", B=1, S=9, T=T, U=U, M=4).inputs(torch.float16))


@by_dtype
def test_temporal_attention_in_any_order_of_threads(backend: Backend, any_order: None, dtype: torch.dtype) -> None:
    check_temporal(backend, TemporalCase("", T=6, U=7, M=3, D=20).inputs(dtype))


@by_dtype
@pytest.mark.parametrize("elements", [1, 3])
def test_temporal_attention_at_any_address(backend: Backend, dtype: torch.dtype, elements: int) -> None:
    check_temporal(backend, TemporalCase("", T=6, U=7).inputs(dtype), offset=elements * dtype.itemsize)


@by_dtype
def test_temporal_gradients_are_the_same_bits_on_every_run(backend: Backend, dtype: torch.dtype) -> None:
    inputs = TemporalCase("", T=9, U=6).inputs(dtype)
    runs = []
    for order in ORDERS:
        with backend.order(order):
            runs.append(backend.temporal_backward(inputs))
    for run in runs[1:]:
        assert all(torch.equal(run[name], runs[0][name]) for name in run)


@pytest.mark.parametrize("wanted", [("query",), ("key",), ("value",), ()])
@pytest.mark.parametrize("T", [5, 9])
def test_temporal_gradients_that_are_not_wanted_are_left_out(backend: Backend, wanted: tuple[str, ...], T: int) -> None:
    inputs = TemporalCase("", T=T, U=6).inputs(torch.float32)
    everything, some = backend.temporal_backward(inputs), backend.temporal_backward(inputs, wanted)
    assert all(torch.equal(some[name], everything[name]) for name in wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("D", [16, 260])
def test_a_nan_reaches_the_temporal_outputs_that_depend_on_it(backend: Backend, dtype: torch.dtype, D: int) -> None:
    inputs = TemporalCase("", B=1, S=3, T=2, U=6, M=2, D=D).inputs(dtype)
    clean = backend.temporal_forward(inputs)
    for name, where in (("query_BTSC", (0, 1, 2, 3)), ("key_BUSC", (0, 5, 2, 3)), ("value_BUSC", (0, 0, 2, 3))):
        tensor = getattr(inputs, name).clone()
        tensor[where] = torch.nan
        broken = replace(inputs, **{name: tensor})
        expected = temporal_reference(broken.double()).isnan()
        found = backend.temporal_forward(broken)
        assert torch.equal(found.isnan(), expected)
        assert torch.equal(found[~expected], clean[~expected])
        gradients = temporal_gradients(broken)[1]
        for leaf, gradient in backend.temporal_backward(broken).items():
            assert torch.equal(gradient.isnan(), gradients[leaf].isnan())


def test_infinite_scores_are_softmaxs(backend: Backend) -> None:
    inputs = TemporalCase("", B=1, S=2, T=2, U=11, M=1, D=16).inputs(torch.float32)
    # The first six keys score -inf with all queries of location 0, all keys with those of location 1.
    query, key = torch.ones_like(inputs.query_BTSC), inputs.key_BUSC.clone()
    key[:, :6, 0, 0] = -torch.inf
    key[:, :, 1, 0] = -torch.inf
    inputs = replace(inputs, query_BTSC=query, key_BUSC=key)
    found, exact = backend.temporal_forward(inputs), temporal_reference(inputs.double())
    assert torch.equal(found.isnan(), exact.isnan()) and exact[:, :, 1].isnan().all()
    np.testing.assert_allclose(found[:, :, 0].numpy(), exact[:, :, 0].numpy(), rtol=1e-5, atol=1e-6)


# MSDeformAttn

DEFORM_LEAVES = {
    "value": "value_NSMD",
    "reference": "reference_NQLR",
    "offsets": "offsets_NQMLP2",
    "logits": "logits_NQMLP",
}


def check_deform_forward(backend: Backend, inputs: DeformInputs, offset: int = 0) -> None:
    exact, upcast = deform_reference(inputs.double()), deform_reference(in_float32(inputs))
    assert_as_exact_as_pytorch(backend.deform_forward(inputs, offset), exact, upcast)


def check_deform_backward(backend: Backend, inputs: DeformInputs, flags: int = 0, offset: int = 0) -> None:
    upcast = in_float32(inputs)
    exact = deform_gradients(inputs)[1]
    pytorch = pytorch_gradients(deform_reference, upcast, DEFORM_LEAVES, upcast.grad_NQC)
    for name, gradient in backend.deform_backward(inputs, flags=flags, offset=offset).items():
        assert_as_exact_as_pytorch(gradient, exact[name], pytorch[name])


@by_dtype
@every_deform_case
def test_deformable_attention(backend: Backend, case: DeformCase, dtype: torch.dtype) -> None:
    check_deform_forward(backend, case.inputs(dtype))


@by_dtype
@pytest.mark.parametrize("flags", [0, pytest.param(DETERMINISTIC, marks=pytest.mark.slow)], ids=["", "deterministic"])
@every_deform_case
def test_gradients_of_deformable_attention(backend: Backend, case: DeformCase, dtype: torch.dtype, flags: int) -> None:
    check_deform_backward(backend, case.inputs(dtype), flags)


@by_dtype
@pytest.mark.parametrize("D", [20, 32])
def test_deformable_attention_in_any_order_of_threads(
    backend: Backend, any_order: None, dtype: torch.dtype, D: int
) -> None:
    inputs = DeformCase("", D=D, Q=37).inputs(dtype)
    check_deform_forward(backend, inputs)
    check_deform_backward(backend, inputs)
    check_deform_backward(backend, inputs, DETERMINISTIC)


@by_dtype
@pytest.mark.parametrize("elements", [1, 2, 4])
def test_deformable_attention_at_any_address(backend: Backend, dtype: torch.dtype, elements: int) -> None:
    inputs, offset = DeformCase("", N=1, D=32, Q=9).inputs(dtype), elements * dtype.itemsize % 16
    check_deform_forward(backend, inputs, offset)
    check_deform_backward(backend, inputs, DETERMINISTIC, offset)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("D", [32, 64])
def test_the_forward_without_tensor_cores_is_as_exact(backend: Backend, dtype: torch.dtype, D: int) -> None:
    """The flag selects the other path, to compare a suspicious result by."""
    inputs = DeformCase("", Q=37, D=D).inputs(dtype)
    exact, upcast = deform_reference(inputs.double()), deform_reference(in_float32(inputs))
    launches = []
    for flags in (0, NO_TENSOR_CORES):
        assert_as_exact_as_pytorch(backend.deform_forward(inputs, flags=flags), exact, upcast)
        launches.append(backend.kernels() if backend.emulated else str(flags))
    assert launches[0] != launches[1]  # the shared memory tells the kernels apart


@pytest.mark.parametrize("path", ["", "fma"])
def test_the_environment_does_without_tensor_cores(emulation: Path, path: str) -> None:
    """A separate process, as the variable is read once, and no PyTorch: it is slow."""
    script = (
        "import ctypes, sys, numpy as np; from mssts.kernels import DeformAttnCall\n"
        "library = ctypes.CDLL(sys.argv[1]); library.mssts_emulation_launches.restype = ctypes.c_char_p\n"
        "at = lambda x: x.ctypes.data + -x.ctypes.data % 16\n"
        "halves = [np.zeros(4096, np.float16) for _ in range(4)]; reference = np.zeros(64, np.float32)\n"
        "shapes = np.full(16, 1, np.int64)\n"
        "pointers = map(at, (halves[0], shapes, reference, *halves[1:]))\n"
        "call = DeformAttnCall(1, 1, 1, 1, 32, 1, 1, 2, 1, 5, 0, *pointers)\n"
        "status = library.mssts_cuda_deform_attn_forward(ctypes.byref(call), None)\n"
        "print(status, library.mssts_emulation_launches().decode())\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "MSSTS_CUDA_PATH": path}
    command = [sys.executable, "-c", script, str(emulation / "libmssts_cuda_emulated.so")]
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert output.startswith("0 ")
    # The tensor kernel's shared memory: the level, and 1 KiB for each of 8 warps.
    assert ("shared 8208" in output) == (path == ""), output


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
def test_shapes_are_int32_or_int64(backend: Backend, dtype: torch.dtype) -> None:
    inputs = DeformCase("", D=32, Q=37).inputs(dtype)
    narrow = replace(inputs, shapes_L2=inputs.shapes_L2.int())
    assert torch.equal(backend.deform_forward(narrow), backend.deform_forward(inputs))
    found, expected = (backend.deform_backward(x, flags=DETERMINISTIC) for x in (narrow, inputs))
    assert all(torch.equal(found[name], expected[name]) for name in found)


@by_dtype
def test_deterministic_gradients_are_the_same_bits_on_every_run(backend: Backend, dtype: torch.dtype) -> None:
    inputs = DeformCase("", D=32, Q=150, spread=0.5).inputs(dtype)
    runs = []
    for order in ORDERS:
        with backend.order(order):
            runs.append(backend.deform_backward(inputs, flags=DETERMINISTIC))
    for run in runs[1:]:
        assert all(torch.equal(run[name], runs[0][name]) for name in run)


@pytest.mark.parametrize("wanted", [("value",), ("reference",), ("offsets",), ("logits",), ("offsets", "logits"), ()])
@pytest.mark.parametrize("flags", [0, DETERMINISTIC], ids=["", "deterministic"])
def test_deformable_gradients_that_are_not_wanted_are_left_out(
    backend: Backend, wanted: tuple[str, ...], flags: int
) -> None:
    inputs = DeformCase("", D=32, Q=17).inputs(torch.float32)
    everything = backend.deform_backward(inputs, flags=flags)
    for name, gradient in backend.deform_backward(inputs, wanted, flags).items():
        torch.testing.assert_close(gradient, everything[name], rtol=0, atol=2e-5 if flags == 0 else 0)


@by_dtype
@pytest.mark.parametrize("D", [20, 32, 64])
def test_a_nan_reaches_the_deformable_outputs_that_depend_on_it(backend: Backend, dtype: torch.dtype, D: int) -> None:
    case = DeformCase("", N=1, Q=37, D=D, spread=0.5)
    inputs = case.inputs(dtype)
    clean = backend.deform_forward(inputs)
    for name, where in (
        ("reference_NQLR", (0, 3, 1, 0)),
        ("offsets_NQMLP2", (0, 3, 1, 2, 1, 1)),
        ("logits_NQMLP", (0, 3, 1, 3, 2)),
        ("value_NSMD", (0, 50, 2, 7)),
    ):
        tensor = getattr(inputs, name).clone()
        tensor[where] = torch.nan
        broken = replace(inputs, **{name: tensor})
        expected = deform_reference(broken.double()).isnan()
        found = backend.deform_forward(broken)
        assert expected.any() and torch.equal(found.isnan(), expected), name
        # Another way of summing may step in where a warp met a NaN: the same but for rounding.
        bound = torch.finfo(dtype).eps * float(clean.abs().max())
        torch.testing.assert_close(found[~expected], clean[~expected], rtol=0, atol=2 * bound)
        backend.deform_backward(broken)  # neither fails nor reads elsewhere


@pytest.mark.parametrize("D", [20, 32])
def test_what_is_not_finite_breaks_a_head_of_a_token_in_deterministic_gradients(backend: Backend, D: int) -> None:
    """All channels of the head are NaN where one met infinity, which integers lack."""
    inputs = DeformCase("", N=1, Q=9, D=D).inputs(torch.float32)
    inputs.grad_NQC[0, 4, D + 3] = torch.inf  # of the second head
    usual, fixed = (backend.deform_backward(inputs, ("value",), flags)["value"] for flags in (0, DETERMINISTIC))
    broken = ~usual.isfinite().all(-1)
    assert broken[..., 1].any() and not broken[..., [0, 2]].any()
    assert torch.equal(fixed.isnan(), broken[..., None].expand_as(fixed))


@pytest.mark.parametrize("huge", [3e4, 1e20, torch.inf])
@pytest.mark.parametrize("R", [2, 4])
@pytest.mark.parametrize("D", [20, 32])
def test_points_that_no_integer_can_tell_are_outside(backend: Backend, huge: float, R: int, D: int) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        inputs = DeformCase("", Q=33, D=D, R=R).inputs(dtype)
        inputs.offsets_NQMLP2[:, ::2] = huge
        inputs.reference_NQLR[:, 1::3] = huge
        found, exact = backend.deform_forward(inputs), deform_reference(inputs.double())
        assert torch.equal(found.isnan(), exact.isnan())
        there = ~exact.isnan()
        bound = 2 * torch.finfo(dtype).eps * float(exact[there].abs().max())
        assert float((found.double() - exact)[there].abs().max()) <= bound + 1e-5
        backend.deform_backward(inputs)


@pytest.mark.parametrize("D", [20, 32])
@pytest.mark.parametrize(
    "shapes",
    [
        ((9, 12), (5, 6), (3, 3), (2, 3)),
        ((1000, 1000), (5, 6), (3, 3), (2, 2)),
        ((2**31 - 1, 2**31 - 1), (2**31 - 1, 2), (3, 3), (2, 2)),
        ((-9, 12), (5, 6), (3, 3), (2, 2)),
        ((-9, -12), (5, 6), (3, 3), (2, 2)),
    ],
    ids=str,
)
def test_shapes_of_more_tokens_than_there_are_give_nan(backend: Backend, shapes: Any, D: int) -> None:
    """Shapes of too many tokens give NaN, and nothing outside is read.

    A GPU cannot refuse them, as they are in its memory. Guard pages show reads outside.
    """
    for dtype in (torch.float32, torch.float16):
        inputs = DeformCase("", Q=33, D=D).inputs(dtype)
        inputs = replace(inputs, shapes_L2=torch.tensor(shapes))
        assert backend.deform_forward(inputs).isnan().all()
        for flags in (0, DETERMINISTIC):
            backend.deform_backward(inputs, flags=flags)  # neither fails nor reads or writes elsewhere


@by_dtype
@pytest.mark.parametrize("D", [20, 32])
def test_tokens_behind_the_last_level_do_no_harm(backend: Backend, dtype: torch.dtype, D: int) -> None:
    inputs = DeformCase("", Q=17, D=D).inputs(dtype)
    N, S, M, _ = inputs.value_NSMD.shape
    longer = replace(
        inputs, value_NSMD=torch.cat([inputs.value_NSMD, inputs.value_NSMD.new_full((N, 5, M, D), torch.nan)], 1)
    )
    assert torch.equal(backend.deform_forward(longer), backend.deform_forward(inputs))
    found, expected = (backend.deform_backward(x, flags=DETERMINISTIC) for x in (longer, inputs))
    assert (found["value"][:, S:] == 0).all()
    found["value"] = found["value"][:, :S]
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert (backend.deform_backward(longer, ("value",))["value"][:, S:] == 0).all()
