"""Errors of kernels against float64, beside those of PyTorch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor


def widest_error(found: Tensor, exact: Tensor) -> float:
    assert found.shape == exact.shape
    return float((found.double() - exact).abs().max()) if exact.numel() else 0.0


def assert_as_exact_as_pytorch(found: Tensor, exact: Tensor, pytorch: Tensor) -> None:
    """`pytorch` is in fp32 or more, and rounded to the storage of `found` here."""
    size = float(exact.abs().max()) if exact.numel() else 0.0
    # The slack: a few roundings of fp32, for where PyTorch happens to make none.
    bound = 2 * widest_error(pytorch.to(found.dtype), exact) + 16 * torch.finfo(torch.float32).eps * size
    assert widest_error(found, exact) <= bound
    assert not found.isnan().any()


def in_float32(inputs: Any) -> Any:
    """The inputs of either op, upcast as the definition upcasts them."""
    return replace(
        inputs, **{n: x.float() for n, x in vars(inputs).items() if isinstance(x, Tensor) and x.is_floating_point()}
    )
