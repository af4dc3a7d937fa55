"""The whole model: frames of a clip → classes, boxes and masks of its instances.

See Figure 2a of the paper.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mssts.model.attention import DeformableAttention
from mssts.model.backbone import build_backbone
from mssts.model.config import ModelConfig
from mssts.model.decoder import DecodedLayer, Decoder, TemporalAttention
from mssts.model.encoder import Encoder
from mssts.model.geometry import build_geometry, sine_periods
from mssts.model.mask_head import DynamicMaskHead, MaskFeatures
from mssts.model.split_attention import SplitAttention


@dataclass(frozen=True)
class Prediction:
    """The model's predictions for a clip, layer by layer.

    Masks are drawn on demand by `MSSTSVIS.masks`.
    """

    logits: list[Tensor]  # one [B, Q, classes] a decoder layer
    layers: list[DecodedLayer]
    sizes_B2: Tensor
    mask_features_BTChw: Tensor
    encoded_BTSC: Tensor
    shapes: list[tuple[int, int]]


class MSSTSVIS(nn.Module):
    """MS-STS VIS. With all of `config.switches` off, the released baseline.

    Any number of frames, any size; clips of a batch are padded at the bottom and the right.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = build_backbone(config.backbone, config.backbone_norm)
        channels = list(self.backbone.channels)
        projections = [_projection(c, config.width, 1) for c in channels]
        extra = [channels[-1]] + [config.width] * config.levels
        projections += [_projection(extra[i], config.width, 3) for i in range(config.levels - len(channels))]
        self.input_proj = nn.ModuleList(projections)
        self.register_buffer("sine_periods", sine_periods(config.width), persistent=False)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.class_embed = nn.ModuleList(nn.Linear(config.width, config.classes) for _ in range(config.decoder_layers))
        self.mask_features = MaskFeatures(config)
        self.mask_head = DynamicMaskHead(config)
        self._reset_parameters()

    sine_periods: Tensor

    def _reset_parameters(self) -> None:
        for part in (self.encoder, self.decoder):
            for parameter in part.parameters():
                if parameter.dim() > 1:
                    nn.init.xavier_uniform_(parameter)
        nn.init.normal_(self.encoder.level_embed.weight)
        nn.init.normal_(self.decoder.query_embed.weight)
        for module in self.modules():
            if isinstance(module, (DeformableAttention, SplitAttention, TemporalAttention, Decoder)):
                module.reset_parameters()
        prior = 0.01  # the focal loss wants rare positives at the start (arXiv 1708.02002)
        for linear in self.class_embed:
            assert isinstance(linear, nn.Linear)
            nn.init.constant_(linear.bias, -math.log((1 - prior) / prior))

    def forward(self, images_BT3HW: Tensor, sizes_B2: Tensor) -> Prediction:
        """Normalised images, zero where padded, and the clips' valid heights and widths."""
        B, T, _, H, W = images_BT3HW.shape
        features = self.backbone(images_BT3HW.flatten(0, 1))
        scales = []
        for i, projection in enumerate(self.input_proj):
            if i < len(features):
                scales.append(projection(features[i]))
            else:
                scales.append(projection(features[-1] if i == len(features) else scales[-1]))
        shapes = [(scale.shape[-2], scale.shape[-1]) for scale in scales]
        # Channels last before they are flattened: TensorRT-RTX 1.7 cannot build 16-bit graphs whose tokens were
        # transposed flat.
        tokens = torch.cat([scale.permute(0, 2, 3, 1).flatten(1, 2) for scale in scales], 1).unflatten(0, (B, T))
        geometry = build_geometry(shapes, sizes_B2, H, W, self.sine_periods.float(), tokens.dtype)
        encoded = self.encoder(tokens, geometry)
        layers = self.decoder(encoded, geometry)
        maps = [
            part.flatten(0, 1).unflatten(1, shape).permute(0, 3, 1, 2)
            for part, shape in zip(geometry.split(encoded, 2)[:3], shapes, strict=False)
        ]
        return Prediction(
            logits=[embed(layer.instance_BQC) for embed, layer in zip(self.class_embed, layers, strict=True)],
            layers=layers,
            sizes_B2=sizes_B2,
            mask_features_BTChw=self.mask_features(*maps).unflatten(0, (B, T)),
            encoded_BTSC=encoded,
            shapes=shapes,
        )

    def masks(self, prediction: Prediction, layer: int, queries_BK: Tensor) -> Tensor:
        """Mask logits [B, K, T, h, w] at stride 4 of the chosen queries.

        They are drawn by one decoder layer.
        """
        decoded = prediction.layers[layer]
        instance = decoded.instance_BQC.gather(1, queries_BK[..., None].expand(-1, -1, self.config.width))
        T, R = decoded.reference_BTQR.shape[1], decoded.reference_BTQR.shape[3]
        # Sliced after the gather: OpenVINO 2026.4 drops a slice that comes before it and then refuses the shapes.
        chosen = decoded.reference_BTQR.gather(2, queries_BK[:, None, :, None].expand(-1, T, -1, R))
        return self.mask_head(instance, chosen[..., :2], prediction.sizes_B2, prediction.mask_features_BTChw)


class _StridedConvolution(nn.Conv2d):
    """Reduces features from stride 2 to a further scale.

    Under autocast on a processor it computes in fp32.

    oneDNN's convolution in bf16 for AMX (seen in PyTorch 2.13) reads memory that nobody wrote where a map is one or two
    wide, and gives other values each time, NaN among them.
    """

    def forward(self, input: Tensor) -> Tensor:
        if input.is_cpu and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return super().forward(input.float())
        return super().forward(input)


def _projection(channels: int, width: int, kernel: int) -> nn.Sequential:
    if kernel == 1:
        convolution = nn.Conv2d(channels, width, 1)
    else:
        convolution = _StridedConvolution(channels, width, kernel, stride=2, padding=kernel // 2)
    nn.init.xavier_uniform_(convolution.weight)
    assert convolution.bias is not None
    nn.init.zeros_(convolution.bias)
    return nn.Sequential(convolution, nn.GroupNorm(32, width))


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The names and shapes of a model's parameters and buffers, without making it."""
    with torch.device("meta"):
        model = MSSTSVIS(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
