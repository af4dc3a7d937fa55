"""Colour changes: an affine map of RGB, and the released distortion of frames."""

from __future__ import annotations

import itertools
import math

import cv2
import numpy as np

_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = 32.0, (0.5, 1.5), (0.5, 1.5), 18.0
_CHANNEL_ORDERS = tuple(itertools.permutations(range(3)))


def distorted(rng: np.random.Generator, frame_HWC: np.ndarray) -> np.ndarray:
    """SeqFormer's `PhotometricDistort` of one frame, uint8 RGB.

    Brightness, contrast, saturation, hue and the order of the channels change with probability 1/2 each; contrast
    comes before or after the others. Values beyond 0 to 255 are clipped; in the released code they wrap around.
    """
    frame: np.ndarray = frame_HWC.astype(np.float32)
    if rng.random() < 0.5:
        frame += rng.uniform(-_BRIGHTNESS, _BRIGHTNESS)
    contrast = rng.uniform(*_CONTRAST) if rng.random() < 0.5 else 1.0
    contrast_first = rng.random() < 0.5
    if contrast_first:
        frame *= contrast
    saturation = rng.uniform(*_SATURATION) if rng.random() < 0.5 else 1.0
    hue = rng.uniform(-_HUE, _HUE) if rng.random() < 0.5 else 0.0
    if saturation != 1 or hue != 0:
        hsv = cv2.cvtColor(np.clip(frame, 0, 255), cv2.COLOR_RGB2HSV)
        hsv[..., 0] = (hsv[..., 0] + hue) % 360
        hsv[..., 1] = np.minimum(hsv[..., 1] * saturation, 1)
        frame = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    if not contrast_first:
        frame *= contrast
    if rng.random() < 0.5:
        frame = frame[..., _CHANNEL_ORDERS[rng.integers(len(_CHANNEL_ORDERS))]]
    return np.clip(np.rint(frame), 0, 255).astype(np.uint8)


def draw_colours(rng: np.random.Generator, strength: float) -> np.ndarray:
    """A random change of colours, float64 [3, 4]."""
    brightness = 255 * 0.3 * strength * rng.uniform(-1, 1)
    contrast, saturation = 1 + strength * rng.uniform(-1, 1, 2)
    turn = math.pi * 0.25 * strength * rng.uniform(-1, 1)
    return colour_change(brightness, contrast, saturation, turn)


def colour_change(brightness: float, contrast: float, saturation: float, turn: float) -> np.ndarray:
    """Brightness (added), contrast, saturation (factors) and hue (radians) in one map.

    Saturation scales, and hue turns, the colour about the grey axis of equal R, G and B.

    Returns:
        The map, float64 [3, 4].
    """
    grey = np.full((3, 3), 1 / 3)
    across = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    colour = saturation * (math.cos(turn) * (np.eye(3) - grey) + math.sin(turn) * across)
    matrix = contrast * (grey + colour)
    offset = brightness + 128 * (1 - contrast)
    return np.hstack([matrix, np.full((3, 1), offset)])
