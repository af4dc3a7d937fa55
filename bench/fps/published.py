"""Published frames per second, beside which ours stand.

A ratio to them means nothing, as their hardware is another. Where a paper does not name its hardware, neither do we.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """A figure that others published.

    Attributes:
        model: its name and backbone.
        frames_per_second: as published.
        hardware: as published.
        scope: what was timed, as far as is known.
        source: where.
    """

    model: str
    frames_per_second: float
    hardware: str
    scope: str
    source: str


PUBLISHED = (
    Published("VisTR, R101", 69.9, "not named", "model only", "CVPR 2021, arXiv 2011.14503"),
    Published("IFC, R50", 107.1, "not named", "not stated", "NeurIPS 2021, arXiv 2106.03299"),
    Published("SeqFormer, R50", 72.3, "not named", "not stated", "ECCV 2022, arXiv 2112.08275"),
    Published(
        "VidEoMT, its smallest", 294.0, "NVIDIA H100", "model only, one frame, fp16",
        "Hugging Face transformers, 2026",
    ),
)  # fmt: skip
