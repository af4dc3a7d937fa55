"""The kernels as PyTorch operators `torch.ops.mssts.*`.

Nothing is compiled against PyTorch: `kernel_calls` reaches the kernels through their C interface. Backward passes are
separate operators, so that torch.compile can call them. See choice.py for dispatch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mssts.ops import kernel_calls

# Inductor may lay inputs out as it likes: `kernel_calls` copies what a kernel cannot read in place.
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.flexible_layout)
_library = torch.library.Library("mssts", "FRAGMENT")


def _define(schema: str, kernel: Callable[..., Any], fake: Callable[..., Any]) -> None:
    name = schema[: schema.index("(")]
    _library.define(schema, tags=_TAGS)
    for key in ("CPU", "CUDA"):
        _library.impl(name, kernel, key)
    torch.library.register_fake(f"mssts::{name}", fake, lib=_library)


def _fake_deform_attn(value: Tensor, shapes: Tensor, reference: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
    N, _, M, D = value.shape
    return value.new_empty((N, reference.shape[1], M * D))


def _fake_temporal_attn(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    return query.new_empty(query.shape)


def _fake_gradients(inputs: Sequence[Tensor], wanted: Sequence[bool]) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape if want else (0,)) for x, want in zip(inputs, wanted, strict=True))


def _fake_deform_attn_backward(
    grad: Tensor, value: Tensor, shapes: Tensor, reference: Tensor, offsets: Tensor, logits: Tensor, wanted: list[bool]
) -> tuple[Tensor, ...]:
    return _fake_gradients((value, reference, offsets, logits), wanted)


def _fake_temporal_attn_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, heads: int, wanted: list[bool]
) -> tuple[Tensor, ...]:
    return _fake_gradients((query, key, value), wanted)


_define(
    "ms_deform_attn(Tensor value, Tensor shapes, Tensor reference, Tensor offsets, Tensor logits) -> Tensor",
    kernel_calls.deform_attn_forward,
    _fake_deform_attn,
)
_define(
    "ms_deform_attn_backward(Tensor grad, Tensor value, Tensor shapes, Tensor reference, Tensor offsets, "
    "Tensor logits, bool[4] wanted) -> (Tensor, Tensor, Tensor, Tensor)",
    kernel_calls.deform_attn_backward,
    _fake_deform_attn_backward,
)
_define(
    "split_temporal_attn(Tensor query, Tensor key, Tensor value, int heads) -> Tensor",
    kernel_calls.temporal_attn_forward,
    _fake_temporal_attn,
)
_define(
    "split_temporal_attn_backward(Tensor grad, Tensor query, Tensor key, Tensor value, int heads, bool[3] wanted) "
    "-> (Tensor, Tensor, Tensor)",
    kernel_calls.temporal_attn_backward,
    _fake_temporal_attn_backward,
)


def _save_deform_attn(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward_deform_attn(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    needs = ctx.needs_input_grad
    wanted = [needs[0], needs[2], needs[3], needs[4]]
    found = torch.ops.mssts.ms_deform_attn_backward.default(grad, *ctx.saved_tensors, wanted)
    value, reference, offsets, logits = (x if want else None for x, want in zip(found, wanted, strict=True))
    return value, None, reference, offsets, logits


def _save_temporal_attn(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.heads = inputs
    ctx.save_for_backward(*tensors)


def _backward_temporal_attn(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    wanted = list(ctx.needs_input_grad[:3])
    found = torch.ops.mssts.split_temporal_attn_backward.default(grad, *ctx.saved_tensors, ctx.heads, wanted)
    return (*(x if want else None for x, want in zip(found, wanted, strict=True)), None)


def _refuse_second_derivative(op: str) -> Callable[..., Any]:
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise RuntimeError(
            f"mssts::{op} has no second derivative; "
            "to differentiate twice, compute the op within `mssts.ops.reference_ops()`"
        )

    return backward


for _op, _backward, _save in (
    ("ms_deform_attn", _backward_deform_attn, _save_deform_attn),
    ("split_temporal_attn", _backward_temporal_attn, _save_temporal_attn),
):
    torch.library.register_autograd(f"mssts::{_op}", _backward, setup_context=_save, lib=_library)
    torch.library.register_autograd(f"mssts::{_op}_backward", _refuse_second_derivative(_op), lib=_library)
