"""Decoder with instance queries I and box queries B for each frame (Figure 2a).

The query decomposition is that of SeqFormer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mssts.model.attention import DeformableAttention
from mssts.model.config import ModelConfig
from mssts.model.geometry import Geometry
from mssts.model.layers import MLP, LayerNorm, at_least_fp32, inverse_sigmoid
from mssts.ops import split_temporal_attn
from mssts.ops.exporting import is_exporting


@dataclass(frozen=True)
class DecodedLayer:
    """The output of one decoder layer for Q instances."""

    instance_BQC: Tensor  # instance features
    boxes_BTQ4: Tensor  # cx cy w h as fractions of the valid size
    reference_BTQR: Tensor  # what *entered* the layer: centres (R = 2) or boxes (R = 4); centres place the mask head


class TemporalAttention(nn.Module):
    """Each box query attends to itself across the T frames.

    The figure names the block alone. It is added without a norm of its own, its last projection zero, so that it starts
    as the identity.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.query_key = nn.Linear(config.width, 2 * config.temporal_width)
        self.value = nn.Linear(config.width, config.temporal_width)
        self.out = nn.Linear(config.temporal_width, config.width)

    def reset_parameters(self) -> None:
        """The last projection is zero: the decoder starts as the baseline's."""
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, box_BTQC: Tensor, position_QC: Tensor) -> Tensor:
        """→ [B, T, Q, C], to be added to the box queries."""
        query_key, value = self.query_key(box_BTQC + position_QC), self.value(box_BTQC)
        return self.out(split_temporal_attn(query_key, query_key, value, self.heads, value.shape[-1], parts=(0, 1, 0)))


class SelfAttention(nn.MultiheadAttention):
    """Multi-head attention among the queries.

    Queries and keys carry the position, values do not.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config.width, config.heads, dropout=config.dropout, batch_first=True)

    def forward(self, query_NQC: Tensor, position_QC: Tensor) -> Tensor:  # type: ignore[override]
        # Written out: the module's own fast path cannot be traced with free sizes.
        C = self.embed_dim
        weight, bias = self.in_proj_weight, self.in_proj_bias
        query, key = F.linear(query_NQC + position_QC, weight[: 2 * C], bias[: 2 * C]).chunk(2, -1)
        value = F.linear(query_NQC, weight[2 * C :], bias[2 * C :])
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (query, key, value))
        if is_exporting():  # PyTorch's own decomposition would take the softmax in 16 bits
            logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
            attended = at_least_fp32(logits).softmax(-1).to(v.dtype) @ v
        else:
            attended = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        return self.out_proj(attended.transpose(1, 2).flatten(-2))


class FeedForward(nn.Module):
    """Linear, ReLU, linear, residual, norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.linear1 = nn.Linear(config.width, config.ffn_width)
        self.linear2 = nn.Linear(config.ffn_width, config.width)
        self.norm = LayerNorm(config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.dropout(self.linear2(self.dropout(F.relu(self.linear1(x))))))


