"""The backbones, by name: normalised images → features of strides 8, 16 and 32."""

from __future__ import annotations

from torch import nn

from mssts.errors import MsstsError
from mssts.model.resnet import BasicBlock, Bottleneck, Bottleneck32x8d, FrozenBatchNorm2d, NormLayer, ResNet
from mssts.model.swin import SwinConfig, SwinTransformer

Backbone = ResNet | SwinTransformer

# The kind of block, the depths of the stages, and the channels of the first.
_RESNETS: dict[str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, ...], int]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2), 64),
    "resnet18_w32": (BasicBlock, (2, 2, 2, 2), 32),
    "resnet50": (Bottleneck, (3, 4, 6, 3), 64),
    "resnet101": (Bottleneck, (3, 4, 23, 3), 64),
    "resnext101_32x8d": (Bottleneck32x8d, (3, 4, 23, 3), 64),
}
_SWINS: dict[str, SwinConfig] = {
    "swin_t_p4w7": SwinConfig(96, (2, 2, 6, 2), (3, 6, 12, 24), window=7, drop_path=0.2),
    "swin_s_p4w7": SwinConfig(96, (2, 2, 18, 2), (3, 6, 12, 24), window=7, drop_path=0.2),
    "swin_b_p4w7": SwinConfig(128, (2, 2, 18, 2), (4, 8, 16, 32), window=7, drop_path=0.3),
    "swin_b_p4w12": SwinConfig(128, (2, 2, 18, 2), (4, 8, 16, 32), window=12, drop_path=0.3),
    "swin_l_p4w7": SwinConfig(192, (2, 2, 18, 2), (6, 12, 24, 48), window=7, drop_path=0.3),
    "swin_l_p4w12": SwinConfig(192, (2, 2, 18, 2), (6, 12, 24, 48), window=12, drop_path=0.3),
}
_NORMS: dict[str, NormLayer] = {"frozen": FrozenBatchNorm2d, "batch": nn.BatchNorm2d}

BACKBONES: tuple[str, ...] = (*_RESNETS, *_SWINS)


def build_backbone(name: str, norm: str) -> Backbone:
    """Builds a backbone by name.

    `norm` is "frozen" or "batch" for a residual network. Swin has only layer norms.

    Raises:
        MsstsError: there is none of that name; the message lists those there are.
    """
    if name in _SWINS:
        return SwinTransformer(_SWINS[name])
    if name not in _RESNETS:
        raise MsstsError(f"unknown backbone {name!r}; expected one of: {', '.join(BACKBONES)}")
    block, depths, width = _RESNETS[name]
    return ResNet(block, depths, _NORMS[norm], width)
