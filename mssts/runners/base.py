"""The interface of every engine, whatever runs it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from mssts.manifest import FixedShape


@dataclass(frozen=True)
class EngineOutput:
    """The engine's outputs, as `mssts.contract` defines them (B clips, K instances, T frames)."""

    scores: np.ndarray  # float32 [B, K]
    labels: np.ndarray  # int32 [B, K]
    boxes: np.ndarray  # float32 [B, K, T, 4], cx cy w h as fractions of the valid size
    mask_logits: np.ndarray  # float32 [B, K, T, h, w]


class Runner(Protocol):
    """A loaded engine. The runners of `mssts.runners` inherit it, for `warm`."""

    def infer(self, frames_BTHWC: np.ndarray, sizes_B2: np.ndarray) -> EngineOutput:
        """Runs uint8 RGB frames [B, T, H, W, 3] with the valid sizes int32 [B, 2] (height, width) of the clips."""

    def warm(self, shape: FixedShape) -> float:
        """Runs black frames of a shape once, so that no clip of that shape waits for what is compiled or allocated on
        its first use; returns the seconds it took.

        Raises:
            MsstsError: as `infer`.
        """
        start = time.perf_counter()
        frames_BTHWC = np.zeros((shape.clips, shape.frames, shape.height, shape.width, 3), np.uint8)
        self.infer(frames_BTHWC, np.array([[shape.height, shape.width]] * shape.clips, np.int32))
        return time.perf_counter() - start

    def describe(self) -> dict[str, Any]:
        """What runs: name, version, device, precision, threads, which kernels of ours are active."""

    def close(self) -> None:
        """Frees it."""
