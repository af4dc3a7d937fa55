"""Positions of tokens, against the definition over a mask of two dimensions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mssts.model.geometry import sine_periods, sine_position


def position_by_mask(valid_Bhw: Tensor, channels: int) -> Tensor:
    """DETR's normalised sine embedding, token by token."""
    y = valid_Bhw.cumsum(1, dtype=torch.float32)
    x = valid_Bhw.cumsum(2, dtype=torch.float32)
    y = (y - 0.5) / (y[:, -1:] + 1e-6) * (2 * math.pi)
    x = (x - 0.5) / (x[:, :, -1:] + 1e-6) * (2 * math.pi)
    found = []
    for coordinate in (y, x):
        angle = coordinate[..., None] / sine_periods(channels)
        turned = torch.empty_like(angle)
        turned[..., 0::2] = angle[..., 0::2].sin()
        turned[..., 1::2] = angle[..., 1::2].cos()
        found.append(turned)
    return torch.cat(found, -1).flatten(1, 2)


@pytest.mark.parametrize(("h", "w"), [(7, 9), (1, 5), (1, 1)])
@pytest.mark.parametrize("part", [1.0, 0.6, 0.0])
def test_positions_are_those_of_the_mask_in_the_padding_too(h, w, part):
    """To the bit.

    In the padding angles are in the millions, where another rounding gives another sine.
    """
    rows = torch.arange(h)[None] < torch.tensor([[h], [math.ceil(h * part)]])
    columns = torch.arange(w)[None] < torch.tensor([[w], [math.ceil(w * part)]])
    expected = position_by_mask(rows[:, :, None] & columns[:, None], 16)
    assert torch.equal(sine_position(rows, columns, sine_periods(16)), expected)
