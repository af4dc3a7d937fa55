"""The forward where every token is a query, or a tensor lies at an odd address."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from support.cuda_backends import Backend
from support.kernel_cases import DeformCase, DeformInputs, deform_reference
from support.kernel_errors import assert_as_exact_as_pytorch, in_float32

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))


def check_deform_forward(backend: Backend, inputs: DeformInputs) -> None:
    exact, upcast = deform_reference(inputs.double()), deform_reference(in_float32(inputs))
    assert_as_exact_as_pytorch(backend.deform_forward(inputs), exact, upcast)


@pytest.mark.parametrize("only", ["value", "offsets", "logits", "out"])
def test_the_forward_with_one_tensor_at_an_odd_address(backend: Backend, only: str) -> None:
    """A NaN takes the way of the tensor kernel that stores 16 bytes at once.

    A processor stores them at any address. So in emulation the shared memory tells which kernel ran.
    """
    inputs = DeformCase("", N=1, D=32, Q=9).inputs(torch.float16)
    inputs.value_NSMD[0, ::9, 1, 3] = torch.nan
    if backend.emulated:
        backend.kernels()  # of the tests before
    exact, aligned = deform_reference(inputs.double()), backend.deform_forward(inputs)
    usual = backend.kernels() if backend.emulated else ""
    found = backend.deform_forward(inputs, 8, only=only)
    if backend.emulated:  # four logits are 8 bytes, all else that a lane takes at once is 16
        assert (backend.kernels() == usual) == (only == "logits")
    assert torch.equal(found.isnan(), exact.isnan()) and exact.isnan().any()
    torch.testing.assert_close(found, aligned, rtol=2e-3, atol=2e-3, equal_nan=True)


# Levels that end in tiles of all sizes, a level without tokens, and shapes that are not what the tokens are.
ENCODERS = {
    "sides of no multiple of 8": ((13, 19), (7, 10), (4, 5), (2, 3)),
    "whole tiles": ((16, 16), (8, 8), (1, 24), (24, 1)),
    "an empty level": ((9, 17), (0, 3), (4, 5), (2, 3)),
    "three levels": ((13, 19), (7, 10), (1, 1)),
}


@by_dtype
@pytest.mark.parametrize("D", [32, 64])
@pytest.mark.parametrize("shapes", ENCODERS.values(), ids=ENCODERS)
def test_an_encoder_whose_every_token_is_a_query(backend: Backend, dtype: torch.dtype, D: int, shapes: Any) -> None:
    """Its queries are taken in tiles, each once."""
    tokens = sum(h * w for h, w in shapes)
    check_deform_forward(backend, DeformCase("", shapes=shapes, N=1, Q=tokens, M=2, D=D).inputs(dtype))


@by_dtype
def test_as_many_queries_as_tokens_with_shapes_of_fewer(backend: Backend, dtype: torch.dtype) -> None:
    """The queries behind the last level are taken as they come."""
    inputs = DeformCase("", shapes=((13, 19), (7, 10), (4, 5), (2, 3)), N=1, Q=343, M=1, D=32).inputs(dtype)
    fewer = replace(inputs, shapes_L2=torch.tensor([[13, 19], [7, 10], [3, 5], [0, 0]]))
    check_deform_forward(backend, replace(fewer, shapes=[(13, 19), (7, 10), (3, 5), (0, 0)]))
