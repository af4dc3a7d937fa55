"""The interface of every engine, whatever runs it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np


@dataclass(frozen=True)
class EngineOutput:
    """The engine's outputs, as `mssts.contract` defines them (B clips, K instances, T frames)."""

    scores: np.ndarray  # float32 [B, K]
    labels: np.ndarray  # int32 [B, K]
    boxes: np.ndarray  # float32 [B, K, T, 4], cx cy w h as fractions of the valid size
    mask_logits: np.ndarray  # float32 [B, K, T, h, w]


class Runner(Protocol):
    """A loaded engine."""

    def infer(self, frames_BTHWC: np.ndarray, sizes_B2: np.ndarray) -> EngineOutput:
        """Runs uint8 RGB frames [B, T, H, W, 3] with the valid sizes int32 [B, 2] (height, width) of the clips."""

    def describe(self) -> dict[str, Any]:
        """What runs: name, version, device, precision, threads, which kernels of ours are active."""

    def close(self) -> None:
        """Frees it."""
