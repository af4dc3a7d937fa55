"""The MS-STS attention module Ẑ: attention over time, split from that over space.

See Figure 2b–d of the paper.

The module is reconstructed from the figure. What that leaves open, and what was chosen:
- **Position.** The tokens carry the embedding of their position and scale (`split_position`), as in the deformable
  path: Figure 2a adds it before both, and a module whose weights the scales share could not tell them apart without.
- **Width.** Both blocks work at C/4 (`split_width`) between one linear layer in and one out: 0.6 M parameters in six
  layers, where full width would take 6 M.
- **Weights** are shared by the scales (`split_shared`): the module then is a few matrix products over all tokens of all
  scales at once.
- **Linear layer** of the inter-scale block: Figure 2d draws one for both scales; by default the scale's own tokens,
  which come from a linear layer, go without (`split_own_linear`).
- **Axis** of the inter-scale concatenation: time. The figure could also mean space, which would make attention
  quadratic in the pixels; that reading is no option here.
- **Queries** of the inter-scale block are the T tokens of the finer scale, keys and values all 2T: the result belongs
  to the finer scale, and what the T other queries would give is dropped.
- **Resolution.** The coarser neighbour is brought to the finer scale by taking the token that covers it (nearest),
  which is one gather for all scales, and it is gathered after its key and value projection, on a quarter of the tokens.
- **Residuals** around attention and FFN, as in every transformer block; the figure draws none.
- The output layer starts at zero, so that released baseline weights can be loaded and fine-tuned from.

What they cost, as `mssts bench switches` measured it on two CPU cores (R50, 5 frames of 360×640, times the baseline's
6.7 s): intra-scale 0.40 M parameters and 1.05, inter-scale 0.42 M and 1.07, the decoder's temporal attention 1.32 M and
1.03, all three 1.94 M and 1.12 (bench/results/switches_*.json).

What they bring, as `mssts bench ablation` measured it with a small model on MovingShapes v1: the three together 1.6 ±
0.5 points of AP over the baseline's 25.1 (mean and deviation of three seeds); alone, intra-scale 0.4 ± 1.1, inter-scale
0.9 ± 1.4 and temporal attention 1.1 ± 1.2, which three seeds do not tell from chance (docs/benchmarks.md).

Parameters beside the paper's, whose Figure 1 has 49.3 M for SeqFormer and 50.6 M for MS-STS: its 49.3 M are the entries
of the released state dict, buffers and unused layers included. Counted so, ours has 51.2 M. Parameters alone, trained
or frozen, are 48.0 M in our baseline and 49.9 M with all switches on.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mssts.model.config import ModelConfig
from mssts.model.geometry import Geometry
from mssts.model.layers import LayerNorm
from mssts.ops import split_temporal_attn


class _FeedForward(nn.Sequential):
    """Two linear layers, twice as wide between."""

    def __init__(self, width: int) -> None:
        super().__init__(nn.Linear(width, 2 * width), nn.ReLU(inplace=True), nn.Linear(2 * width, width))


class IntraScaleAttention(nn.Module):
    """Intra-scale block (Figure 2c).

    At each scale and location the T tokens attend to one another → attention → layer norm → FFN.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm = LayerNorm(width)
        self.ffn = _FeedForward(width)

    def forward(self, tokens_BTSD: Tensor, geometry: Geometry | None = None) -> Tensor:
        """→ [B, T, S, D]. Mixes along T alone, whatever the scale."""
        qkv = self.qkv(tokens_BTSD)
        attended = split_temporal_attn(qkv, qkv, qkv, self.heads, tokens_BTSD.shape[-1], parts=(0, 1, 2))
        tokens = self.norm(tokens_BTSD + self.out(attended))
        return tokens + self.ffn(tokens)


