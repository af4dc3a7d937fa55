"""Instances of one clip, and the interface of everything that finds them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from mssts.manifest import Manifest


@dataclass(frozen=True)
class Instances:
    """N instances found in a clip of T frames of `size` (height, width), best first.

    `rles[n][t]` is the COCO compressed run-length string of instance n's mask in frame t, or None where it has none.
    """

    scores: np.ndarray  # float32 [N], probability
    labels: np.ndarray  # int32 [N], index into the manifest's categories
    boxes: np.ndarray  # float32 [N, T, 4], x1 y1 x2 y2 in pixels of the sent frames
    rles: tuple[tuple[bytes | None, ...], ...]
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.scores)


class Segmenter(Protocol):
    """Finds the instances of one clip: a local engine or a server, alike to `mssts predict`."""

    @property
    def manifest(self) -> Manifest:
        """The manifest of the engine behind it."""

    def segment(self, frames_THWC: np.ndarray | Sequence[bytes], score_threshold: float = 0.0) -> Instances:
        """The instances of a clip of RGB uint8 frames, or of T encoded JPEGs.

        Raises:
            MsstsError: the clip was refused (too large, corrupt) or the engine failed.
        """

    def close(self) -> None:
        """Frees the engine or the connection."""
