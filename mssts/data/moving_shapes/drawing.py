"""Colours, textures, backgrounds, and shapes filled with a texture.

Letters: T frames, H and W of a frame, P points of an outline.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np

POINTS = 120  # a multiple of 2·3, 2·4 and 2·5: the corners of every class fall on points of the outline
TILE = 128  # pixels of an object's texture, which spans _TILE_RADII radii
_TILE_RADII = 3.2
_SUPERSAMPLING = 4
_SHIFT = 4  # fractional bits of OpenCV's fixed-point coordinates


def star_polar(theta: np.ndarray, corners: int, outer: float, inner: float) -> np.ndarray:
    """Radius at each angle of a star whose tips and notches alternate.

    With inner = outer·cos(π/n) it is a regular n-gon."""
    step = math.pi / corners
    into = theta % step
    even = (theta // step).astype(int) % 2 == 0
    start, end = np.where(even, outer, inner), np.where(even, inner, outer)
    return start * end * math.sin(step) / (start * np.sin(into) + end * np.sin(step - into))


def wave(rng: np.random.Generator, times: np.ndarray, low: float, high: float) -> np.ndarray:
    """A sine over `times` of random phase and angular speed (radians a frame)."""
    return np.sin(rng.uniform(low, high) * times + rng.uniform(0, 2 * math.pi))


def rgb(hue: float, saturation: float, value: float) -> np.ndarray:
    """A colour as float32 RGB from 0 to 255 (hue in turns, the others 0 to 1)."""
    hsv = np.array([[[hue % 1 * 360, saturation, value]]], np.float32)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0] * 255


def noise(rng: np.random.Generator, height: int, width: int, cells: int) -> np.ndarray:
    """Smooth noise, float32 [height, width], of about `cells` bumps in its height."""
    grid = rng.standard_normal((cells + 1, math.ceil(cells * width / height) + 1), dtype=np.float32)
    return cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)


def texture(rng: np.random.Generator, hue: float) -> np.ndarray:
    """A saturated texture, uint8 [TILE, TILE, 3]: two colours in a pattern."""
    first = rgb(hue, rng.uniform(0.65, 1), rng.uniform(0.75, 1))
    second = rgb(hue + rng.uniform(-0.08, 0.08), rng.uniform(0.5, 1), rng.uniform(0.3, 0.6))
    angle, period = rng.uniform(0, math.pi), rng.uniform(0.45, 0.9)
    axis = np.linspace(-_TILE_RADII / 2, _TILE_RADII / 2, TILE, dtype=np.float32) * np.float32(2 * math.pi / period)
    u = np.float32(math.cos(angle)) * axis + np.float32(math.sin(angle)) * axis[:, None]
    v = np.float32(math.cos(angle)) * axis[:, None] - np.float32(math.sin(angle)) * axis
    pattern = rng.integers(4)
    if pattern == 0:
        ripple = np.sin(u)
    elif pattern == 1:
        ripple = np.sin(u) * np.sin(v) * 1.5
    elif pattern == 2:
        ripple = np.sin(u) + np.sin(v) - 0.8
    else:
        ripple = noise(rng, TILE, TILE, 9)
    mix = 0.5 + 0.5 * np.tanh(3 * ripple)[:, :, None]
    grain = 6 * noise(rng, TILE, TILE, 40)[:, :, None]
    return np.clip(second + (first - second) * mix + grain, 0, 255).astype(np.uint8)


def background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A dull texture, uint8 [height, width, 3]: gradient, smooth noise, faint lines."""
    colour = rgb(rng.random(), rng.uniform(0, 0.25), rng.uniform(0.3, 0.75))
    canvas = np.empty((height, width, 3), np.float32)
    canvas[:] = colour
    light = sum(
        amplitude * noise(rng, height, width, cells) for cells, amplitude in ((3, 14), (9, 9), (30, 6), (80, 4))
    )
    slope = rng.uniform(-25, 25, 2).astype(np.float32)
    light += slope[0] * np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    light += slope[1] * np.linspace(-1, 1, width, dtype=np.float32)
    tint = np.stack([noise(rng, height, width, 4) for _ in range(3)], axis=-1) * 5
    canvas += light[:, :, None] + tint
    image = np.clip(canvas, 0, 255).astype(np.uint8)
    for _ in range(rng.integers(2, 9)):
        ends = rng.integers(0, (width, height), (2, 2)).tolist()
        shade = np.clip(colour + rng.uniform(-45, 45), 0, 255).tolist()
        cv2.line(image, ends[0], ends[1], shade, int(rng.integers(1, 4)), cv2.LINE_AA)
    return image


