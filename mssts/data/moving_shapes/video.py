"""A rendered video of MovingShapes, and what all versions have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Below this many visible pixels an object cannot be recognised, and its frame counts as one where it is absent.
MIN_VISIBLE_PIXELS = 16


@dataclass(frozen=True)
class MovingShapesVideo:
    """One video with its ground truth.

    `masks_NTHW` holds the visible pixels of each object: the masks of a frame are disjoint. Objects that are never
    visible are left out. `scenario` is what makes a video of version 1 hard, empty in version 0.
    """

    frames_THWC: np.ndarray  # uint8, RGB
    labels: np.ndarray  # int64 [N], index into the version's categories
    masks_NTHW: np.ndarray  # bool
    scenario: str = ""


def visible_video(
    frames_THWC: np.ndarray, labels: Sequence[int], masks_NTHW: np.ndarray, scenario: str = ""
) -> MovingShapesVideo:
    """A video of the objects that can be seen.

    Masks of too few pixels are emptied, in place."""
    masks_NTHW &= (np.count_nonzero(masks_NTHW, axis=(2, 3)) >= MIN_VISIBLE_PIXELS)[:, :, None, None]
    seen = masks_NTHW.any(axis=(1, 2, 3))
    return MovingShapesVideo(frames_THWC, np.array(labels, np.int64)[seen], masks_NTHW[seen], scenario)
