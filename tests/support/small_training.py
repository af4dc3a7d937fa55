"""A training that takes no time: preset, recipe, trainer and inputs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from mssts.data.clips import ClipDataset, ClipTransform
from mssts.data.moving_shapes import CATEGORIES
from mssts.data.youtube_vis import read_youtube_vis
from mssts.model.config import Preset, Switches, tiny
from mssts.model.mssts_vis import MSSTSVIS
from mssts.training.config import TrainConfig
from mssts.training.matcher import Target
from mssts.training.trainer import Trainer

SMALL = replace(
    tiny().model, width=32, heads=2, ffn_width=32, queries=5, encoder_layers=1, decoder_layers=2, split_width=16,
    temporal_width=16, dropout=0.1, switches=Switches(),
)  # fmt: skip
PRESET = Preset("tiny", SMALL, tiny().input, clip_frames=2, clip_overlap=1, top_k=4)
CONFIG = TrainConfig(
    epochs=2,
    batch=2,
    clip_frames=2,
    transform=ClipTransform((48,), 64),
    lr_drops=(1,),
    ema_decay=0.9,
    save_every=1,
)


def trainer(shapes: Path, out: Path, preset: Preset = PRESET, **changes: object) -> Trainer:
    clips = ClipDataset(read_youtube_vis(shapes / "instances.json"), CONFIG.transform, CONFIG.clip_frames, 0)
    return Trainer(preset, replace(CONFIG, **changes), clips, CATEGORIES, out, torch.device("cpu"), 0, amp=False)


def target(n: int, T: int, H: int = 32, W: int = 32, seed: int = 0) -> Target:
    gen = torch.Generator().manual_seed(seed)
    boxes = torch.rand(n, T, 4, generator=gen) * 0.4 + 0.2
    masks = torch.rand(n, T, H, W, generator=gen) > 0.5
    return Target(torch.arange(n), boxes, torch.ones(n, T, dtype=torch.bool), masks)


def predict(model: MSSTSVIS, B: int, T: int):
    frames = torch.randn(B, T, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    return model(frames, torch.tensor([[32, 32]] * B, dtype=torch.int32))
