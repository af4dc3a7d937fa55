"""Models with random weights and inputs for them."""

from __future__ import annotations

import torch

from mssts.model.config import ModelConfig
from mssts.model.geometry import build_geometry
from mssts.model.mssts_vis import MSSTSVIS


def build(config: ModelConfig, seed: int = 0, awake: bool = True) -> MSSTSVIS:
    """A model in evaluation mode.

    `awake` gives random weights to the switches' zero-initialised projections.
    """
    torch.manual_seed(seed)
    model = MSSTSVIS(config).eval()
    if awake:
        for parameter in model.parameters():
            if parameter.dim() > 1 and not parameter.any():
                torch.nn.init.normal_(parameter, std=0.05)
    return model


def images(B: int, T: int, H: int, W: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(B, T, 3, H, W, generator=torch.Generator().manual_seed(seed))


def sizes(*pairs: tuple[int, int]) -> torch.Tensor:
    return torch.tensor(pairs, dtype=torch.int32)


def geometry(shapes: list[tuple[int, int]], size: tuple[int, int]):
    return build_geometry(shapes, sizes(size), *size, torch.ones(4), torch.float32)
