"""Losses of a clip at every decoder layer: focal, L1, GIoU, mask focal, dice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from mssts.model.mssts_vis import MSSTSVIS, Prediction
from mssts.training.boxes import generalised_iou, to_corners
from mssts.training.matcher import MatchCosts, Matches, Target, match


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms, as published for SeqFormer."""

    ce: float = 2.0
    bbox: float = 5.0
    giou: float = 2.0
    mask: float = 2.0
    dice: float = 5.0


@dataclass(frozen=True)
class Losses:
    """Unweighted terms by name: `loss_ce` … of the last layer, `loss_ce_0` … before."""

    terms: dict[str, Tensor]
    # Predicted and true masks [n, T, h, w] of the last layer, and the clip each belongs to, for the discriminator.
    mask_logits: Tensor
    mask_targets: Tensor
    clip_of_mask: Tensor

    def total(self, weights: LossWeights) -> Tensor:
        """The weighted sum over terms and layers."""
        return torch.stack([getattr(weights, name.split("_")[1]) * term for name, term in self.terms.items()]).sum()


def focal_loss(logits: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Element-wise sigmoid focal loss (arXiv 1708.02002)."""
    prob = logits.sigmoid()
    ce = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    missed = prob * (1 - targets) + (1 - prob) * targets
    return (alpha * targets + (1 - alpha) * (1 - targets)) * ce * missed**gamma


def dice_loss(logits_nX: Tensor, targets_nX: Tensor, valid_nX: Tensor) -> Tensor:
    """1 − dice of each row over its valid elements, smoothed by 1 (arXiv 1606.04797)."""
    prob = logits_nX.sigmoid() * valid_nX
    return 1 - (2 * (prob * targets_nX).sum(1) + 1) / (prob.sum(1) + targets_nX.sum(1) + 1)


def valid_area(sizes_B2: Tensor, height: int, width: int) -> Tensor:
    """Whether mask pixels (stride 4) lie in a clip's valid part, bool [B, h, w]."""
    # Mask pixel i stands at 4i+2.
    y, x = (4 * torch.arange(side, device=sizes_B2.device) + 2 for side in (height, width))
    return (y[:, None] < sizes_B2[:, :1, None]) & (x < sizes_B2[:, 1:, None])


@dataclass(frozen=True)
class Criterion:
    """Matches each layer's queries to instances and computes the losses.

    Terms are sums over instances divided by their number in the batch; `normaliser` overrides it, so that
    several processes can share one. Mask terms are over the valid area of a clip. (In the released code they take in
    the padding, whose size depends on the other clips of the batch; where nothing is padded, they agree.)

    A frame that an instance is absent from says nothing of its box: matching and box losses leave it out, and the mask
    terms want an empty mask there. The released code trains and matches an empty box in the corner instead, although
    nothing of the result uses it: a box says where the mask head looks, which is of no account for an empty mask, and
    pulling it into the corner and back disturbs the track and the matching. `absent_boxes` does as released.
    """

    costs: MatchCosts = field(default_factory=MatchCosts)
    absent_boxes: bool = False

    def __call__(
        self, model: MSSTSVIS, prediction: Prediction, targets: Sequence[Target], normaliser: float | None = None
    ) -> Losses:
        """The losses of a batch.

        `model` draws the masks of the matched queries.
        """
        number = normaliser or max(sum(len(target.labels_n) for target in targets), 1)
        if self.absent_boxes:
            targets = [target.with_absent_boxes() for target in targets]
        boxes = [layer.boxes_BTQ4 for layer in prediction.layers]
        matches = match(prediction.logits, boxes, targets, self.costs)
        terms: dict[str, Tensor] = {}
        last = len(prediction.layers) - 1
        for i, pairs in enumerate(matches):
            suffix = "" if i == last else f"_{i}"
            layer_terms, masks = self._layer(model, prediction, i, targets, pairs)
            terms |= {f"loss_{name}{suffix}": term / number for name, term in layer_terms.items()}
        return Losses(terms, *masks)

    def _layer(
        self, model: MSSTSVIS, prediction: Prediction, i: int, targets: Sequence[Target], pairs: Matches
    ) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor, Tensor]]:
        logits_BQK, boxes_BTQ4 = prediction.logits[i].float(), prediction.layers[i].boxes_BTQ4.float()
        clip, query, slot = pairs.clip_n, pairs.query_n, pairs.slot_n
        counts = [min(len(target.labels_n), logits_BQK.shape[1]) for target in targets]
        instances = pairs.instance_n.split(counts)

        def wanted(name: str) -> Tensor:
            return torch.cat([getattr(t, name)[n] for t, n in zip(targets, instances, strict=True)])

        classes = torch.zeros_like(logits_BQK)
        classes[clip, query, wanted("labels_n")] = 1.0
        terms = {"ce": focal_loss(logits_BQK, classes).sum()}

        boxes_nT4, true_nT4 = boxes_BTQ4[clip, :, query], wanted("boxes_nT4")
        share_nT = wanted("present_nT").float()
        share_nT = share_nT / share_nT.sum(1, keepdim=True).clamp(min=1)
        terms["bbox"] = ((boxes_nT4 - true_nT4).abs().sum(-1) * share_nT).sum()
        terms["giou"] = ((1 - generalised_iou(to_corners(boxes_nT4), to_corners(true_nT4))) * share_nT).sum()

        # Draw the matched queries; clips with fewer are filled up with query 0, whose masks are dropped.
        queries_BK = torch.zeros(len(targets), max(counts, default=0), dtype=torch.int64, device=clip.device)
        queries_BK[clip, slot] = query
        masks_nThw = model.masks(prediction, i, queries_BK)[clip, slot].float()
        true_nThw = wanted("masks_nTHW")[:, :, 2::4, 2::4].float()  # mask pixel i stands at 4i+2
        height, width = true_nThw.shape[2:]  # masks cover ⌈H/8⌉·8 pixels, which may exceed the frame
        masks_nThw = masks_nThw[:, :, :height, :width]
        valid_nThw = valid_area(prediction.sizes_B2, height, width)[clip, None].expand_as(masks_nThw).float()
        flat, true, valid = masks_nThw.flatten(1), true_nThw.flatten(1), valid_nThw.flatten(1)
        terms["mask"] = ((focal_loss(flat, true) * valid).sum(1) / valid.sum(1).clamp(min=1)).sum()
        terms["dice"] = dice_loss(flat, true, valid).sum()
        return terms, (masks_nThw, true_nThw, clip)
