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


def split_temporal_attn(
    query_BTSC: Tensor,
    key_BUSC: Tensor,
    value_BUSC: Tensor,
    heads: int,
    channels: int | None = None,
    parts: tuple[int, int, int] = (0, 0, 0),
) -> Tensor:
    """Scaled dot-product attention over time, for each location by itself.

    The T queries of a location attend to its U keys.

    Tokens stay where they are in memory (time-major), so neither the inputs nor the output need a transposition. Nor
    does a projection of several of the three need to be cut: with `channels`, each input is one of the parts of that
    many channels of its tensor.

    Runs on the kernel where one is built (`mssts info`), else as `temporal_attention_in_pytorch`.

    Args:
        query_BTSC: the queries' tokens, and what they are packed with.
        key_BUSC: the keys', which may be the same tensor.
        value_BUSC: the values', likewise.
        heads: that divide C.
        channels: C, where it is not the width of all three tensors.
        parts: which part of its tensor the query, the key and the value are.

    Returns:
        [B, T, S, C], of the dtype of the query; softmax in fp32 at least. Differentiable once.

    Raises:
        RuntimeError: shapes, devices or dtypes do not fit together.
    """
    if is_exporting():
        inputs, width = (query_BTSC, key_BUSC, value_BUSC), channels or query_BTSC.shape[-1]
        starts = [part * width for part in parts]
        attributes: dict[str, int | list[int]] = {
            "heads": heads,
            "starts": starts,
            "ends": [start + width for start in starts],
        }
        return onnx_node(OP_TYPE, inputs, attributes, (*query_BTSC.shape[:3], width), query_BTSC.dtype)
    if channels is not None:
        query_BTSC, key_BUSC, value_BUSC = _parts(query_BTSC, key_BUSC, value_BUSC, channels, parts)
    if has_kernel(query_BTSC):
        dtype = query_BTSC.dtype
        key, value = as_dtype(key_BUSC, dtype), as_dtype(value_BUSC, dtype)
        return torch.ops.mssts.split_temporal_attn.default(query_BTSC, key, value, heads)
    return temporal_attention_in_pytorch(query_BTSC, key_BUSC, value_BUSC, heads)


def _parts(
    query: Tensor, key: Tensor, value: Tensor, channels: int, parts: tuple[int, int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Views of the parts.

    A tensor is split once, however many of the three it holds: its gradient then is one concatenation.
    """
    for tensor, part in zip((query, key, value), parts, strict=True):
        if tensor.shape[-1] < (part + 1) * channels:
            raise RuntimeError(f"a tensor of {tensor.shape[-1]} channels has no part {part} of {channels} channels")
    of_query = query.split(channels, -1)
    of_key = of_query if key is query else key.split(channels, -1)
    of_value = of_query if value is query else of_key if value is key else value.split(channels, -1)
    return of_query[parts[0]], of_key[parts[1]], of_value[parts[2]]


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
