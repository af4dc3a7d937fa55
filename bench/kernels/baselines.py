"""Other implementations of the two ops: PyTorch's operations, stock extensions.

All take what the linear layers give. Those whose kernel wants locations and weights get them by PyTorch's own
operations, as in the code they come from; these are part of their time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mssts.bench.kernels.cases import Absent, Case, Prepared, by_autograd
from mssts.bench.kernels.workloads import DeformInputs, TemporalInputs
from mssts.errors import first_line

# PyTorch's.


def _locations_and_weights(inputs: DeformInputs) -> tuple[Tensor, Tensor]:
    """Locations in [0, 1] of each level and softmaxed weights, in fp32."""
    reference = inputs.reference_NQLR[:, :, None, :, None]
    offsets = inputs.offsets_NQMLP2.float()
    if reference.shape[-1] == 2:
        locations = reference + offsets / inputs.sizes_L12
    else:
        locations = reference[..., :2] + offsets * (reference[..., 2:] * (0.5 / offsets.shape[4]))
    logits = inputs.logits_NQMLP.float()
    return locations, logits.flatten(3).softmax(-1).view_as(logits)


def _maps(inputs: DeformInputs) -> list[Tensor]:
    """The value of each level as images [N·M, D, h, w], in fp32."""
    N, _, M, D = inputs.value_NSMD.shape
    levels = inputs.value_NSMD.float().split([h * w for h, w in inputs.shapes], 1)
    return [
        level.flatten(2).transpose(1, 2).reshape(N * M, D, h, w)
        for level, (h, w) in zip(levels, inputs.shapes, strict=True)
    ]


def _sampled(image: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _finish(out: Tensor, inputs: DeformInputs) -> Tensor:
    N, _, M, D = inputs.value_NSMD.shape
    return out.view(N, M * D, -1).transpose(1, 2).to(inputs.value_NSMD.dtype).contiguous()


def grid_sample_stacked(inputs: DeformInputs) -> Tensor:
    """The released code's order: sample every level, stack, then weigh and sum once."""
    N, Q, M, L, P = inputs.logits_NQMLP.shape
    locations, weights = _locations_and_weights(inputs)
    grids = (2 * locations - 1).transpose(1, 2).flatten(0, 1)  # [N·M, Q, L, P, 2]
    samples = [_sampled(image, grids[:, :, level]) for level, image in enumerate(_maps(inputs))]
    weights = weights.transpose(1, 2).reshape(N * M, 1, Q, L * P)
    return _finish((torch.stack(samples, -2).flatten(-2) * weights).sum(-1), inputs)


def grid_sample(inputs: DeformInputs) -> Tensor:
    """Without the stack: samples of each level are weighed and summed at once."""
    N, Q, M, _, P = inputs.logits_NQMLP.shape
    locations, weights = _locations_and_weights(inputs)
    grids = (2 * locations - 1).transpose(1, 2).flatten(0, 1)
    parts = [
        (_sampled(image, grids[:, :, level]) * weights[:, :, :, level].transpose(1, 2).reshape(N * M, 1, Q, P)).sum(-1)
        for level, image in enumerate(_maps(inputs))
    ]
    return _finish(_sum(parts), inputs)


def grid_sample_points_first(inputs: DeformInputs) -> Tensor:
    """With points as the grid's rows, so that queries are innermost.

    It is the fastest arrangement found.
    """
    N, Q, M, _, P = inputs.logits_NQMLP.shape
    locations, weights = _locations_and_weights(inputs)
    grids = (2 * locations - 1).permute(0, 2, 3, 4, 1, 5).flatten(0, 1)  # [N·M, L, P, Q, 2]
    parts = []
    for level, image in enumerate(_maps(inputs)):
        samples = _sampled(image, grids[:, level])
        weight = weights[:, :, :, level].permute(0, 2, 3, 1).reshape(N * M, 1, P, Q)
        # In place where no graph needs the samples: one pass less over the largest tensor.
        samples = samples * weight if torch.is_grad_enabled() else samples.mul_(weight)
        parts.append(samples.sum(2))
    return _finish(_sum(parts), inputs)


def _sum(parts: list[Tensor]) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _by_location(inputs: TemporalInputs) -> tuple[Tensor, Tensor, Tensor]:
    """[B, S, M, T or U, D] each, as views."""
    tokens = (leaf.unflatten(-1, (inputs.heads, -1)).permute(0, 2, 3, 1, 4) for leaf in inputs.leaves)
    query, key, value = tokens
    return query, key, value


def temporal_by_matmul(inputs: TemporalInputs) -> Tensor:
    """Two batched matrix products and a softmax in fp32."""
    query, key, value = _by_location(inputs)
    weights = ((query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)).softmax(-1, dtype=torch.float32)
    return (weights.to(value.dtype) @ value).permute(0, 3, 1, 2, 4).flatten(-2)


def temporal_by_sdpa(inputs: TemporalInputs) -> Tensor:
    """PyTorch's fused attention, locations and heads as its batch."""
    query, key, value = (tokens.flatten(0, 1) for tokens in _by_location(inputs))
    out = F.scaled_dot_product_attention(query, key, value)  # [B·S, M, T, D]
    B = inputs.query_BTSC.shape[0]
    return out.unflatten(0, (B, -1)).permute(0, 3, 1, 2, 4).flatten(-2)


