"""The one module that DistributedDataParallel wraps: a step on a process' clips."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mssts.model.engine import normalise
from mssts.model.mssts_vis import MSSTSVIS, Prediction
from mssts.training.batches import Batch
from mssts.training.criterion import Criterion, LossWeights
from mssts.training.discriminator import SCALES, as_drawn, foreground


@dataclass(frozen=True)
class StepOutput:
    """The losses of B clips, and what the discriminator sees of their N = B·T frames."""

    terms: dict[str, Tensor]
    total: Tensor
    images_N3HW: Tensor
    features: list[Tensor]  # [N, C, h, w] of the encoder's finest scales
    mask_logits_nThw: Tensor  # of the matched instances of all clips, by the last decoder layer
    drawn_N1hw: Tensor  # the foreground
    true_N1hw: Tensor
    sizes_N2: Tensor  # valid height and width


class TrainingStep(nn.Module):
    """Model, losses and drawn foreground: all between a batch and its losses."""

    def __init__(self, model: MSSTSVIS, criterion: Criterion, losses: LossWeights, amp: bool) -> None:
        super().__init__()
        self.model = model
        self.criterion, self.losses, self.amp = criterion, losses, amp

    def forward(self, batch: Batch, normaliser: float) -> StepOutput:
        """Losses of `batch`, sums over instances divided by `normaliser`."""
        images = normalise(batch.frames_BTHWC, batch.sizes_B2)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.amp):
            prediction = self.model(images, batch.sizes_B2)
        losses = self.criterion(self.model, prediction, batch.targets, normaliser)
        B, T = images.shape[:2]
        return StepOutput(
            losses.terms,
            losses.total(self.losses),
            images.flatten(0, 1),
            _maps(prediction),
            losses.mask_logits,
            as_drawn(foreground(losses.mask_logits.sigmoid(), losses.clip_of_mask, B)),
            foreground(losses.mask_targets, losses.clip_of_mask, B),
            batch.sizes_B2.repeat_interleave(T, 0),
        )


def _maps(prediction: Prediction) -> list[Tensor]:
    """The encoder's finest scales for the discriminator, fp32 and without gradient."""
    encoded_BTSC = prediction.encoded_BTSC.detach().float()
    parts = encoded_BTSC.split([h * w for h, w in prediction.shapes], 2)
    return [
        part.flatten(0, 1).transpose(1, 2).unflatten(2, shape)
        for part, shape in zip(parts[:SCALES], prediction.shapes, strict=False)
    ]
