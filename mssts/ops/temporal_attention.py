"""Attention over time: few tokens a sequence, tens of thousands of sequences.

Letters: B clips, T query frames, U key frames (T or 2T), S locations, M heads, D channels a head.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mssts.ops.choice import as_dtype, has_kernel
from mssts.ops.exporting import is_exporting, onnx_node

OP_TYPE = "SplitTemporalAttn"


def split_temporal_attn(query_BTSC: Tensor, key_BUSC: Tensor, value_BUSC: Tensor, heads: int) -> Tensor:
    """Scaled dot-product attention over time, for each location by itself.

    The T queries of a location attend to its U keys.

    Tokens stay where they are in memory (time-major), so neither the inputs nor the output need a transposition.

    Runs on the kernel where one is built (`mssts info`), else as `temporal_attention_in_pytorch`.

    Returns:
        [B, T, S, C], of the dtype of the query; softmax in fp32 at least. Differentiable once.

    Raises:
        RuntimeError: shapes, devices or dtypes do not fit together.
    """
    if is_exporting():
        inputs = (query_BTSC, key_BUSC, value_BUSC)
        return onnx_node(OP_TYPE, inputs, {"heads": heads}, query_BTSC.shape, query_BTSC.dtype)
    if has_kernel(query_BTSC):
        dtype = query_BTSC.dtype
        key, value = as_dtype(key_BUSC, dtype), as_dtype(value_BUSC, dtype)
        return torch.ops.mssts.split_temporal_attn.default(query_BTSC, key, value, heads)
    return temporal_attention_in_pytorch(query_BTSC, key_BUSC, value_BUSC, heads)


def temporal_attention_in_pytorch(query_BTSC: Tensor, key_BUSC: Tensor, value_BUSC: Tensor, heads: int) -> Tensor:
    """The reference of `split_temporal_attn`, for any device, dtype and length."""

    def by_location(tokens: Tensor) -> Tensor:  # → [B, S, M, T or U, D]
        return tokens.unflatten(-1, (heads, -1)).permute(0, 2, 3, 1, 4)

    q, k, v = by_location(query_BTSC), by_location(key_BUSC), by_location(value_BUSC)
    if q.device.type == "cpu":
        # scaled_dot_product_attention is several times slower on sequences this short.
        scale = q.shape[-1] ** -0.5
        weights = ((q * scale) @ k.transpose(-1, -2)).softmax(-1, dtype=torch.promote_types(q.dtype, torch.float32))
        out = weights.to(v.dtype) @ v
    else:
        out = F.scaled_dot_product_attention(q, k, v)
    return out.permute(0, 3, 1, 2, 4).flatten(-2)
