"""The losses of a clip, at every decoder layer: focal, L1, GIoU, mask focal and dice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from mssts.model.mssts_vis import MSSTSVIS, Prediction
from mssts.training.boxes import generalised_iou, to_corners
from mssts.training.matcher import MatchCosts, Target, match


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
    """Unweighted terms by name: `loss_ce` … of the last layer, `loss_ce_0` … of the earlier ones."""

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


def dice_loss(logits_nX: Tensor, targets_nX: Tensor) -> Tensor:
    """1 − dice of each row, smoothed by 1 (arXiv 1606.04797)."""
    prob = logits_nX.sigmoid()
    return 1 - (2 * (prob * targets_nX).sum(1) + 1) / (prob.sum(1) + targets_nX.sum(1) + 1)


@dataclass(frozen=True)
class Criterion:
    """Matches each layer's queries to the instances of each clip and computes the losses.

    Terms are sums over instances divided by their number in the batch; `normaliser` overrides it, so that
    several processes can share one.
    """

    costs: MatchCosts = field(default_factory=MatchCosts)

    def __call__(
        self, model: MSSTSVIS, prediction: Prediction, targets: Sequence[Target], normaliser: float | None = None
    ) -> Losses:
        """The losses of a batch; `model` draws the masks of the matched queries."""
        number = normaliser or max(sum(len(target.labels_n) for target in targets), 1)
        terms: dict[str, Tensor] = {}
        last = len(prediction.layers) - 1
        for i in range(last + 1):
            suffix = "" if i == last else f"_{i}"
            layer_terms, masks = self._layer(model, prediction, i, targets)
            terms |= {f"loss_{name}{suffix}": term / number for name, term in layer_terms.items()}
        return Losses(terms, *masks)

    def _layer(
        self, model: MSSTSVIS, prediction: Prediction, i: int, targets: Sequence[Target]
    ) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor, Tensor]]:
        logits_BQK, boxes_BTQ4 = prediction.logits[i].float(), prediction.layers[i].boxes_BTQ4.float()
        device = logits_BQK.device
        pairs = [match(logits_BQK[b], boxes_BTQ4[b], t, self.costs) for b, t in enumerate(targets)]
        clip = torch.cat([torch.full_like(q, b) for b, (q, _) in enumerate(pairs)])
        query = torch.cat([q for q, _ in pairs])
        slot = torch.cat([torch.arange(len(q), device=device) for q, _ in pairs])

        def wanted(name: str) -> Tensor:
            return torch.cat([getattr(t, name)[n] for t, (_, n) in zip(targets, pairs, strict=True)])

        classes = torch.zeros_like(logits_BQK)
        classes[clip, query, wanted("labels_n")] = 1.0
        terms = {"ce": focal_loss(logits_BQK, classes).sum()}

        boxes_nT4, true_nT4 = boxes_BTQ4[clip, :, query], wanted("boxes_nT4")
        # A frame that an instance is absent from says nothing of its box there.
        share_nT = wanted("present_nT").float()
        share_nT = share_nT / share_nT.sum(1, keepdim=True).clamp(min=1)
        terms["bbox"] = ((boxes_nT4 - true_nT4).abs().sum(-1) * share_nT).sum()
        terms["giou"] = ((1 - generalised_iou(to_corners(boxes_nT4), to_corners(true_nT4))) * share_nT).sum()

        # Draw the matched queries; clips with fewer are filled up with query 0, whose masks are dropped.
        most = max((len(q) for q, _ in pairs), default=0)
        queries_BK = torch.zeros(len(targets), most, dtype=torch.int64, device=device)
        queries_BK[clip, slot] = query
        masks_nThw = model.masks(prediction, i, queries_BK)[clip, slot].float()
        # Mask pixel i stands at 4i+2.
        true_nThw = wanted("masks_nTHW")[:, :, 2::4, 2::4].float()
        height, width = true_nThw.shape[2:]  # masks cover ⌈H/8⌉·8 pixels, which may exceed the frame
        masks_nThw = masks_nThw[:, :, :height, :width]
        flat, true = masks_nThw.flatten(1), true_nThw.flatten(1)
        terms["mask"] = focal_loss(flat, true).mean(1).sum() if len(flat) else flat.sum()
        terms["dice"] = dice_loss(flat, true).sum()
        return terms, (masks_nThw, true_nThw, clip)
