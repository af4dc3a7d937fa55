"""The two ops as PyTorch calls them, with inputs, for tests of their kernels."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mssts.ops import ms_deform_attn, split_temporal_attn
from support.deformable import SHAPES, deformable_inputs

LEVELS = SHAPES["four levels"]


def deformable(
    dtype: torch.dtype = torch.float64, R: int = 2, N: int = 2, Q: int = 7, D: int = 8, seed: int = 0
) -> tuple[list[Tensor], Callable[..., Tensor]]:
    """The op and its floating inputs (value, reference, offsets, logits).

    The reference points are in fp32 at least.
    """
    value, shapes_L2, reference, offsets, logits, shapes = deformable_inputs(LEVELS, N=N, Q=Q, D=D, R=R, seed=seed)
    leaves = [value.to(dtype), reference.to(torch.promote_types(dtype, torch.float32)), offsets.to(dtype)]
    leaves.append(logits.to(dtype))
    return leaves, lambda v, r, o, a: ms_deform_attn(v, shapes_L2, r, o, a, shapes)


def temporal(
    dtype: torch.dtype = torch.float64, B: int = 2, T: int = 3, U: int = 6, S: int = 5, seed: int = 0
) -> tuple[list[Tensor], Callable[..., Tensor]]:
    gen = torch.Generator().manual_seed(seed)
    leaves = [torch.randn(B, t, S, 12, generator=gen, dtype=torch.float64).to(dtype) for t in (T, U, U)]
    return leaves, lambda q, k, v: split_temporal_attn(q, k, v, heads=3)


OPS = {"deformable": deformable, "temporal": temporal}
either_op = pytest.mark.parametrize("make", OPS.values(), ids=OPS.keys())


def gradients(op: Callable[..., Tensor], leaves: list[Tensor]) -> tuple[Tensor, ...]:
    """The output and its gradients.

    They are for a random gradient of the output that every dtype has exactly.
    """
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    out = op(*leaves)
    grad = torch.randint(-8, 9, out.shape, generator=torch.Generator().manual_seed(9)).to(out) / 4
    return out.detach(), *torch.autograd.grad(out, leaves, grad)


def deformable_arguments(grad: bool) -> tuple[Tensor, ...]:
    (value, reference, offsets, logits), _ = deformable(torch.float32)
    shapes_L2 = torch.tensor(LEVELS)
    return value.requires_grad_(grad), shapes_L2, reference, offsets.requires_grad_(grad), logits.requires_grad_(grad)
