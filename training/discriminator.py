"""The auxiliary discriminator of foreground and background (Figure 2e)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SCALES = 3  # the finest of the encoder


class Discriminator(nn.Module):
    """Evidence at three scales that a mask is the ground truth.

    Inputs are frames ⊕ encoder features ⊕ foreground mask.

    Frames and mask enter at stride 8, the features of strides 8, 16 and 32 where the maps have come to their size, as
    in the released code's unused definition. Features inside and outside of the mask enter apart, since their
    separability is what is judged. Each cell of each scale gives evidence, so that outlines and whole shapes count.
    """

    def __init__(self, width: int, hidden: int = 64) -> None:
        super().__init__()
        self.reduce = nn.ModuleList(nn.Conv2d(width, hidden, 1) for _ in range(SCALES))
        self.separate = nn.ModuleList(nn.Conv2d(2 * hidden, hidden, 1) for _ in range(SCALES))
        # A cell of stride 8 has 4 pixels of a mask of stride 4.
        self.stem = nn.Conv2d(3 + 4, hidden, 3, padding=1)
        self.down = nn.ModuleList(nn.Conv2d(hidden, hidden, 3, stride=2, padding=1) for _ in range(SCALES - 1))
        self.norms = nn.ModuleList(nn.GroupNorm(8, hidden) for _ in range(SCALES))
        self.mix = nn.ModuleList(nn.Conv2d(hidden, hidden, 3, padding=1) for _ in range(SCALES))
        # A bias would be the same for both masks of a frame, and cancel.
        self.evidence = nn.ModuleList(nn.Conv2d(hidden, 1, 1, bias=False) for _ in range(SCALES))

    def forward(self, images_N3HW: Tensor, features: Sequence[Tensor], mask_N1hw: Tensor) -> list[Tensor]:
        """Verdicts [N, 1, h, w] at each scale on masks of stride 4, positive for real."""
        h, w = features[0].shape[-2:]
        images = F.adaptive_avg_pool2d(images_N3HW, (h, w))
        x = self.stem(torch.cat((images, F.pixel_unshuffle(mask_N1hw - 0.5, 2)), 1))
        maps = []
        for i, feature in enumerate(features):
            h, w = feature.shape[-2:]
            if i:
                x = self.down[i - 1](x)
            inside, reduced = F.adaptive_avg_pool2d(mask_N1hw, (h, w)), self.reduce[i](feature)
            separated = self.separate[i](torch.cat((reduced * inside, reduced * (1 - inside)), 1))
            x = F.leaky_relu(self.norms[i](x + separated), 0.2)
            x = F.leaky_relu(self.mix[i](x), 0.2)
            maps.append(self.evidence[i](x))
        return maps


def foreground(masks_nThw: Tensor, clip_n: Tensor, clips: int) -> Tensor:
    """The union of each clip's masks (probabilities or 0/1) → [clips·T, 1, h, w].

    Empty where a clip has none.
    """
    _, T, h, w = masks_nThw.shape
    union = masks_nThw.new_zeros(clips, T, h, w)
    index = clip_n[:, None, None, None].expand_as(masks_nThw)
    return union.scatter_reduce(0, index, masks_nThw, "amax").flatten(0, 1)[:, None]


def as_drawn(probability: Tensor) -> Tensor:
    """Probabilities as masks of 0 and 1, with straight-through gradients.

    True masks are 0 and 1. Of soft ones, a discriminator would see that they are soft and not look at their shape.
    """
    return (probability > 0.5).float() + probability - probability.detach()


def verdict(maps: Sequence[Tensor], sizes_N2: Tensor, padded: tuple[int, int]) -> Tensor:
    """The evidence of all scales for each frame → [N], positive for real.

    Most cells look the same whichever mask it is, so that a verdict for each of them could hardly be better than
    chance (51 % where verdicts of frames are right for 85 %).

    Args:
        maps: evidence [N, 1, h, w] of each scale.
        sizes_N2: valid height and width of the N frames; cells count whose corner lies in that part.
        padded: height and width of the frames with padding.
    """
    total = maps[0].new_zeros(len(sizes_N2))
    for map_N1hw in maps:
        (h, w), (H, W) = map_N1hw.shape[-2:], padded
        y, x = (torch.arange(side, device=sizes_N2.device) for side in (h, w))
        valid = ((y[:, None] * H < sizes_N2[:, :1, None] * h) & (x * W < sizes_N2[:, 1:, None] * w))[:, None].float()
        # Like a sum of independent evidence, of a size that does not depend on the number of cells.
        total = total + (map_N1hw * valid).sum((1, 2, 3)) / valid.sum((1, 2, 3)).sqrt()
    return total


def duel_loss(winner_N: Tensor, loser_N: Tensor) -> Tensor:
    """Loss of ranking one mask of a frame above another (arXiv 1807.00734).

    Both masks are of one frame, so that what a verdict says of the frame itself cancels. ln 2 is chance.
    """
    return F.softplus(loser_N - winner_N).mean()


def accuracy(real_N: Tensor, fake_N: Tensor) -> Tensor:
    """The share of frames whose true mask ranks above the drawn one (ties count half)."""
    return ((real_N > fake_N).float() + (real_N >= fake_N).float()).mean() / 2
