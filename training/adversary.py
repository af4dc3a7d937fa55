"""The discriminator's part of a training step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mssts.training.config import TrainConfig
from mssts.training.discriminator import Discriminator, accuracy, duel_loss, verdict
from mssts.training.distributed import parallel, synchronised
from mssts.training.step import StepOutput


@dataclass(frozen=True)
class Judgement:
    """How the model should change the masks that it drew of some clips, and metrics."""

    mask_logits: Tensor
    gradient: Tensor  # of these logits, weighted
    metrics: dict[str, Tensor]
    # Filled by the backward pass through the logits: the gradient of all losses together, this one included.
    received: list[Tensor]

    def squares(self) -> dict[str, Tensor]:
        """Squared norms of the logits' gradients, of this loss and of the others."""
        others = [received - self.gradient for received in self.received]
        return {
            "adversarial_square": self.gradient.square().sum(),
            "other_square": sum((other.square().sum() for other in others), torch.zeros_like(self.gradient.sum())),
        }


class Adversary:
    """The discriminator and its optimiser.

    It judges true and drawn masks in one pass. Both gradients are taken from that: its own, and that of the model, so
    that neither waits for the other and an accumulated batch is computed once.

    The model's gradient enters through the masks alone. Through the encoder features, the discriminator's other input,
    it was 2 to 120 times as large, of no use to the main losses (a cosine of about 0), and spared the masks.
    """

    def __init__(self, width: int, config: TrainConfig, device: torch.device) -> None:
        self.config = config
        self.discriminator = Discriminator(width).to(device)
        self._parallel = parallel(self.discriminator, device)
        self.optimiser = torch.optim.AdamW(self.discriminator.parameters(), lr=0.0, betas=(0.5, 0.999))

    def judge(self, output: StepOutput, share: float, last: bool) -> Judgement:
        """Adds to the discriminator's gradients.

        Args:
            output: what the model made of a part of a process' share of the batch.
            share: of that part in the process' share.
            last: whether it is the last part, after which the processes exchange gradients.
        """
        drawn = output.drawn_N1hw.detach().requires_grad_()
        H, W = output.images_N3HW.shape[-2:]
        with synchronised(self._parallel, last):
            maps = self._parallel(
                output.images_N3HW.repeat(2, 1, 1, 1),
                [features.repeat(2, 1, 1, 1) for features in output.features],
                torch.cat((output.true_N1hw, drawn)),
            )
            real, fake = verdict(maps, output.sizes_N2.repeat(2, 1), (H, W)).chunk(2)
            deceived, loss = duel_loss(fake, real), duel_loss(real, fake)
            (gradient,) = torch.autograd.grad(deceived * self.config.adversarial * share, drawn, retain_graph=True)
            (loss * share).backward()
        logits = output.mask_logits_nThw
        (gradient,) = torch.autograd.grad(output.drawn_N1hw, logits, gradient, retain_graph=True)
        received: list[Tensor] = []
        logits.register_hook(received.append)
        metrics = {
            "adversarial": deceived.detach(),
            "discriminator": loss.detach(),
            "discriminator_accuracy": accuracy(real, fake),
        }
        return Judgement(logits, gradient, metrics, received)

    def step(self, rate: float) -> None:
        """Steps the discriminator at the model's learning rate `rate`."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.config.discriminator_factor * rate
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
