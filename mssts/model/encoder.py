"""Encoder: deformable attention beside the MS-STS attention module (Figure 2a)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mssts.model.attention import DeformableAttention
from mssts.model.config import ModelConfig
from mssts.model.geometry import Geometry
from mssts.model.layers import LayerNorm
from mssts.model.split_attention import SplitAttention


class EncoderLayer(nn.Module):
    """Deformable attention + Ẑ → dropout, residual, norm → FFN, residual, norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.deformable = DeformableAttention(config)
        self.output_proj = nn.Linear(config.width, config.width)
        split = config.switches.intra_scale or config.switches.inter_scale
        self.split = SplitAttention(config) if split else None
        self.norm1 = LayerNorm(config.width)
        self.linear1 = nn.Linear(config.width, config.ffn_width)
        self.linear2 = nn.Linear(config.ffn_width, config.width)
        self.norm2 = LayerNorm(config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, tokens_BTSC: Tensor, position_BSC: Tensor, geometry: Geometry) -> Tensor:
        query = tokens_BTSC + position_BSC[:, None]
        reference = geometry.reference_BSL2[:, None]
        # Frames are joined into one dimension wherever time does not matter: OpenVINO (2026.4) fuses the bias, ReLU and
        # quantisation into an 8-bit product of at most three dimensions, and makes separate passes of them otherwise.
        attended = self.output_proj(self.deformable(query, reference, tokens_BTSC, geometry).flatten(0, 1))
        if self.split is not None:
            split = self.split(query if self.split.sees_position else tokens_BTSC, geometry)
            attended = attended + split.flatten(0, 1)
        tokens = self.norm1(tokens_BTSC.flatten(0, 1) + self.dropout(attended))
        ffn = self.linear2(self.dropout(F.relu(self.linear1(tokens))))
        return self.norm2(tokens + self.dropout(ffn)).view(tokens_BTSC.shape)


class Encoder(nn.Module):
    """The stack of encoder layers, with the learned embedding of the scales."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.level_embed = nn.Embedding(config.levels, config.width)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))

    def forward(self, tokens_BTSC: Tensor, geometry: Geometry) -> Tensor:
        """Tokens of all scales [B, T, S, C] → encoded tokens of the same shape."""
        positions = geometry.split(geometry.position_BSC, 1)
        position_BSC = torch.cat([p + self.level_embed.weight[i] for i, p in enumerate(positions)], 1)
        for layer in self.layers:
            tokens_BTSC = layer(tokens_BTSC, position_BSC, geometry)
        return tokens_BTSC
