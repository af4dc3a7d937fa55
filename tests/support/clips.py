"""Clips of moving shapes."""

from __future__ import annotations

import numpy as np

from mssts.data.moving_shapes import MovingShapesConfig, render_video


def clip(size: tuple[int, int], frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Frames [1, T, H, W, 3] and their size."""
    height, width = size
    video = render_video(MovingShapesConfig(width=width, height=height, length=frames), 0, 0)
    return video.frames_THWC[None], np.array([[height, width]], np.int32)
