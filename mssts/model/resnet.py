"""Residual networks (arXiv 1512.03385, 1611.05431) with torchvision's names.

With the names of its state dict, its weights load.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NormLayer = Callable[[int], nn.Module]


class FrozenBatchNorm2d(nn.Module):
    """Batch norm whose statistics and affine parameters never change.

    It suits batches of a few clips.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def forward(self, x_NCHW: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x_NCHW * scale[:, None, None].to(x_NCHW.dtype) + shift[:, None, None].to(x_NCHW.dtype)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: object) -> None:
        state_dict.pop(prefix + "num_batches_tracked", None)  # torchvision's files have it; nothing here uses it
        super()._load_from_state_dict(state_dict, prefix, *rest)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions (ResNet-18)."""

    expansion = 1

    def __init__(self, channels_in: int, channels: int, stride: int, norm: NormLayer) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = norm(channels)
        self.downsample = _shortcut(channels_in, channels, stride, norm)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x_NCHW)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + (x_NCHW if self.downsample is None else self.downsample(x_NCHW)))


class Bottleneck(nn.Module):
    """1×1, 3×3 (with the stride, as in torchvision), 1×1 (ResNet-50 and deeper)."""

    expansion = 4
    groups = 1  # of the 3×3 convolution
    group_width = 64  # channels of a group in the first stage

    def __init__(self, channels_in: int, channels: int, stride: int, norm: NormLayer) -> None:
        super().__init__()
        channels_out = channels * self.expansion
        width = channels * self.group_width // 64 * self.groups
        self.conv1 = nn.Conv2d(channels_in, width, 1, bias=False)
        self.bn1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, groups=self.groups, bias=False)
        self.bn2 = norm(width)
        self.conv3 = nn.Conv2d(width, channels_out, 1, bias=False)
        self.bn3 = norm(channels_out)
        self.downsample = _shortcut(channels_in, channels_out, stride, norm)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x_NCHW)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x_NCHW if self.downsample is None else self.downsample(x_NCHW)))


class Bottleneck32x8d(Bottleneck):
    """The bottleneck of ResNeXt 32×8d."""

    groups = 32
    group_width = 8


def _shortcut(channels_in: int, channels_out: int, stride: int, norm: NormLayer) -> nn.Sequential | None:
    if stride == 1 and channels_in == channels_out:
        return None
    return nn.Sequential(nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), norm(channels_out))


class ResNet(nn.Module):
    """A residual network without its classifier.

    It returns the features of strides 8, 16 and 32. `width` is the channels of the first stage, torchvision's 64.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, ...],
        norm: NormLayer,
        width: int = 64,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = norm(width)
        channels_in = width
        for stage, depth in enumerate(depths):
            channels = width << stage
            blocks = []
            for i in range(depth):
                blocks.append(block(channels_in, channels, 2 if stage > 0 and i == 0 else 1, norm))
                channels_in = channels * block.expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.channels = tuple(2 * width * block.expansion << i for i in range(3))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images_N3HW: Tensor) -> list[Tensor]:
        """Images [N, 3, H, W] → features [N, C_i, ⌈H/s⌉, ⌈W/s⌉] for s = 8, 16, 32.

        Images are normalised.
        """
        x = F.relu(self.bn1(self.conv1(images_N3HW)))
        x = F.max_pool2d(x, 3, 2, 1)
        features = []
        for stage in range(4):
            x = self.get_submodule(f"layer{stage + 1}")(x)
            features.append(x)
        return features[1:]
