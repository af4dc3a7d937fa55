"""Mask head: convolutions to 8 channels, then dynamic convolutions (CondInst).

The first are FPN-like, the others three 1×1 convolutions for each instance.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mssts.model.config import ModelConfig
from mssts.model.layers import MLP, at_least_fp32
from mssts.ops.exporting import is_exporting

_CHANNELS = 8  # of the dynamic convolutions
_STRIDE = 8  # of the mask features; masks come out at half of it


class MaskFeatures(nn.Module):
    """Features of strides 8, 16 and 32 → mask features of stride 8.

    They have C/32 channels, and at least 8.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        self.channels = mask_feature_channels(config)
        self.lay3 = nn.Conv2d(width, width, 3, padding=1)
        self.lay4 = nn.Conv2d(width, width, 3, padding=1)
        self.dcn = nn.Conv2d(width, width, 3, padding=1)
        self.lay1 = nn.Conv2d(width, width // 4, 3, padding=1)
        self.lay2 = nn.Conv2d(width // 4, self.channels, 3, padding=1)
        for convolution in (self.lay1, self.lay2, self.lay3, self.lay4, self.dcn):
            assert convolution.bias is not None
            nn.init.kaiming_uniform_(convolution.weight, a=1)
            nn.init.zeros_(convolution.bias)

    def forward(self, fine_NChw: Tensor, middle_NChw: Tensor, coarse_NChw: Tensor) -> Tensor:
        """→ [N, C/32, h, w] at the resolution of `fine`."""
        x = F.relu(self.lay3(coarse_NChw))
        x = F.relu(self.lay4(_with_coarse(middle_NChw, x)))
        x = F.relu(self.dcn(_with_coarse(fine_NChw, x)))
        return F.relu(self.lay2(F.relu(self.lay1(x))))


def _with_coarse(fine_NChw: Tensor, coarse_NChw: Tensor) -> Tensor:
    """The fine map plus the coarse one, which is enlarged to it by nearest neighbours.

    Sides of n pixels become 2n or 2n − 1, so pixel i takes pixel i // 2. An exported graph is written that way:
    OpenVINO 2026.4 fuses a Resize with the addition that follows, and the sum is wrong. There channels are last, as the
    tokens have them and OpenVINO's convolutions want them, so that nothing is transposed.
    """
    h, w = fine_NChw.shape[-2:]
    if not is_exporting():
        return fine_NChw + F.interpolate(coarse_NChw, size=(h, w), mode="nearest")
    fine_NhwC, coarse_NhwC = (x.permute(0, 2, 3, 1) for x in (fine_NChw, coarse_NChw))
    rows, columns = (torch.arange(side, device=coarse_NChw.device) // 2 for side in (h, w))
    return (fine_NhwC + coarse_NhwC.index_select(2, columns).index_select(1, rows)).permute(0, 3, 1, 2)


def mask_feature_channels(config: ModelConfig) -> int:
    """Channels of the mask features.

    C/32 as in the released code, and no fewer than the dynamic convolutions have.
    """
    return max(config.width // 32, _CHANNELS)


class DynamicMaskHead(nn.Module):
    """An MLP from an instance feature to the weights of three 1×1 convolutions.

    The convolutions draw the instance's mask.

    The convolutions see the mask features and the pixel's position relative to the instance's centre, in pixels.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.features = mask_feature_channels(config)
        c = _CHANNELS
        # Weights of the three layers, then their biases: the order of the released code.
        self.sizes = [(self.features + 2) * c, c * c, c, c, c, 1]
        self.controller = MLP(config.width, config.width, sum(self.sizes), 3)
        for linear in self.controller.linears():
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, instance_BKC: Tensor, centre_BTK2: Tensor, sizes_B2: Tensor, features_BTChw: Tensor) -> Tensor:
        """Mask logits [B, K, T, 2h, 2w], stride 4.

        Args:
            instance_BKC: features of the K instances to draw.
            centre_BTK2: their centres (x, y) as fractions of the valid size.
            sizes_B2: valid (height, width) of the clips in pixels.
            features_BTChw: mask features.
        """
        B, T, _, h, w = features_BTChw.shape
        K, c = instance_BKC.shape[1], _CHANNELS
        device = features_BTChw.device
        # Coordinates reach hundreds of pixels and cancel: everything here is fp32.
        w1, w2, w3, b1, b2, b3 = at_least_fp32(self.controller(instance_BKC)).split(self.sizes, -1)
        w1 = w1.view(B, K, c, self.features + 2)
        centre = at_least_fp32(centre_BTK2) * sizes_B2.flip(1)[:, None, None]
        # First layer on (centre − pixel, features): the centre's share is one number a channel, so the inputs are the
        # same for all instances and the layer is one matrix product.
        y = torch.arange(h, device=device) * _STRIDE + _STRIDE // 2
        x = torch.arange(w, device=device) * _STRIDE + _STRIDE // 2
        pixel = torch.stack((x[None, :].expand(h, w), y[:, None].expand(h, w))).flatten(1).to(centre.dtype)
        inputs = torch.cat((-pixel.expand(B, T, -1, -1), at_least_fp32(features_BTChw).flatten(3)), 2)
        shift_BTKc = torch.einsum("bkcr,btkr->btkc", w1[..., :2], centre) + b1[:, None]
        hidden = (w1.reshape(B, 1, K * c, self.features + 2) @ inputs).view(B, T, K, c, h * w)
        hidden = F.relu(hidden + shift_BTKc[..., None])
        hidden = F.relu(w2.view(B, 1, K, c, c) @ hidden + b2[:, None, ..., None])
        logits = w3.view(B, 1, K, 1, c) @ hidden + b3[:, None, ..., None]
        return double_aligned(logits.view(B, T, K, h, w).transpose(1, 2))


def double_aligned(x_hw: Tensor) -> Tensor:
    """Doubles the resolution of the last two dimensions bilinearly.

    Pixel 2i+1 is pixel i, 2i its mean with i−1.

    CondInst's `aligned_bilinear` for a factor of 2, without its paddings and croppings.
    """
    for dim in (-2, -1):
        before = torch.cat((x_hw.narrow(dim, 0, 1), x_hw.narrow(dim, 0, x_hw.shape[dim] - 1)), dim)
        x_hw = torch.stack(((before + x_hw) / 2, x_hw), dim if dim == -1 else -2).flatten(dim - 1, dim)
    return x_hw
