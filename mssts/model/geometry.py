"""Geometry of a padded clip's tokens.

Sizes of the scales, valid tokens, positions and reference points.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Geometry:
    """The geometry shared by all layers of one forward pass.

    All frames of a clip have the same size, so T does not appear.
    """

    shapes: list[tuple[int, int]]  # (h, w) of each scale, finest first
    shapes_L2: Tensor  # the same as int64
    valid_BS: Tensor  # 1 where a token is of the frame, 0 where it is padding
    valid_ratio_BL2: Tensor  # (x, y): the valid part of each scale
    position_BSC: Tensor  # sine position embedding, without the learned embedding of the scale
    reference_BSL2: Tensor  # centre of each token as (x, y) in [0, 1] of each scale, in the padded frame

    def split(self, tokens_S: Tensor, dim: int) -> tuple[Tensor, ...]:
        """Splits a tensor along its token axis into one tensor a scale."""
        return torch.split(tokens_S, [h * w for h, w in self.shapes], dim)


def sine_periods(channels: int) -> Tensor:
    """Periods of the C/2 channels of each axis, fp32.

    A model keeps them: at padded tokens angles are in the millions, and a power that another runtime computes, one
    rounding off, would turn them by a radian.
    """
    index = torch.arange(channels // 2, dtype=torch.float32)
    return 10000 ** (2 * (index // 2) / (channels // 2))


def sine_position(valid_h_Bh: Tensor, valid_w_Bw: Tensor, periods: Tensor) -> Tensor:
    """Normalised sine embedding of the position in the valid region → [B, h·w, C].

    As in DETR (arXiv 2005.12872).

    The rows and columns that are valid are prefixes, so the cumulative sums of the 2-D mask are those of one row or
    column, or zero: an axis needs the sines of h + 1 or w + 1 coordinates, and none for each token.
    Tokens of padding get what the released code gives them; they reach the mask head's convolutions at the border.
    """
    eps, scale = 1e-6, 2 * math.pi

    def embed(valid_BN: Tensor) -> Tensor:
        """Embedding of one axis → [B, N + 1, C/2].

        The last is that of tokens whose other axis is padding.
        """
        coordinate_BN = F.pad(valid_BN.float().cumsum(1), (0, 1))
        total_BN = F.pad(coordinate_BN[:, -2:-1].expand(valid_BN.shape), (0, 1))
        coordinate_BN = (coordinate_BN - 0.5) / (total_BN + eps) * scale
        angle = coordinate_BN[..., None] / periods
        return torch.stack((angle[..., 0::2].sin(), angle[..., 1::2].cos()), dim=-1).flatten(-2)

    y, x = embed(valid_h_Bh)[:, :, None], embed(valid_w_Bw)[:, None]
    y_BhwC = torch.where(valid_w_Bw[:, None, :, None], y[:, :-1], y[:, -1:])
    x_BhwC = torch.where(valid_h_Bh[:, :, None, None], x[:, :, :-1], x[:, :, -1:])
    return torch.cat((y_BhwC, x_BhwC), dim=-1).flatten(1, 2)


def build_geometry(
    shapes: list[tuple[int, int]], sizes_B2: Tensor, height: int, width: int, periods: Tensor, dtype: torch.dtype
) -> Geometry:
    """Geometry of clips of sizes `sizes_B2` in padded frames of height × width.

    `sizes_B2` holds the valid height and width. Computed in fp32, whatever the `dtype` of the tokens; only positions
    and the mask are in `dtype`, and in fp64 all of it is.

    A token is padding if the pixel that nearest-neighbour downsampling picks for it is, as in the released code.
    """
    device = sizes_B2.device
    wide = torch.promote_types(dtype, torch.float32)
    valid, ratios, positions, centres = [], [], [], []
    for h, w in shapes:
        valid_h_Bh = _nearest(h, height, device) < sizes_B2[:, :1]
        valid_w_Bw = _nearest(w, width, device) < sizes_B2[:, 1:]
        valid.append((valid_h_Bh[:, :, None] & valid_w_Bw[:, None, :]).flatten(1))
        ratios.append(torch.stack((valid_w_Bw.float().mean(1), valid_h_Bh.float().mean(1)), -1))
        positions.append(sine_position(valid_h_Bh, valid_w_Bw, periods))
        y, x = _centres(h, device), _centres(w, device)
        centres.append(torch.stack((x[None, :].expand(h, w), y[:, None].expand(h, w)), -1).flatten(0, 1))
    valid_ratio_BL2 = torch.stack(ratios, 1)
    # A token's centre as a fraction of the valid region of its own scale, then placed in every scale.
    reference_BS2 = torch.cat(
        [centre[None] / valid_ratio_BL2[:, level, None] for level, centre in enumerate(centres)], 1
    )
    return Geometry(
        shapes=shapes,
        shapes_L2=torch.stack([torch.stack((_scalar(h, device), _scalar(w, device))) for h, w in shapes]),
        valid_BS=torch.cat(valid, 1).to(dtype),
        valid_ratio_BL2=valid_ratio_BL2.to(wide),
        position_BSC=torch.cat(positions, 1).to(dtype),
        reference_BSL2=(reference_BS2[:, :, None] * valid_ratio_BL2[:, None]).to(wide),
    )


def _nearest(length: int, full: int, device: torch.device) -> Tensor:
    """Pixel indices that nearest-neighbour downsampling to `length` picks.

    Shape [1, length]. They are indices among `full` pixels.
    """
    index = torch.arange(length, dtype=torch.float32, device=device)
    return torch.floor(index * (_scalar(full, device).float() / _scalar(length, device).float()))[None]


def _centres(length: int, device: torch.device) -> Tensor:
    """Centres of `length` equal cells of [0, 1]."""
    return (torch.arange(length, dtype=torch.float32, device=device) + 0.5) / _scalar(length, device).float()


def _scalar(value: int, device: torch.device) -> Tensor:
    # Under export `value` is symbolic; torch.tensor would bake the traced number in.
    return torch.scalar_tensor(value, dtype=torch.int64, device=device)
