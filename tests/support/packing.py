"""Queries, keys and values as parts of one tensor.

A projection of several of them gives them so.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Which part of its tensor the query, the key and the value are; part 0 begins a tensor.
PACKINGS = {"qkv": (0, 1, 2), "kv": (0, 0, 1), "qk": (0, 1, 0)}


def packed(parts: tuple[int, ...], *tokens: Tensor) -> list[Tensor]:
    """The tensor of each of query, key and value."""
    groups: list[list[Tensor]] = []
    for part, tensor in zip(parts, tokens, strict=True):
        if part == 0:
            groups.append([])
        groups[-1].append(tensor)
    tensors = [torch.cat(group, -1) for group in groups]
    return [tensor for tensor, group in zip(tensors, groups, strict=True) for _ in group]


def attributes(parts: tuple[int, ...], channels: int) -> dict[str, list[int]]:
    """Those of the ONNX node."""
    starts = [part * channels for part in parts]
    return {"starts": starts, "ends": [start + channels for start in starts]}
