"""How a preset is trained."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from mssts.data.clips import ClipTransform, RelativeCrop
from mssts.data.frame_sampling import FrameSampling, Neighbours, Window
from mssts.errors import MsstsError
from mssts.training.criterion import LossWeights

# The augmentation of the released code: colours change from frame to frame, and time runs forwards.
_AS_RELEASED = ClipTransform(reverse=0.0, jitter=0.0, distort=True)


@dataclass(frozen=True)
class TrainConfig:
    """A recipe, by default the released code's (SeqFormer): 12 epochs, drops at 4, 10.

    The released configs/*.sh come to 8 or 16 clips a step on 8 GPUs, SeqFormer trained its R50 model with 16, and the
    released README says that all used 10, which 8 processes cannot share. So 16 everywhere. The learning rate is the
    same everywhere, too.
    """

    epochs: int = 12
    batch: int = 16  # clips a step
    # Parts of a batch that go through the model one after another. The step is that of the whole batch, but for batch
    # norms, which see each part alone.
    accumulate: int = 1
    checkpoint_activations: bool = False  # compute activations again during backward instead of keeping them
    clip_frames: int = 5
    sampling: FrameSampling = field(default_factory=Neighbours)
    every_frame: bool = True  # an epoch has a clip about each frame of a video, rather than one of each video
    transform: ClipTransform = _AS_RELEASED
    learning_rate: float = 2e-4
    backbone_factor: float = 0.1
    # Parameters that stay as they were loaded, by the start of their names: a ResNet's first stages, as released.
    frozen: tuple[str, ...] = ("backbone.conv1.", "backbone.layer1.")
    # Sampling offsets and reference points learn slower (Deformable DETR).
    sampling_factor: float = 0.1
    weight_decay: float = 1e-4
    clip_norm: float = 0.1
    lr_drops: tuple[float, ...] = (4, 10)  # epochs after which the rate falls to a tenth; fractions are steps
    warmup_steps: int = 0
    # Weight of the adversarial term, and the discriminator's share of the learning rate, whose warm-up and drops it
    # follows; without effect where its switch is off. A weight of 0.1 gave it 38 to 47 % of the gradient that mask
    # logits received (`adversarial_share` of the log, steps 60 to 240 of `mini` on MovingShapes v1).
    adversarial: float = 0.03
    discriminator_factor: float = 1.0
    losses: LossWeights = field(default_factory=LossWeights)
    absent_boxes: bool = False  # train an empty box where an instance is absent, as released; see `Criterion`
    ema_decay: float = 0.0  # of the averaged weights that are kept; 0 keeps the plain ones
    half_storage: bool = False  # the final checkpoint in fp16
    save_every: int = 1000  # steps

    def with_epochs(self, epochs: int) -> TrainConfig:
        """The same for so many epochs: the rate drops at the same shares of the whole."""
        return replace(self, epochs=epochs, lr_drops=tuple(drop * epochs / self.epochs for drop in self.lr_drops))

    def with_augmentation(self, name: str) -> TrainConfig:
        """The same with the `released` augmentation, or with our `steady` one.

        In ours, all frames of a clip change their colours in the same way, so that appearance stays a cue over time.
        Time runs backwards as often as forwards, and frames are drawn from a wide window without repetition, so that a
        clip shows more motion. Sizes, crops and flips stay.
        """
        if name == "released":
            transform = replace(self.transform, reverse=0.0, jitter=0.0, distort=True)
            return replace(self, sampling=Neighbours(), transform=transform)
        return replace(
            self, sampling=Window(), transform=replace(self.transform, reverse=0.5, jitter=0.4, distort=False)
        )

    def learning_rate_factor(self, step: int, steps_per_epoch: int) -> float:
        """The factor of the learning rate: linear warm-up, then a tenth after each drop."""
        drops = sum(step >= round(epoch * steps_per_epoch) for epoch in self.lr_drops)
        return min(1.0, (step + 1) / max(self.warmup_steps, 1)) * 0.1**drops


def recipe(preset_name: str, stage: str = "main") -> TrainConfig:
    """The recipe of a preset's main training, or of its `pretrain` stage.

    Pre-training is on COCO images alone, as single frames (SeqFormer; issues 9 and 16 of its repository). All
    published figures start from it.

    Raises:
        MsstsError: there is no such stage.
    """
    config = _RECIPES[preset_name]
    if stage == "main":
        return config
    if stage == "pretrain":
        return replace(config, epochs=50, batch=16, clip_frames=1, lr_drops=(40,))
    raise MsstsError(f"unknown stage {stage!r}; expected one of: {', '.join(STAGES)}")


STAGES = ("pretrain", "main")

_RECIPES = {
    "mssts_r50": TrainConfig(),
    "mssts_r50_ablation": TrainConfig(lr_drops=(2, 10)),
    "mssts_r101": TrainConfig(),
    "mssts_x101": TrainConfig(),
    "mssts_swin_l": TrainConfig(),
    # From scratch on MovingShapes, on two cores: small frames, and little jitter, as the data has all colours already.
    "tiny": TrainConfig(
        epochs=7,
        batch=6,
        clip_frames=3,
        sampling=Window(),
        every_frame=False,
        transform=ClipTransform((112, 128, 144), 256, crop=0.3, crop_size=RelativeCrop(0.6), jitter=0.2),
        learning_rate=5e-4,
        backbone_factor=1.0,
        frozen=(),
        lr_drops=(5, 6),
        warmup_steps=200,
        ema_decay=0.998,
        half_storage=True,
        save_every=250,
    ),
    "mini": TrainConfig(
        epochs=6,
        batch=4,
        clip_frames=3,
        sampling=Window(),
        every_frame=False,
        transform=ClipTransform((64, 72, 80), 160, crop=0.3, crop_size=RelativeCrop(0.6), jitter=0.2),
        learning_rate=5e-4,
        backbone_factor=1.0,
        frozen=(),
        lr_drops=(5,),
        warmup_steps=100,
        ema_decay=0.995,
        half_storage=True,
        save_every=250,
    ),
}
