"""Multi-scale deformable attention (arXiv 2010.04159) from raw offsets and logits.

Letters: N frames, S tokens of all scales, Q queries, M heads, D channels a head, L scales, P points.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mssts.ops.choice import as_dtype, has_kernel
from mssts.ops.exporting import is_exporting, onnx_node

OP_TYPE = "MSDeformAttn"


def ms_deform_attn(
    value_NSMD: Tensor,
    shapes_L2: Tensor,
    reference_NQLR: Tensor,
    offsets_NQMLP2: Tensor,
    logits_NQMLP: Tensor,
    shapes: list[tuple[int, int]],
) -> Tensor:
    """Weighted sum of L·P samples of `value` for each head and query.

    The weights are the softmax of `logits` over L·P.

    A point lies at reference + offset ÷ (w, h) of its scale where a reference has R = 2 coordinates (x, y), and at
    reference + offset ÷ P × (box w, box h) × ½ where it has R = 4 (x, y, w, h); all in [0, 1] of the padded scale.
    Sampling is bilinear between pixel centres, zero outside, as in grid_sample with align_corners=False.

    Runs on the kernel where one is built (`mssts info`), else as `deformable_attention_in_pytorch`.

    Args:
        value_NSMD: projected tokens, zero where padded.
        shapes_L2: (h, w) of the scales, int64, on the device of `value`.
        reference_NQLR: reference points, fp32 whatever the other inputs are.
        offsets_NQMLP2: raw offsets in pixels (R = 2) or fractions of the box (R = 4).
        logits_NQMLP: raw attention logits.
        shapes: `shapes_L2` as integers.

    Returns:
        [N, Q, M·D], of the dtype of `value`. Arithmetic is in fp32 (fp64 for fp64 inputs). Differentiable once, in
        value, reference, offsets and logits.

    Raises:
        RuntimeError: shapes, devices or dtypes do not fit together.
    """
    N, _, M, D = value_NSMD.shape
    Q = offsets_NQMLP2.shape[1]
    if is_exporting():
        inputs = (value_NSMD, shapes_L2, reference_NQLR, offsets_NQMLP2, logits_NQMLP)
        return onnx_node(OP_TYPE, inputs, {}, (N, Q, M * D), value_NSMD.dtype)
    if has_kernel(value_NSMD):
        _check_tokens(value_NSMD, shapes)
        dtype = value_NSMD.dtype
        return torch.ops.mssts.ms_deform_attn.default(
            value_NSMD,
            shapes_L2,
            as_dtype(reference_NQLR, torch.promote_types(dtype, torch.float32)),
            as_dtype(offsets_NQMLP2, dtype),
            as_dtype(logits_NQMLP, dtype),
        )
    return deformable_attention_in_pytorch(value_NSMD, shapes_L2, reference_NQLR, offsets_NQMLP2, logits_NQMLP, shapes)


def _check_tokens(value_NSMD: Tensor, shapes: list[tuple[int, int]]) -> None:
    """Checks that the scales are those of the value.

    A kernel on a GPU would tell too late. While a graph is traced, this would become a condition on the sizes.
    """
    if not torch.compiler.is_compiling() and sum(h * w for h, w in shapes) != value_NSMD.shape[1]:
        raise RuntimeError(f"the scales {shapes} do not have the {value_NSMD.shape[1]} tokens of value")


def deformable_attention_in_pytorch(
    value_NSMD: Tensor,
    shapes_L2: Tensor,
    reference_NQLR: Tensor,
    offsets_NQMLP2: Tensor,
    logits_NQMLP: Tensor,
    shapes: list[tuple[int, int]],
) -> Tensor:
    """The reference of `ms_deform_attn`, for any device and dtype."""
    N, _, M, D = value_NSMD.shape
    Q, L, P = offsets_NQMLP2.shape[1], offsets_NQMLP2.shape[3], offsets_NQMLP2.shape[4]
    dtype = torch.promote_types(value_NSMD.dtype, torch.float32)
    offsets = offsets_NQMLP2.to(dtype)
    reference_NQ1L1R = reference_NQLR.to(dtype)[:, :, None, :, None]
    if reference_NQLR.shape[-1] == 2:
        locations_NQMLP2 = reference_NQ1L1R + offsets / shapes_L2.flip(1).to(dtype)[:, None]
    else:
        locations_NQMLP2 = reference_NQ1L1R[..., :2] + offsets * (reference_NQ1L1R[..., 2:] * (0.5 / P))
    weights_NQMLP = logits_NQMLP.to(dtype).flatten(3).softmax(-1).unflatten(3, (L, P))
    grids = (2 * locations_NQMLP2 - 1).transpose(1, 2).flatten(0, 1)  # [N·M, Q, L, P, 2]
    out = value_NSMD.new_zeros((), dtype=dtype)
    start = 0
    for level, (h, w) in enumerate(shapes):
        value_hw = value_NSMD[:, start : start + h * w].to(dtype).permute(0, 2, 3, 1).reshape(N * M, D, h, w)
        start += h * w
        # grid_sample's corners: [N·M, D, Q, P]
        sampled = F.grid_sample(value_hw, grids[:, :, level], padding_mode="zeros", align_corners=False)
        weights = weights_NQMLP[:, :, :, level].transpose(1, 2).reshape(N * M, 1, Q, P)
        out = out + (sampled * weights).sum(-1)
    return out.view(N, M * D, Q).transpose(1, 2).to(value_NSMD.dtype)
