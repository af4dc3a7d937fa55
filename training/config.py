"""How a preset is trained."""

from __future__ import annotations

from dataclasses import dataclass, field

from mssts.data.clips import ClipTransform
from training.criterion import LossWeights


@dataclass(frozen=True)
class TrainConfig:
    """The defaults are the published recipe (SeqFormer, MS-STS VIS): 12 epochs, drops after 4 and 10."""

    epochs: int = 12
    batch: int = 10  # clips a step
    clip_frames: int = 5
    transform: ClipTransform = field(default_factory=ClipTransform)
    learning_rate: float = 2e-4
    backbone_factor: float = 0.1
    # Sampling offsets and reference points learn slower (Deformable DETR).
    sampling_factor: float = 0.1
    weight_decay: float = 1e-4
    clip_norm: float = 0.1
    lr_drops: tuple[int, ...] = (4, 10)  # epochs after which the rate falls to a tenth
    warmup_steps: int = 0
    # Weight of the adversarial term, and the discriminator's own rate; without effect where its switch is off.
    adversarial: float = 0.1
    discriminator_rate: float = 1e-4
    losses: LossWeights = field(default_factory=LossWeights)
    ema_decay: float = 0.0  # of the averaged weights that are kept; 0 keeps the plain ones
    half_storage: bool = False  # the final checkpoint in fp16
    save_every: int = 1000  # steps


def recipe(preset_name: str) -> TrainConfig:
    """The recipe of a preset."""
    return _RECIPES[preset_name]


_RECIPES = {
    "mssts_r50": TrainConfig(),
    "mssts_r101": TrainConfig(),
    "mssts_x101": TrainConfig(),
    "mssts_swin_l": TrainConfig(),
    # From scratch on MovingShapes, on two cores: one size, no jitter of a data set that has all colours already.
    "tiny": TrainConfig(
        epochs=7,
        batch=6,
        clip_frames=3,
        transform=ClipTransform((80, 96, 112), 256, crop=0.3, jitter=0.2),
        learning_rate=5e-4,
        backbone_factor=1.0,
        lr_drops=(5, 6),
        warmup_steps=200,
        ema_decay=0.998,
        half_storage=True,
        save_every=250,
    ),
}