# Other people's kernels, which want locations and weights. All but the first exist for CUDA alone.


def torch_ms_deform_attn(case: Case) -> Prepared:
    """The kernel of the PyPI package torch-ms-deform-attn, in float32."""
    return _by_located_kernel(case, _import(_PYPI_PACKAGE).ms_deform_attn)


def torch_ms_deform_attn_core(case: Case) -> Prepared:
    """The kernel of torch-ms-deform-attn alone, locations and weights given."""
    return _core(case, _import(_PYPI_PACKAGE).ms_deform_attn)


_PYPI_PACKAGE = "torch_ms_deform_attn"


def deformable_detr(case: Case) -> Prepared:
    """The stock extension of Deformable DETR, frames in one call.

    It takes float32 and float64.
    """
    return _by_located_kernel(case, _deformable_detr_function(case))


def deformable_detr_core(case: Case) -> Prepared:
    """The stock kernel alone, locations and weights given."""
    return _core(case, _deformable_detr_function(case))


def hugging_face(case: Case) -> Prepared:
    """The build of that extension in Hugging Face's kernels-community.

    The package `kernels` fetches it where it may, or finds it in its cache.
    """
    _needs_cuda(case)
    hub = _import("kernels")
    try:
        extension = hub.get_kernel("kernels-community/deformable-detr")
    except Exception as error:  # no network, no build for this PyTorch, …
        raise Absent(f"kernels cannot load it: {first_line(error)}") from None
    return _by_located_kernel(case, _function_of(extension))


def _deformable_detr_function(case: Case) -> Callable[..., Tensor]:
    return _function_of(_import_cuda(case, "MultiScaleDeformableAttention"))


def _function_of(extension: Any) -> Callable[..., Tensor]:
    """An extension's forward and backward pass as one differentiable function."""

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *tensors: Any) -> Tensor:
            ctx.save_for_backward(*tensors[:5])
            return extension.ms_deform_attn_forward(*tensors)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Any:
            frames = grad.shape[0]
            found = extension.ms_deform_attn_backward(*ctx.saved_tensors, grad.contiguous(), frames)
            value, locations, weights = found
            return value, None, None, locations, weights, None

    return Function.apply


def mmcv(case: Case) -> Prepared:
    """mmcv's kernel in float32.

    With 16-bit locations, as in its own half mode, it would be refused as wrong."""
    return _by_located_kernel(case, _mmcv_function(case))


def mmcv_core(case: Case) -> Prepared:
    """mmcv's kernel alone, locations and weights given."""
    return _core(case, _mmcv_function(case))


def _mmcv_function(case: Case) -> Callable[..., Tensor]:
    module = _import_cuda(case, "mmcv.ops.multi_scale_deform_attn")
    return module.MultiScaleDeformableAttnFunction.apply


def _by_located_kernel(case: Case, apply: Callable[..., Tensor]) -> Prepared:
    def function(inputs: DeformInputs) -> Tensor:
        locations, weights = _locations_and_weights(inputs)
        return _apply_located(apply, inputs, inputs.value_NSMD.float(), locations, weights)

    note = "" if case.dtype == "float32" else "computes in float32; the conversions are part of its time"
    return by_autograd(function, note)(case)


def _core(case: Case, apply: Callable[..., Tensor]) -> Prepared:
    """A kernel alone, locations and weights given: less than what the others compute."""
    note = "the kernel alone, in float32: locations, softmax and conversions are not part of its time"
    with torch.no_grad():
        given = [(inputs.value_NSMD.float(), *_locations_and_weights(inputs)) for inputs in case.inputs]
    if case.direction == "forward":

        def forward(i: int) -> tuple[Tensor, ...]:
            with torch.no_grad():
                return (_apply_located(apply, case.inputs[i], *given[i]),)

        return Prepared(forward, note=note)
    graphs = []
    for inputs, tensors in zip(case.inputs, given, strict=True):
        leaves = [tensor.requires_grad_() for tensor in tensors]
        graphs.append((_apply_located(apply, inputs, *leaves), leaves, inputs.grad_out_NQC))

    def backward(i: int) -> tuple[Tensor, ...]:
        out, leaves, grad = graphs[i]
        return torch.autograd.grad(out, leaves, grad.to(out.dtype), retain_graph=True)

    return Prepared(backward, note=note, checked=False)


def _apply_located(
    apply: Callable[..., Tensor], inputs: DeformInputs, value: Tensor, locations: Tensor, weights: Tensor
) -> Tensor:
    frames = value.shape[0]  # the last argument: so many in one launch
    return apply(value, inputs.shapes_L2, inputs.starts_L, locations, weights, frames).to(inputs.value_NSMD.dtype)


def _import_cuda(case: Case, name: str) -> Any:
    _needs_cuda(case)
    return _import(name)


def _needs_cuda(case: Case) -> None:
    if case.device != "cuda":
        raise Absent("it has CUDA kernels alone")


def _import(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except Exception as error:  # an extension built against another PyTorch fails in its own ways
        raise Absent(f"{name} cannot be imported: {first_line(error)}") from None
