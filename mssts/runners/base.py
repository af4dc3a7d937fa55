"""The interface of every engine, whatever runs it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from mssts.manifest import FixedShape
from mssts.runners.device_logits import DeviceLogits


@dataclass(frozen=True)
class EngineOutput:
    """The engine's outputs (B clips, K instances, T frames), see `mssts.contract`."""

    scores: np.ndarray  # float32 [B, K]
    labels: np.ndarray  # int32 [B, K]
    boxes: np.ndarray  # float32 [B, K, T, 4], cx cy w h as fractions of the valid size
    mask_logits: np.ndarray  # float32 [B, K, T, h, w]


@dataclass(frozen=True)
class DeviceOutput:
    """The engine's outputs, of which the mask logits are still on the GPU."""

    scores: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray
    mask_logits: DeviceLogits


@dataclass(frozen=True)
class NodeTime:
    """The time of one node of a graph in one inference.

    Attributes:
        name: as in the file, with what the runtime put beside it.
        kind: the runtime's name of what it computes, such as `Convolution`.
        ms: milliseconds.
    """

    name: str
    kind: str
    ms: float


class Runner(Protocol):
    """A loaded engine. The runners of `mssts.runners` inherit it, for `warm`."""

    def infer(self, frames_BTHWC: np.ndarray, sizes_B2: np.ndarray) -> EngineOutput:
        """Runs the engine.

        Args:
            frames_BTHWC: uint8 RGB.
            sizes_B2: int32, the valid height and width of each clip.
        """

    @contextmanager
    def inference(self, frames_BTHWC: np.ndarray, sizes_B2: np.ndarray) -> Iterator[EngineOutput | DeviceOutput]:
        """Runs the engine, and keeps the mask logits where they are encoded fastest.

        What is on a GPU lasts as long as the `with`.

        Args:
            frames_BTHWC: uint8 RGB.
            sizes_B2: int32, the valid height and width of each clip.

        Raises:
            MsstsError: as `infer`.
        """
        yield self.infer(frames_BTHWC, sizes_B2)

    @property
    def in_flight(self) -> int:
        """Clips that it works on at once if several threads call it. Others wait."""
        return 1

    def warm(self, shape: FixedShape) -> float:
        """Runs black frames of a shape once, and returns the seconds that it took.

        After it, no clip of that shape waits for what is compiled or allocated on first use.

        Raises:
            MsstsError: as `infer`.
        """
        start = time.perf_counter()
        frames_BTHWC = np.zeros((shape.clips, shape.frames, shape.height, shape.width, 3), np.uint8)
        self.infer(frames_BTHWC, np.array([[shape.height, shape.width]] * shape.clips, np.int32))
        return time.perf_counter() - start

    def describe(self) -> dict[str, Any]:
        """Name, version, device, precision, threads and active kernels."""

    def close(self) -> None:
        """Frees it."""
