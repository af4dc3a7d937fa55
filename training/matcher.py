"""Hungarian matching of queries to instances over a whole clip (SeqFormer)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

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
        return Target(*(getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)))

    def with_absent_boxes(self) -> Target:
        """The same target with an empty box in the corner where an instance is absent."""
        # The released data set clamps boxes to 1e-6.
        return replace(self, boxes_nT4=self.boxes_nT4.clamp(min=1e-6), present_nT=torch.ones_like(self.present_nT))


@dataclass(frozen=True)
class MatchCosts:
    """Relative weights of the terms of the matching cost."""

    label: float = 2.0
    box: float = 5.0
    giou: float = 2.0


@dataclass(frozen=True)
class Matches:
    """The matched pairs of all clips of a batch, by one decoder layer. All int64."""

    clip_n: Tensor
    query_n: Tensor
    instance_n: Tensor  # of that clip
    slot_n: Tensor  # counts the pairs of a clip


@torch.no_grad()
def match(
    logits: Sequence[Tensor], boxes: Sequence[Tensor], targets: Sequence[Target], costs: MatchCosts
) -> list[Matches]:
    """The assignments of least cost, of each decoder layer by itself.

    The assignment is computed on the processor: the costs of all layers go there, and the pairs come back, in one
    transfer each, since each of them makes a GPU wait.

    Args:
        logits: [B, Q, classes] of each layer.
        boxes: [B, T, Q, 4] of each layer.
        targets: the instances of each of the B clips.
        costs: weights.
    """
    device = logits[0].device
    matrices = [
        _costs(layer_logits[b], layer_boxes[b], target, costs)
        for layer_logits, layer_boxes in zip(logits, boxes, strict=True)
        for b, target in enumerate(targets)
    ]
    flat = torch.cat([matrix.flatten() for matrix in matrices]).cpu()
    parts = flat.split([matrix.numel() for matrix in matrices])
    assigned = [
        linear_sum_assignment(part.view(matrix.shape).numpy()) for part, matrix in zip(parts, matrices, strict=True)
    ]
    layers = []
    for start in range(0, len(assigned), len(targets)):
        rows = [
            torch.stack((torch.full((len(q),), b), torch.as_tensor(q), torch.as_tensor(n), torch.arange(len(q))))
            for b, (q, n) in enumerate(assigned[start : start + len(targets)])
        ]
        layers.append(torch.cat(rows, 1))
    # A clip has as many pairs in each layer.
    return [Matches(*layer.unbind()) for layer in torch.stack(layers).to(device, non_blocking=True)]


def _costs(logits_QK: Tensor, boxes_TQ4: Tensor, target: Target, costs: MatchCosts) -> Tensor:
    """The cost [Q, n] of giving an instance to a query.

    Boxes count only in frames where the instance is present. As in the released code the box cost is the Euclidean
    distance over all frames, not the L1 of the loss.
    """
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
    return costs.label * cost_label_Qn + costs.box * cost_box_Qn + costs.giou * cost_giou_Qn
