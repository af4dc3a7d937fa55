"""The released code's forward pass on our weights, the baseline of the comparison.

It computes what the released code (OmkarThawakar/MSSTS-VIS, `models/`) computes, op by op and in that order, for where
that code and its CUDA extension are absent. What makes it slow is the released code's own: attention frame by frame on
`grid_sample`, mask convolutions frame by frame at each of the decoder layers, masks of all queries at each of them.
Nothing else holds it back: tensors are contiguous, gradients are off, all threads are its own, and what it computes and
never reads (features of stride 4, positions of each frame) is left out.

Letters: B clips, T frames, S tokens of all scales, Q queries, M heads, D channels a head, L scales, P points.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mssts.artefact import Artefact
from mssts.errors import MsstsError
from mssts.model.attention import DeformableAttention
from mssts.model.checkpoint import Checkpoint
from mssts.model.decoder import DecoderLayer, SelfAttention
from mssts.model.encoder import EncoderLayer
from mssts.model.engine import normalise
from mssts.model.geometry import Geometry, build_geometry
from mssts.model.layers import inverse_sigmoid
from mssts.model.mssts_vis import MSSTSVIS
from mssts.runners.torch_runner import TorchRunner

_MASK_CHANNELS = 8  # of the dynamic convolutions
_MASK_STRIDE = 8


class ReleasedRunner(TorchRunner):
    """`ReleasedEngine` on a checkpoint, on a processor."""

    def __init__(self, checkpoint: Artefact | Path | str, threads: int | None = None) -> None:
        super().__init__(checkpoint, threads, device="cpu")

    def _build(self, loaded: Checkpoint) -> nn.Module:
        return ReleasedEngine(loaded.build(), self.manifest.top_k)

    def describe(self) -> dict[str, Any]:
        """As `TorchRunner`, without kernels."""
        without = {"kernels": [], "kernels_isa": "", "kernels_reason": "the released code has none"}
        return {**super().describe(), "name": "released", **without}


class ReleasedEngine(nn.Module):
    """An engine computed as the released `Baseline.inference` does, clip by clip.

    Raises:
        MsstsError: the model has a switch on that the released one lacks.
    """

    def __init__(self, model: MSSTSVIS, top_k: int) -> None:
        super().__init__()
        switches = model.config.switches
        if switches.intra_scale or switches.inter_scale or switches.temporal_decoder:
            raise MsstsError("the released code has none of the switches' parts; measure it with --switches baseline")
        self.model = model.float()
        self.top_k = top_k

    def forward(self, frames: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Scores, labels, boxes and mask logits of frames [1, T, H, W, 3]."""
        if len(frames) != 1:
            raise MsstsError(f"the released inference takes one clip; got a batch of {len(frames)}")
        model, classes = self.model, self.model.config.classes
        images_BT3HW = normalise(frames, sizes)
        T, H, W = images_BT3HW.shape[1], *images_BT3HW.shape[-2:]
        features = model.backbone(images_BT3HW.flatten(0, 1))
        scales: list[Tensor] = []
        for i, projection in enumerate(model.input_proj):
            scales.append(projection(features[i] if i < 3 else features[-1] if i == 3 else scales[-1]))
        shapes = [(scale.shape[-2], scale.shape[-1]) for scale in scales]
        tokens = torch.cat([scale.flatten(2).transpose(1, 2) for scale in scales], 1)[None]
        geometry = build_geometry(shapes, sizes, H, W, model.sine_periods, torch.float32)
        positions = geometry.split(geometry.position_BSC, 1)
        position = torch.cat([p + model.encoder.level_embed.weight[i] for i, p in enumerate(positions)], 1)
        position = position[:, None].expand(-1, T, -1, -1).contiguous()
        for layer in model.encoder.layers:
            assert isinstance(layer, EncoderLayer)
            tokens = _encode(layer, tokens, position, geometry)
        instances, boxes, references = self._decode(tokens, geometry)

        masks = [
            self._masks(instance, reference[..., :2] * sizes.flip(1)[:, None, None], tokens, geometry)
            for instance, reference in zip(instances, references, strict=True)
        ]
        logits = [embed(instance) for embed, instance in zip(model.class_embed, instances, strict=True)]

        scores, index = logits[-1].sigmoid().flatten(1).topk(self.top_k)
        query = index[0] // classes
        labels = (index - query * classes).to(torch.int32)
        return scores, labels, boxes[-1][:, :, query].transpose(1, 2), masks[-1][:, query]

    def _decode(self, tokens_BTSC: Tensor, geometry: Geometry) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Instance features [1, Q, C], boxes [1, T, Q, 4] and references of each layer."""
        decoder = self.model.decoder
        B, T = tokens_BTSC.shape[:2]
        position, content = decoder.query_embed.weight.chunk(2, 1)
        instance = content.expand(B, -1, -1)
        box = instance
        reference = decoder.reference_points(position).sigmoid()[None, None].repeat(B, T, 1, 1)
        instances, boxes, references = [], [], []
        for layer, embed in zip(decoder.layers, decoder.bbox_embed, strict=True):
            assert isinstance(layer, DecoderLayer)
            ratio = geometry.valid_ratio_BL2.repeat(1, 1, reference.shape[-1] // 2)
            reference_BTQLR = reference[:, :, :, None] * ratio[:, None, None]
            instance, box = _decode_layer(layer, instance, box, position, reference_BTQLR, tokens_BTSC, geometry)
            delta, anchor = embed(box), inverse_sigmoid(reference)
            delta[..., : anchor.shape[-1]] += anchor
            instances.append(instance)
            references.append(reference)
            reference = delta.sigmoid()
            boxes.append(reference)
        return instances, boxes, references

    def _masks(self, instance_BQC: Tensor, centre_BTQ2: Tensor, tokens_BTSC: Tensor, geometry: Geometry) -> Tensor:
        """Mask logits [1, Q, T, 2h, 2w] of all queries, computed frame by frame."""
        parameters = self.model.mask_head.controller(instance_BQC)
        scales = [
            part.unflatten(2, shape).permute(0, 4, 1, 2, 3)  # [1, C, T, h, w], as the released code slices it
            for part, shape in zip(geometry.split(tokens_BTSC, 2)[:3], geometry.shapes, strict=False)
        ]
        frames = []
        for t in range(tokens_BTSC.shape[1]):
            features = self.model.mask_features(*(scale[:, :, t] for scale in scales))
            frames.append(_dynamic_masks(features, centre_BTQ2[:, t], parameters[0], self.model.mask_head.sizes))
        return torch.cat([frame.unsqueeze(2) for frame in frames], 2)


def _encode(layer: EncoderLayer, tokens_BTSC: Tensor, position_BTSC: Tensor, geometry: Geometry) -> Tensor:
    attended = _attend(layer.deformable, tokens_BTSC + position_BTSC, None, tokens_BTSC, geometry)
    tokens = layer.norm1(tokens_BTSC + layer.output_proj(attended))
    return layer.norm2(tokens + layer.linear2(F.relu(layer.linear1(tokens))))


def _decode_layer(
    layer: DecoderLayer,
    instance_BQC: Tensor,
    box: Tensor,
    position_QC: Tensor,
    reference_BTQLR: Tensor,
    tokens_BTSC: Tensor,
    geometry: Geometry,
) -> tuple[Tensor, Tensor]:
    """`box` is [1, Q, C] before the first layer and [1, T, Q, C] after it."""

    def self_attention(attention: nn.Module, norm: nn.Module, x_BQC: Tensor) -> Tensor:
        assert isinstance(attention, SelfAttention)
        query = x_BQC + position_QC
        # torch's own module, attention weights included, which the released code asks for by default.
        return norm(x_BQC + nn.MultiheadAttention.forward(attention, query, query, x_BQC)[0])

    instance = self_attention(layer.self_attn, layer.self_norm, instance_BQC)
    if box.dim() == 3:
        box = self_attention(layer.self_attn_box, layer.self_norm_box, box)[:, None]
    else:
        frames = [self_attention(layer.self_attn_box, layer.self_norm_box, frame) for frame in box.unbind(1)]
        box = torch.stack(frames, 1)
    sampled = _attend(layer.deformable, box + position_QC, reference_BTQLR, tokens_BTSC, geometry)
    gathered, own = layer.output_proj(sampled), layer.output_proj_box(sampled)
    box = layer.ffn_box(layer.cross_norm_box(box + own))
    weighted = (gathered * layer.time_weight(box).softmax(1)).sum(1)
    return layer.ffn(layer.cross_norm(instance + weighted)), box


def _attend(
    attention: DeformableAttention,
    query_BTQC: Tensor,
    reference_BTQLR: Tensor | None,
    tokens_BTSC: Tensor,
    geometry: Geometry,
) -> Tensor:
    """Deformable attention [1, T, Q, C], frame by frame.

    Without a reference, tokens attend from where they are."""
    B, T, S, C = tokens_BTSC.shape
    M, L, P, Q = attention.heads, attention.levels, attention.points, query_BTQC.shape[2]
    value = attention.value_proj(tokens_BTSC).masked_fill(geometry.valid_BS[:, None, :, None] == 0, 0.0)
    value = value.view(B, T, S, M, C // M)
    offsets = attention.sampling_offsets(query_BTQC).view(B, -1, Q, M, L, P, 2)
    weights = attention.attention_weights(query_BTQC).view(B, -1, Q, M, L * P).softmax(-1).view(B, -1, Q, M, L, P)
    results = []
    for t in range(T):
        own = t if offsets.shape[1] > 1 else 0
        if reference_BTQLR is None or reference_BTQLR.shape[-1] == 2:
            reference = geometry.reference_BSL2 if reference_BTQLR is None else reference_BTQLR[:, t]
            normaliser = geometry.shapes_L2.flip(1)
            locations = reference[:, :, None, :, None] + offsets[:, own] / normaliser[:, None]
        else:
            box = reference_BTQLR[:, t, :, None, :, None]
            locations = box[..., :2] + offsets[:, own] / P * box[..., 2:] * 0.5
        results.append(_sample(value[:, t].contiguous(), geometry.shapes, locations, weights[:, own].contiguous()))
    return torch.stack(results, 1)


def _sample(
    value_BSMD: Tensor, shapes: list[tuple[int, int]], locations_BQMLP2: Tensor, weights_BQMLP: Tensor
) -> Tensor:
    """The attention core by `grid_sample` as in the released code, [1, Q, M·D]."""
    B, Q, M, L, P = weights_BQMLP.shape
    D = value_BSMD.shape[-1]
    grids = 2 * locations_BQMLP2 - 1
    samples = []
    for level, part in enumerate(value_BSMD.split([h * w for h, w in shapes], 1)):
        image = part.flatten(2).transpose(1, 2).reshape(B * M, D, *shapes[level])
        grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)
        samples.append(F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False))
    weights = weights_BQMLP.transpose(1, 2).reshape(B * M, 1, Q, L * P)
    summed = (torch.stack(samples, -2).flatten(-2) * weights).sum(-1).view(B, M * D, Q)
    return summed.transpose(1, 2).contiguous()


def _dynamic_masks(features_1Chw: Tensor, centre_1Q2: Tensor, parameters_QP: Tensor, sizes: list[int]) -> Tensor:
    """Mask logits [1, Q, 2h, 2w] of one frame by three grouped convolutions."""
    Q = len(parameters_QP)
    _, C, h, w = features_1Chw.shape
    y = torch.arange(h, dtype=torch.float32) * _MASK_STRIDE + _MASK_STRIDE // 2
    x = torch.arange(w, dtype=torch.float32) * _MASK_STRIDE + _MASK_STRIDE // 2
    grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
    pixels_hw2 = torch.stack((grid_x, grid_y), -1)
    relative = (centre_1Q2.view(1, Q, 1, 1, 2) - pixels_hw2).permute(0, 1, 4, 2, 3)
    hidden = torch.cat((relative, features_1Chw[:, None].repeat(1, Q, 1, 1, 1)), 2).view(1, Q * (C + 2), h, w)
    w1, w2, w3, b1, b2, b3 = parameters_QP.split(sizes, 1)
    hidden = F.relu(F.conv2d(hidden, w1.reshape(Q * _MASK_CHANNELS, -1, 1, 1), b1.flatten(), groups=Q))
    hidden = F.relu(F.conv2d(hidden, w2.reshape(Q * _MASK_CHANNELS, -1, 1, 1), b2.flatten(), groups=Q))
    logits = F.conv2d(hidden, w3.reshape(Q, -1, 1, 1), b3.flatten(), groups=Q)
    # Bilinear to twice the size with corners aligned, of which the last row and column are cut off.
    logits = F.pad(logits.view(Q, 1, h, w), (0, 1, 0, 1), mode="replicate")
    logits = F.interpolate(logits, size=(2 * h + 1, 2 * w + 1), mode="bilinear", align_corners=True)
    logits = F.pad(logits, (1, 0, 1, 0), mode="replicate")
    return logits[:, :, : 2 * h, : 2 * w].view(1, Q, 2 * h, 2 * w)
