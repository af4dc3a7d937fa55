"""The model of the tests that export one: smaller than `tiny`, no layer zero."""

from __future__ import annotations

from dataclasses import replace

import torch

from mssts.model.config import Preset, tiny
from mssts.model.mssts_vis import MSSTSVIS


def small() -> Preset:
    """The tiny preset made tinier, so that exporting takes seconds."""
    model = replace(
        tiny().model, width=64, heads=2, ffn_width=32, queries=12, encoder_layers=1, decoder_layers=2,
        split_width=16, temporal_width=16,
    )  # fmt: skip
    return replace(tiny(), model=model)


def awake_model() -> MSSTSVIS:
    """Random weights, no layer zero, and scores far enough apart not to tie."""
    torch.manual_seed(0)
    model = MSSTSVIS(small().model).eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
        if name.startswith("class_embed") and parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.5)
    return model
