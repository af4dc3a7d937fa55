"""Random weights for speed measurements without a checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch

from mssts.manifest import Category
from mssts.model.checkpoint import Checkpoint
from mssts.model.config import Preset
from mssts.model.mssts_vis import MSSTSVIS


def random_checkpoint(preset: Preset, seed: int = 0) -> Checkpoint:
    """The preset with random weights, none of them zero.

    What starts at zero in training is drawn too, and class scores are spread, so that a comparison of two engines of it
    means something.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MSSTSVIS(preset.model).eval()
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and not parameter.any():
                torch.nn.init.normal_(parameter, std=0.02)
            if name.startswith("class_embed") and parameter.dim() > 1:
                # Scores of about 0.01 to 0.99: were they all nearly 1, which instances are kept would be rounding.
                torch.nn.init.normal_(parameter, std=2 / parameter.shape[1] ** 0.5)
    weights = {k: v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    categories = tuple(Category(i + 1, f"class {i + 1}") for i in range(preset.model.classes))
    return Checkpoint(preset, categories, weights, Path(f"random weights of {preset.name}"))
