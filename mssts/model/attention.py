"""Deformable attention module: the op with its linear layers and initialisation."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mssts.model.config import ModelConfig
from mssts.model.geometry import Geometry
from mssts.ops import ms_deform_attn


class DeformableAttention(nn.Module):
    """Multi-scale deformable attention within each frame (arXiv 2010.04159, Eq. 3).

    It stops before the output projection: the decoder projects one sample in two ways.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads, self.levels, self.points = config.heads, config.levels, config.points
        samples = config.heads * config.levels * config.points
        self.sampling_offsets = nn.Linear(config.width, samples * 2)
        self.attention_weights = nn.Linear(config.width, samples)
        self.value_proj = nn.Linear(config.width, config.width)

    def reset_parameters(self) -> None:
        """Initialises points on a ring.

        Each head looks in its own direction, each point one pixel further out.
        """
        angle = torch.arange(self.heads) * (2 * math.pi / self.heads)
        direction_M2 = torch.stack((angle.cos(), angle.sin()), -1)
        direction_M2 = direction_M2 / direction_M2.abs().amax(-1, keepdim=True)
        distance_P = torch.arange(1, self.points + 1)
        offsets_MLP2 = (direction_M2[:, None, None] * distance_P[:, None]).expand(-1, self.levels, -1, -1)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets_MLP2.flatten())
        nn.init.zeros_(self.sampling_offsets.weight)
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        nn.init.xavier_uniform_(self.value_proj.weight)
        nn.init.zeros_(self.value_proj.bias)

    def forward(self, query_BTQC: Tensor, reference_BTQLR: Tensor, tokens_BTSC: Tensor, geometry: Geometry) -> Tensor:
        """→ [B, T, Q, C].

        `query` may have one frame (T = 1) that serves all frames of `tokens`.
        """
        B, T, S, C = tokens_BTSC.shape
        Q, M, L, P = query_BTQC.shape[2], self.heads, self.levels, self.points
        value = self.value_proj(tokens_BTSC)
        value = value * geometry.valid_BS[:, None, :, None].to(value.dtype)  # which autocast makes 16 bits
        offsets, logits = self.sampling_offsets(query_BTQC), self.attention_weights(query_BTQC)
        if query_BTQC.shape[1] == 1:  # elsewhere no such node is exported: runtimes would copy
            offsets, logits = offsets.expand(B, T, Q, -1), logits.expand(B, T, Q, -1)
        sampled = ms_deform_attn(
            value.reshape(B * T, S, M, C // M),
            geometry.shapes_L2,
            reference_BTQLR.expand(B, T, Q, L, -1).flatten(0, 1),
            offsets.reshape(B * T, Q, M, L, P, 2),
            logits.reshape(B * T, Q, M, L, P),
            geometry.shapes,
        )
        return sampled.view(B, T, Q, C)
