"""Boxes in two forms, and their generalised IoU (arXiv 1902.09630)."""

from __future__ import annotations

import torch
from torch import Tensor


def to_corners(boxes_4: Tensor) -> Tensor:
    """(cx, cy, w, h) → (x1, y1, x2, y2), any leading dimensions."""
    centre, half = boxes_4[..., :2], boxes_4[..., 2:] / 2
    return torch.cat((centre - half, centre + half), -1)


def generalised_iou(a_4: Tensor, b_4: Tensor) -> Tensor:
    """Generalised IoU of boxes (x1, y1, x2, y2) whose leading dimensions broadcast."""
    area_a = (a_4[..., 2:] - a_4[..., :2]).prod(-1)
    area_b = (b_4[..., 2:] - b_4[..., :2]).prod(-1)
    inner = (
        (torch.minimum(a_4[..., 2:], b_4[..., 2:]) - torch.maximum(a_4[..., :2], b_4[..., :2])).clamp(min=0).prod(-1)
    )
    outer = (
        (torch.maximum(a_4[..., 2:], b_4[..., 2:]) - torch.minimum(a_4[..., :2], b_4[..., :2])).clamp(min=0).prod(-1)
    )
    union = area_a + area_b - inner
    eps = 1e-7  # an instance absent from a frame has an empty box
    return inner / union.clamp(min=eps) - (outer - union) / outer.clamp(min=eps)
