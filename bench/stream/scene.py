"""What the streams of the benchmark see: a MovingShapes video, back and forth."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mssts.data.moving_shapes import MovingShapesConfig, render_video
from mssts.media.video_writer import VideoWriter

RATE = 12
_SEED, _VIDEO, _LENGTH = 31, 3, 96
_BITS, _BLOCK = 8, 12  # of a picture's number, which is written into its upper left corner


def scene() -> np.ndarray:
    """Its pictures, RGB uint8 [N, H, W, 3].

    Played forwards and backwards, so that nothing jumps where they begin again.
    """
    frames_THWC = render_video(MovingShapesConfig(length=_LENGTH), _SEED, _VIDEO).frames_THWC
    return np.concatenate([frames_THWC, frames_THWC[-2:0:-1]])


def write_scene(path: Path, pictures_NHWC: np.ndarray, frames: int) -> Path:
    """Writes a video of so many frames."""
    _, height, width, _ = pictures_NHWC.shape
    with VideoWriter(path, RATE, (height, width)) as writer:
        for number in range(frames):
            writer.write(pictures_NHWC[number % len(pictures_NHWC)])
    return path


def numbered(pictures_NHWC: np.ndarray) -> np.ndarray:
    """The pictures with their numbers in them, in black and white blocks."""
    assert len(pictures_NHWC) <= 1 << _BITS
    marked_NHWC = pictures_NHWC.copy()
    for number, picture_HWC in enumerate(marked_NHWC):
        for bit in range(_BITS):
            picture_HWC[:_BLOCK, bit * _BLOCK : (bit + 1) * _BLOCK] = 255 * (number >> bit & 1)
    return marked_NHWC


def number_of(picture_HWC: np.ndarray) -> int:
    """The number that is in a picture."""
    middles = picture_HWC[_BLOCK // 2, _BLOCK // 2 : _BITS * _BLOCK : _BLOCK].mean(axis=-1)
    return sum(1 << bit for bit, middle in enumerate(middles) if middle > 128)