class DecoderLayer(nn.Module):
    """One decoder layer for box and instance queries.

    Self-attention → temporal attention → deformable cross-attention → FFN.
    """

    def __init__(self, config: ModelConfig, first: bool) -> None:
        super().__init__()
        self.self_attn = SelfAttention(config)
        self.self_norm = LayerNorm(config.width)
        self.self_attn_box = SelfAttention(config)
        self.self_norm_box = LayerNorm(config.width)
        # Before the first cross-attention the box queries of all frames are one: there is nothing to attend to.
        temporal = config.switches.temporal_decoder and not first
        self.temporal = TemporalAttention(config) if temporal else None
        self.deformable = DeformableAttention(config)
        self.output_proj = nn.Linear(config.width, config.width)
        self.cross_norm = LayerNorm(config.width)
        self.output_proj_box = nn.Linear(config.width, config.width)
        self.cross_norm_box = LayerNorm(config.width)
        self.time_weight = nn.Linear(config.width, 1)
        self.ffn = FeedForward(config)
        self.ffn_box = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        instance_BQC: Tensor,
        box_BTQC: Tensor,
        position_QC: Tensor,
        reference_BTQLR: Tensor,
        tokens_BTSC: Tensor,
        geometry: Geometry,
    ) -> tuple[Tensor, Tensor]:
        """→ instance queries [B, Q, C], box queries [B, T, Q, C].

        In the first layer `box` comes with T = 1.
        """
        instance = self.self_norm(instance_BQC + self.dropout(self.self_attn(instance_BQC, position_QC)))
        B, T = box_BTQC.shape[:2]
        attended = self.self_attn_box(box_BTQC.flatten(0, 1), position_QC).unflatten(0, (B, T))
        box = self.self_norm_box(box_BTQC + self.dropout(attended))
        if self.temporal is not None:
            box = box + self.dropout(self.temporal(box, position_QC))
        # Boxes are sampled frame by frame; instances see the same samples, weighted over time.
        sampled = self.deformable(box + position_QC, reference_BTQLR, tokens_BTSC, geometry)
        box = self.ffn_box(self.cross_norm_box(box + self.dropout(self.output_proj_box(sampled))))
        time_weight_BTQ1 = at_least_fp32(self.time_weight(box)).softmax(1).to(sampled.dtype)
        gathered = (self.output_proj(sampled) * time_weight_BTQ1).sum(1)
        instance = self.ffn(self.cross_norm(instance + self.dropout(gathered)))
        return instance, box


class Decoder(nn.Module):
    """The stack of decoder layers with iterative box refinement."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.query_embed = nn.Embedding(config.queries, 2 * config.width)  # position, then content
        self.reference_points = nn.Linear(config.width, 2)
        self.layers = nn.ModuleList(DecoderLayer(config, first=i == 0) for i in range(config.decoder_layers))
        self.bbox_embed = nn.ModuleList(MLP(config.width, config.width, 4, 3) for _ in range(config.decoder_layers))

    def reset_parameters(self) -> None:
        """Boxes start at their references, with a small width and height."""
        nn.init.xavier_uniform_(self.reference_points.weight)
        nn.init.zeros_(self.reference_points.bias)
        last = [mlp.linears()[-1] for mlp in self.bbox_embed if isinstance(mlp, MLP)]
        for linear in last:
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
        nn.init.constant_(last[0].bias[2:], -2.0)

    def forward(self, tokens_BTSC: Tensor, geometry: Geometry) -> list[DecodedLayer]:
        """Encoded tokens [B, T, S, C] → one `DecodedLayer` a layer.

        The last one is the result.
        """
        B, T = tokens_BTSC.shape[:2]
        position_QC, content_QC = self.query_embed.weight.chunk(2, 1)
        reference = self.reference_points(position_QC).sigmoid().expand(B, T, -1, -1)
        # Embeddings may be stored more precisely than the layers' weights, for the sake of the reference points alone.
        first = self.layers[0]
        assert isinstance(first, DecoderLayer)
        dtype = first.output_proj.weight.dtype
        position_QC, content_QC = position_QC.to(dtype), content_QC.to(dtype)
        instance = content_QC.expand(B, -1, -1)
        box = instance[:, None]
        layers = []
        for layer, bbox_embed in zip(self.layers, self.bbox_embed, strict=True):
            ratio_BL2 = geometry.valid_ratio_BL2
            ratio = ratio_BL2 if reference.shape[-1] == 2 else torch.cat((ratio_BL2, ratio_BL2), -1)
            reference_BTQLR = reference[:, :, :, None] * ratio[:, None, None]
            instance, box = layer(instance, box, position_QC, reference_BTQLR, tokens_BTSC, geometry)
            delta = at_least_fp32(bbox_embed(box))
            anchor = inverse_sigmoid(at_least_fp32(reference))
            if reference.shape[-1] == 2:
                anchor = F.pad(anchor, (0, 2))
            boxes = (delta + anchor).sigmoid()
            layers.append(DecodedLayer(instance, boxes, reference))
            reference = boxes.detach()
        return layers