class InterScaleAttention(nn.Module):
    """Inter-scale block (Figure 2d): scale s with scale s+1, concatenated along time.

    → norm → attention → dropout → norm → FFN.
    """

    def __init__(self, width: int, heads: int, dropout: float, own_linear: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.neighbour = nn.Linear(width, width)
        self.own = nn.Linear(width, width) if own_linear else None
        self.norm1 = LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        self.norm2 = LayerNorm(width)
        self.ffn = _FeedForward(width)

    def forward(self, tokens_BTSD: Tensor, input_BTSD: Tensor, geometry: Geometry) -> Tensor:
        """Tokens after the intra-scale block, and its inputs → [B, T, S, D].

        The inputs are the partner of the coarsest scale.
        """
        coarsest = geometry.split(input_BTSD, 2)[-1]
        partners = torch.cat((tokens_BTSD, coarsest), 2)
        return self.pair(tokens_BTSD, partners, _parents(geometry, tokens_BTSD.device))

    def pair(self, tokens_BTSD: Tensor, partners_BTPD: Tensor, parent_S: Tensor) -> Tensor:
        """→ [B, T, S, D].

        Token i attends to itself and to partner `parent_S[i]`, in all frames of both.
        """
        own = self.norm1(tokens_BTSD if self.own is None else self.own(tokens_BTSD))
        partner = self.norm1(self.neighbour(partners_BTPD))
        key_value = torch.cat((self.key_value(own), self.key_value(partner).index_select(2, parent_S)), 1)
        query = self.query(own)
        attended = split_temporal_attn(query, key_value, key_value, self.heads, query.shape[-1], parts=(0, 0, 1))
        tokens = tokens_BTSD + self.dropout(self.out(attended))
        return tokens + self.ffn(self.norm2(tokens))


def _parents(geometry: Geometry, device: torch.device) -> Tensor:
    """For every token, the index of its partner.

    Indices count the tokens of all scales, followed by the coarsest scale's inputs.
    """
    indices: list[Tensor] = []
    start = 0
    for (h, w), parents in zip(geometry.shapes, _parents_by_scale(geometry, device), strict=True):
        start = start + h * w  # where the next scale begins, or after the last one, the coarsest's inputs
        indices.append(start + parents)
    return torch.cat(indices)


def _parents_by_scale(geometry: Geometry, device: torch.device) -> list[Tensor]:
    """For every token of each scale, the index of its partner in the next scale.

    The last scale's partners are its own tokens.

    Each scale is ⌈half⌉ of the finer one, so that indices stay inside.
    """
    indices: list[Tensor] = []
    for (h, w), coarser in zip(geometry.shapes, geometry.shapes[1:] + geometry.shapes[-1:], strict=True):
        y, x = torch.arange(h, device=device), torch.arange(w, device=device)
        if len(indices) + 1 < len(geometry.shapes):
            y, x = y // 2, x // 2
        indices.append((y[:, None] * coarser[1] + x).flatten())
    return indices


class _IntraByScale(nn.ModuleList):
    """An intra-scale block for each scale."""

    def forward(self, tokens_BTSD: Tensor, geometry: Geometry) -> Tensor:
        parts = geometry.split(tokens_BTSD, 2)
        return torch.cat([block(part) for block, part in zip(self, parts, strict=True)], 2)


class _InterByScale(nn.ModuleList):
    """An inter-scale block for each scale."""

    def forward(self, tokens_BTSD: Tensor, input_BTSD: Tensor, geometry: Geometry) -> Tensor:
        parts = geometry.split(tokens_BTSD, 2)
        partners = (*parts[1:], geometry.split(input_BTSD, 2)[-1])
        parents = _parents_by_scale(geometry, tokens_BTSD.device)
        found = []
        for block, part, partner, parent in zip(self, parts, partners, parents, strict=True):
            assert isinstance(block, InterScaleAttention)
            found.append(block.pair(part, partner, parent))
        return torch.cat(found, 2)


class SplitAttention(nn.Module):
    """The whole module Ẑ: linear → intra-scale → inter-scale → linear.

    Either block can be switched off.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, heads = config.split_width, config.split_heads
        self.sees_position = config.split_position
        self.reduce = nn.Linear(config.width, width)

        def intra() -> IntraScaleAttention:
            return IntraScaleAttention(width, heads)

        def inter() -> InterScaleAttention:
            return InterScaleAttention(width, heads, config.dropout, config.split_own_linear)

        self.intra: nn.Module | None = None
        if config.switches.intra_scale:
            self.intra = intra() if config.split_shared else _IntraByScale(intra() for _ in range(config.levels))
        self.inter: nn.Module | None = None
        if config.switches.inter_scale:
            self.inter = inter() if config.split_shared else _InterByScale(inter() for _ in range(config.levels))
        self.expand = nn.Linear(width, config.width)

    def reset_parameters(self) -> None:
        """The last projection is zero: the encoder starts as the baseline's."""
        nn.init.zeros_(self.expand.weight)
        nn.init.zeros_(self.expand.bias)

    def forward(self, tokens_BTSC: Tensor, geometry: Geometry) -> Tensor:
        """→ [B, T, S, C], to be added to the deformable attention."""
        reduced = self.reduce(tokens_BTSC)
        tokens = reduced if self.intra is None else self.intra(reduced, geometry)
        if self.inter is not None:
            tokens = self.inter(tokens, reduced, geometry)
        return self.expand(tokens)
