"""Choice of the frames of a clip."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np


class FrameSampling(Protocol):
    """A way to draw the frames of a clip."""

    def draw(self, rng: np.random.Generator, length: int, clip_frames: int, centre: int | None = None) -> np.ndarray:
        """Ascending indices of the frames of a clip about `centre` (random if None)."""
        ...


@dataclass(frozen=True)
class Window:
    """`centre` and others within `reach` of it, or beyond if those are too few.

    IFC (arXiv 2106.03299) uses 20. A video shorter than the clip gives all its frames, some of them repeatedly.
    """

    reach: int = 20

    def draw(self, rng: np.random.Generator, length: int, clip_frames: int, centre: int | None = None) -> np.ndarray:
        """As `FrameSampling.draw`."""
        if length < clip_frames:
            return np.sort(np.concatenate([np.arange(length), rng.integers(length, size=clip_frames - length)]))
        if centre is None:
            centre = int(rng.integers(length))
        low, high = max(0, centre - self.reach), min(length, centre + self.reach + 1)
        if high - low < clip_frames:
            low = max(0, min(low, length - clip_frames))
            high = max(high, low + clip_frames)
        others = np.setdiff1d(np.arange(low, high), [centre])
        return np.sort(np.append(rng.choice(others, clip_frames - 1, replace=False), centre))


@dataclass(frozen=True)
class Neighbours:
    """`centre`, a neighbour on each side within `reach`, and others from outside.

    So the released code draws (SeqFormer's datasets/ytvos.py). At the ends of a video, `centre` is its own neighbour.
    """

    reach: int = 3

    def draw(self, rng: np.random.Generator, length: int, clip_frames: int, centre: int | None = None) -> np.ndarray:
        """As `FrameSampling.draw`."""
        if centre is None:
            centre = int(rng.integers(length))
        before, after = rng.integers(1, self.reach + 1, 2)
        near = [centre, max(0, centre - before), min(length - 1, centre + after)][:clip_frames]
        wanted = clip_frames - len(near)
        # The last of the neighbours counts as outside there, so that it may be drawn again.
        outside = np.setdiff1d(np.arange(length), np.arange(min(near), max(near)))
        if len(outside) <= wanted:
            outside = np.arange(length)
        far = rng.choice(outside, wanted, replace=wanted > len(outside))
        return np.sort(np.append(near, far).astype(np.int64))
