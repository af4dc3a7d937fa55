"""Model configuration and the named presets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from mssts.errors import MsstsError
from mssts.manifest import InputRule


@dataclass(frozen=True)
class Switches:
    """The four parts that the released code lacks, reconstructed from Figure 2.

    With all off, the model *is* the released baseline.
    """

    intra_scale: bool = True  # Figure 2c
    inter_scale: bool = True  # Figure 2d
    temporal_decoder: bool = True  # "Temporal-Attention" in the decoder of Figure 2a
    discriminator: bool = True  # Figure 2e; used in training alone


BASELINE = Switches(intra_scale=False, inter_scale=False, temporal_decoder=False, discriminator=False)


@dataclass(frozen=True)
class ModelConfig:
    """The architecture. `width` is C, and a mask feature has C/32 channels at least 8."""

    classes: int
    backbone: str = "resnet50"
    # "frozen" is what ImageNet weights want; "batch" is for training from scratch.
    backbone_norm: str = "frozen"
    width: int = 256
    heads: int = 8
    levels: int = 4
    points: int = 4
    encoder_layers: int = 6
    decoder_layers: int = 6
    ffn_width: int = 1024
    queries: int = 300
    dropout: float = 0.1
    split_width: int = 64
    split_heads: int = 4
    # Readings of Figure 2 that can be asked about; see `mssts.model.split_attention`.
    split_position: bool = True
    split_own_linear: bool = False
    split_shared: bool = True
    temporal_width: int = 256
    switches: Switches = field(default_factory=Switches)


@dataclass(frozen=True)
class Preset:
    """A named model with the input it was designed for."""

    name: str
    model: ModelConfig
    input: InputRule
    clip_frames: int
    clip_overlap: int
    top_k: int

    def with_classes(self, classes: int) -> Preset:
        """A copy of the preset for a dataset of that many classes."""
        return replace(self, model=replace(self.model, classes=classes))


def mssts_r50() -> Preset:
    """ResNet-50 in the released configuration, with the four switches on.

    256 channels, 6+6 layers, 300 queries, clips of 5 frames, and 42 classes: labels are YouTube-VIS' category ids 1 to
    40, and 0 and 41 are not used.
    """
    model = ModelConfig(classes=42)
    return Preset("mssts_r50", model, InputRule(360, 640), clip_frames=5, clip_overlap=2, top_k=10)


def mssts_r50_ablation() -> Preset:
    """The ResNet-50 model for the released ablation's recipe (YouTube-VIS alone)."""
    return replace(mssts_r50(), name="mssts_r50_ablation")


def mssts_r101() -> Preset:
    """The released configuration with ResNet-101."""
    return _with_backbone("mssts_r101", "resnet101")


def mssts_x101() -> Preset:
    """The released configuration with ResNeXt-101 32×8d."""
    return _with_backbone("mssts_x101", "resnext101_32x8d")


def mssts_swin_l() -> Preset:
    """The released configuration with Swin-L (ImageNet-22k, windows of 12×12 tokens)."""
    return _with_backbone("mssts_swin_l", "swin_l_p4w12")


def _with_backbone(name: str, backbone: str) -> Preset:
    """A released configuration, which differs from R50 only in the backbone."""
    base = mssts_r50()
    return replace(base, name=name, model=replace(base.model, backbone=backbone))


def tiny() -> Preset:
    """A model small enough to train and run on a laptop's processor.

    ResNet-18, 128 channels, 2+3 layers, 20 queries.
    """
    model = ModelConfig(
        backbone="resnet18",
        backbone_norm="batch",
        width=128,
        heads=4,
        encoder_layers=2,
        decoder_layers=3,
        ffn_width=256,
        queries=20,
        classes=5,
        dropout=0.0,
        split_width=32,
        split_heads=2,
        temporal_width=128,
        switches=Switches(discriminator=False),  # which costs a third of a training's time and is not seen to help
    )
    return Preset("tiny", model, InputRule(144, 256), clip_frames=6, clip_overlap=3, top_k=10)


def mini() -> Preset:
    """A model for ablations, which trains in minutes on one core.

    Half of ResNet-18's channels, 64 channels, 2+2 layers, 10 queries, and frames of 72×128.
    """
    base = tiny()
    model = replace(
        base.model, backbone="resnet18_w32", width=64, decoder_layers=2, ffn_width=128, queries=10, temporal_width=64
    )
    return Preset("mini", model, InputRule(72, 128), clip_frames=8, clip_overlap=4, top_k=10)


PRESETS: dict[str, Callable[[], Preset]] = {
    make.__name__: make for make in (mssts_r50, mssts_r50_ablation, mssts_r101, mssts_x101, mssts_swin_l, tiny, mini)
}


def preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        MsstsError: there is none; the message lists those there are.
    """
    if name not in PRESETS:
        raise MsstsError(f"unknown preset {name!r}; expected one of: {', '.join(sorted(PRESETS))}")
    return PRESETS[name]()
