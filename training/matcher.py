"""Hungarian matching of queries to instances over a whole clip (SeqFormer)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from mssts.training.boxes import generalised_iou, to_corners


@dataclass(frozen=True)
class Target:
    """The n instances of one clip of T frames."""

    labels_n: Tensor  # int64
    boxes_nT4: Tensor  # cx cy w h as fractions of the clip's valid size; zeros where absent
    present_nT: Tensor  # bool
    masks_nTHW: Tensor  # bool, of the padded size of the batch

    def to(self, device: torch.device) -> Target:
        """The same on another device."""
        return Target(
            self.labels_n.to(device), self.boxes_nT4.to(device), self.present_nT.to(device), self.masks_nTHW.to(device)
        )


@dataclass(frozen=True)
class MatchCosts:
    """Relative weights of the terms of the matching cost."""

    label: float = 2.0
    box: float = 5.0
    giou: float = 2.0


@torch.no_grad()
def match(logits_QK: Tensor, boxes_TQ4: Tensor, target: Target, costs: MatchCosts) -> tuple[Tensor, Tensor]:
    """The assignment of least cost: indices of queries, indices of instances.

    Boxes count only in frames where the instance is present. As in the released code the box cost is the Euclidean
    distance over all frames, not the L1 of the loss.
    """
    n = len(target.labels_n)
    if n == 0:
        empty = torch.empty(0, dtype=torch.int64, device=logits_QK.device)
        return empty, empty
    prob = logits_QK.float().sigmoid()
    alpha, gamma = 0.25, 2.0
    negative = (1 - alpha) * prob**gamma * -(1 - prob + 1e-8).log()
    positive = alpha * (1 - prob) ** gamma * -(prob + 1e-8).log()
    cost_label_Qn = (positive - negative)[:, target.labels_n]
    boxes_Q1T4 = boxes_TQ4.float().transpose(0, 1)[:, None]
    present_nT = target.present_nT.float()
    distance_QnT4 = (boxes_Q1T4 - target.boxes_nT4) * present_nT[..., None]
    cost_box_Qn = distance_QnT4.flatten(2).norm(dim=-1)
    giou_QnT = generalised_iou(to_corners(boxes_Q1T4), to_corners(target.boxes_nT4))
    cost_giou_Qn = -(giou_QnT * present_nT).sum(-1) / present_nT.sum(-1).clamp(min=1)
    cost = costs.label * cost_label_Qn + costs.box * cost_box_Qn + costs.giou * cost_giou_Qn
    queries, instances = linear_sum_assignment(cost.cpu().numpy())
    return torch.as_tensor(queries, device=cost.device), torch.as_tensor(instances, device=cost.device)
