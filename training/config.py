"""How a preset is trained."""

from __future__ import annotations

from dataclasses import dataclass, field

from mssts.data.clips import ClipTransform, RelativeCrop
from mssts.training.criterion import LossWeights


@dataclass(frozen=True)
class TrainConfig:
    """The defaults are the published recipe (SeqFormer, MS-STS VIS): 12 epochs, drops after 4 and 10.

    The released configs/*.sh set clips a GPU: 1 for R50, X101 and Swin-L, 2 for R101 and the ablation. On the 8 GPUs
    (16 for Swin-L) of the released README, that makes 8 or 16 a step; the README says that all used 10. So 16 where the
    scripts come to that, else 10. The learning rate is the same everywhere.
    """

    epochs: int = 12
    batch: int = 10  # clips a step
    # Parts of a batch that go through the model one after another. The step is that of the whole batch, but for batch
    # norms, which see each part alone.
    accumulate: int = 1
    checkpoint_activations: bool = False  # compute activations again during backward instead of keeping them
    clip_frames: int = 5
    every_frame: bool = True  # an epoch has a clip about each frame of a video, rather than one of each video
    transform: ClipTransform = field(default_factory=ClipTransform)
    learning_rate: float = 2e-4
    backbone_factor: float = 0.1
    # Parameters that stay as they were loaded, by the start of their names: a ResNet's first stages, as released.
    frozen: tuple[str, ...] = ("backbone.conv1.", "backbone.layer1.")
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
    "mssts_r50_ablation": TrainConfig(batch=16, lr_drops=(2, 10)),
    "mssts_r101": TrainConfig(batch=16),
    "mssts_x101": TrainConfig(),
    "mssts_swin_l": TrainConfig(batch=16),
    # From scratch on MovingShapes, on two cores: small frames, and little jitter, as the data has all colours already.
    "tiny": TrainConfig(
        epochs=7,
        batch=6,
        clip_frames=3,
        every_frame=False,
        transform=ClipTransform((80, 96, 112), 256, crop=0.3, crop_size=RelativeCrop(0.6), jitter=0.2),
        learning_rate=5e-4,
        backbone_factor=1.0,
        frozen=(),
        lr_drops=(5, 6),
        warmup_steps=200,
        ema_decay=0.998,
        half_storage=True,
        save_every=250,
    ),
}