def backgrounds(rng: np.random.Generator, width: int, height: int, length: int) -> np.ndarray:
    """The background under a camera that moves slowly, uint8 [T, H, W, 3]."""
    margin = height // 5
    canvas = background(rng, height + 2 * margin, width + 2 * margin)
    times = np.arange(length)
    pan_x, pan_y = (margin * 0.7 * wave(rng, times, 0.02, 0.15) for _ in range(2))
    turn, zoom = 0.03 * wave(rng, times, 0.05, 0.2), np.exp(0.04 * wave(rng, times, 0.05, 0.2))
    frames = np.empty((length, height, width, 3), np.uint8)
    middle_x, middle_y = width / 2, height / 2
    for t in range(length):
        cos, sin = zoom[t] * math.cos(turn[t]), zoom[t] * math.sin(turn[t])
        shift_x = margin + middle_x + pan_x[t] - cos * middle_x + sin * middle_y
        shift_y = margin + middle_y + pan_y[t] - sin * middle_x - cos * middle_y
        matrix = np.array([[cos, -sin, shift_x], [sin, cos, shift_y]])
        frames[t] = warp(canvas, matrix, width, height)
    return frames


def warp(image: np.ndarray, matrix: np.ndarray, width: int, height: int) -> np.ndarray:
    """Samples `image` bilinearly at matrix @ (x, y, 1) for every pixel (x, y)."""
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(image, matrix, (width, height), flags=flags, borderMode=cv2.BORDER_REFLECT_101)


def paint(
    frame_HWC: np.ndarray,
    contours: Sequence[np.ndarray],
    centre: np.ndarray,
    radius: float,
    angle: float,
    texture: np.ndarray,
) -> np.ndarray | None:
    """Paints an object over a frame.

    Args:
        frame_HWC: uint8, changed in place.
        contours: an outline [P, 2] in pixels relative to the centre, and those of its holes.
        centre: x and y in pixels.
        radius: what the texture is scaled by, in pixels.
        angle: how far the texture is turned, in radians.
        texture: uint8 [TILE, TILE, 3].

    Returns:
        The object's pixels, None if it is outside.
    """
    height, width = frame_HWC.shape[:2]
    points = contours[0]
    low = np.maximum(np.floor(centre + points.min(0)).astype(int) - 1, 0)
    high = np.minimum(np.ceil(centre + points.max(0)).astype(int) + 1, (width, height))
    if (low >= high).any():
        return None
    size = high - low

    # Filled at several times the resolution and averaged: OpenCV's own antialiasing widens the outline.
    origin = (centre - low) * _SUPERSAMPLING
    fixed = [np.round((origin + contour * _SUPERSAMPLING - 0.5) * 2**_SHIFT).astype(np.int32) for contour in contours]
    fine = np.zeros((size[1] * _SUPERSAMPLING, size[0] * _SUPERSAMPLING), np.uint8)
    cv2.fillPoly(fine, fixed, (255,), shift=_SHIFT)
    coverage = cv2.resize(fine, tuple(size.tolist()), interpolation=cv2.INTER_AREA)

    scale = TILE / _TILE_RADII / radius
    cos, sin = scale * math.cos(angle), scale * math.sin(angle)
    x, y = low - centre
    matrix = np.array([[cos, sin, cos * x + sin * y + TILE / 2], [-sin, cos, cos * y - sin * x + TILE / 2]])
    textured = warp(texture, matrix, int(size[0]), int(size[1]))

    region = frame_HWC[low[1] : high[1], low[0] : high[0]]
    alpha = coverage[:, :, None].astype(np.float32) / 255
    region[:] = np.round(region + (textured.astype(np.float32) - region) * alpha).astype(np.uint8)
    mask = np.zeros((height, width), bool)
    mask[low[1] : high[1], low[0] : high[0]] = coverage >= 128
    return mask
