"""The discriminator's part of a training step: it learns, and says how the model's masks should change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mssts.training.config import TrainConfig
from mssts.training.discriminator import Discriminator, verdict_loss
from mssts.training.distributed import parallel, synchronised
from mssts.training.step import StepOutput


@dataclass(frozen=True)
class Judgement:
    """How the model should change what it made of some clips, and metrics."""

    tensors: list[Tensor]
    gradients: list[Tensor]  # weighted; one for each of the tensors
    metrics: dict[str, Tensor]


class Adversary:
    """The discriminator and its optimiser.

    It judges true and drawn masks in one pass. Both gradients are taken from that: its own, and that of the model, so
    that neither waits for the other and an accumulated batch is computed once.
    """

    def __init__(self, width: int, config: TrainConfig, device: torch.device) -> None:
        self.config = config
        self.discriminator = Discriminator(width).to(device)
        self._parallel = parallel(self.discriminator, device)
        self.optimiser = torch.optim.AdamW(
            self.discriminator.parameters(), lr=config.discriminator_rate, betas=(0.5, 0.999)
        )

    def judge(self, output: StepOutput, share: float, last: bool) -> Judgement:
        """Adds to the discriminator's gradients.

        Args:
            output: what the model made of a part of a process' share of the batch.
            share: of that part in the process' share.
            last: whether it is the last part, after which the processes exchange gradients.
        """
        inputs = [output.features_NChw, output.drawn_N1hw]
        features, drawn = (x.detach().requires_grad_() for x in inputs)
        with synchronised(self._parallel, last):
            verdicts = self._parallel(
                output.images_N3HW.repeat(2, 1, 1, 1), features.repeat(2, 1, 1, 1), torch.cat((output.true_N1hw, drawn))
            )
            real, fake = verdicts.chunk(2)
            H, W = output.images_N3HW.shape[-2:]
            sizes = output.sizes_N2, (H, W)
            deceived = verdict_loss(fake, True, *sizes)
            weight = self.config.adversarial * share
            gradients = torch.autograd.grad(deceived * weight, (features, drawn), retain_graph=True)
            loss = (verdict_loss(real, True, *sizes) + verdict_loss(fake, False, *sizes)) / 2
            (loss * share).backward()
        metrics = {"adversarial": deceived.detach(), "discriminator": loss.detach()}
        return Judgement(inputs, list(gradients), metrics)

    def step(self) -> None:
        """Moves the discriminator along its gradients."""
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training needs."""
        return {
            "discriminator": self.discriminator.state_dict(),
            "discriminator_optimiser": self.optimiser.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes what `state_dict` gave.

        Other keys are left alone.
        """
        self.discriminator.load_state_dict(state["discriminator"])
        self.optimiser.load_state_dict(state["discriminator_optimiser"])
