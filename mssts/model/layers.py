"""Small pieces that several parts of the model share."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mssts.ops.exporting import is_exporting


class LayerNorm(nn.LayerNorm):
    """Layer norm of tokens with any number of dimensions before them.

    Exported graphs have three dimensions there: OpenVINO (2026.4) computes a norm of more in four passes over memory.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() <= 3 or not is_exporting():
            return super().forward(x)
        return super().forward(x.flatten(0, -3)).view(x.shape)


class MLP(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, width_in: int, width: int, width_out: int, depth: int) -> None:
        super().__init__()
        widths = [width_in] + [width] * (depth - 1) + [width_out]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))

    def linears(self) -> list[nn.Linear]:
        """The linear layers, for their initialisation."""
        return [layer for layer in self.layers if isinstance(layer, nn.Linear)]

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


def at_least_fp32(x: Tensor) -> Tensor:
    """The tensor in fp32, or in fp64 if it was.

    For arithmetic for which 16 bits are too few.
    """
    return x.to(torch.promote_types(x.dtype, torch.float32))


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """log(x / (1 − x)) with both clamped to at least `eps`, as in Deformable DETR."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))
