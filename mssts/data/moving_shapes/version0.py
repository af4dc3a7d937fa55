"""Version 0: five classes, each a geometry.

Textured, deforming objects move, turn, change size, occlude one another, leave the frame and return, in front of a
textured background that moves too. Colour and texture are drawn independently of the class, so nothing short of the
outline tells it.

Letters: N objects, T frames, P points of an outline.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mssts.data.moving_shapes.drawing import POINTS, backgrounds, paint, star_polar, texture, wave
from mssts.data.moving_shapes.video import MovingShapesVideo, visible_video
from mssts.errors import MsstsError
from mssts.manifest import Category

CATEGORIES = tuple(Category(i + 1, name) for i, name in enumerate(("disc", "square", "triangle", "star", "ring")))
HOLE = 0.52  # inner radius of a ring


@dataclass(frozen=True)
class MovingShapesConfig:
    """Appearance of the videos.

    Sizes are in pixels. `radius` is a range in fractions of the frame's height, `objects` an inclusive range, `leaving`
    is the fraction of the objects whose path crosses the border of the frame.
    """

    width: int = 256
    height: int = 144
    length: int = 12
    objects: tuple[int, int] = (1, 4)
    radius: tuple[float, float] = (0.12, 0.25)
    leaving: float = 0.35

    def __post_init__(self) -> None:
        if min(self.width, self.height) < 32:
            raise MsstsError(f"MovingShapes frames must be at least 32x32 pixels, not {self.width}x{self.height}")
        if self.length < 1:
            raise MsstsError(f"MovingShapes videos must have at least 1 frame, not {self.length}")
        if not 1 <= self.objects[0] <= self.objects[1]:
            raise MsstsError(f"MovingShapes objects must be a range from at least 1, not {self.objects}")
        if not 0 < self.radius[0] <= self.radius[1]:
            raise MsstsError(f"MovingShapes radius must be a range of positive fractions, not {self.radius}")
        if not 0 <= self.leaving <= 1:
            raise MsstsError(f"MovingShapes leaving must be a fraction from 0 to 1, not {self.leaving}")


def _outlines() -> np.ndarray:
    """Radius of each class at POINTS equal steps of angle, float64 [class, P].

    The classes cover similar areas."""
    # A corner's angle must not fall below a multiple of π/n by rounding, or `//` would take the edge before it.
    theta = np.arange(POINTS) * (2 * math.pi / POINTS) + 1e-9
    return np.stack(
        [
            np.full(POINTS, 0.95),
            star_polar(theta, 4, 1.2, 1.2 * math.cos(math.pi / 4)),
            star_polar(theta, 3, 1.35, 1.35 * math.cos(math.pi / 3)),
            star_polar(theta, 5, 1.35, 0.58),
            np.full(POINTS, 1.05),
        ]
    )


OUTLINES = _outlines()
_RING = 4


@dataclass(frozen=True)
class _Object:
    """One object: class, texture, and the path of its pose with one row a frame."""

    label: int
    texture: np.ndarray  # uint8 [TILE, TILE, 3]
    centres: np.ndarray  # [T, 2], x and y in pixels
    radii: np.ndarray  # [T], pixels
    angles: np.ndarray  # [T], radians
    outlines_TP2: np.ndarray  # points relative to the centre, in pixels, turned and deformed


def _path(rng: np.random.Generator, config: MovingShapesConfig, radius: float) -> np.ndarray:
    """Centres of an object, float64 [T, 2]: about a home, or out of frame and back."""
    times = np.arange(config.length)
    size = np.array([config.width, config.height], np.float64)
    home = size * rng.uniform(0.25, 0.75, 2)
    reach = size * rng.uniform(0.08, 0.3, 2)
    speed = config.height * rng.uniform(0.01, 0.06, 2)
    centres = home + reach * np.sin(speed / reach * times[:, None] + rng.uniform(0, 2 * math.pi, 2))
    if rng.random() < config.leaving:
        axis = int(rng.integers(2))
        inside, outside = radius * rng.uniform(1.0, 2.5), radius * rng.uniform(1.8, 2.4)
        swing = 0.5 + 0.5 * np.sin(2 * math.pi / rng.uniform(11, 18) * times + rng.uniform(0, 2 * math.pi))
        distance = inside - (inside + outside) * swing
        centres[:, axis] = distance if rng.random() < 0.5 else size[axis] - distance
    return centres


def _deformed(rng: np.random.Generator, label: int, radii: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """Outline of an object in every frame, float64 [T, P, 2].

    Radial waves of at most 9% of the radius and a stretch of at most 7% are slight enough that the class stays plain.
    """
    times = np.arange(len(radii))[:, None]
    theta = np.arange(POINTS) * (2 * math.pi / POINTS)
    radial_TP = np.ones((len(radii), POINTS))
    for lobes in (2, 3, 5):
        phase = rng.uniform(0, 2 * math.pi) + rng.uniform(-0.5, 0.5) * times
        radial_TP += rng.uniform(0, 0.03) * np.sin(lobes * theta + phase)
    radial_TP *= OUTLINES[label] * radii[:, None]
    stretch = np.exp(0.07 * wave(rng, times, 0.2, 0.5))
    x, y = radial_TP * np.cos(theta) * stretch, radial_TP * np.sin(theta) / stretch
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    return np.stack([cos * x - sin * y, sin * x + cos * y], axis=-1)


def _objects(rng: np.random.Generator, config: MovingShapesConfig) -> list[_Object]:
    """The objects of a video, farthest first, with hues spread."""
    count = int(rng.integers(config.objects[0], config.objects[1] + 1))
    hues = rng.permutation(count) / count + rng.random() + rng.uniform(-0.06, 0.06, count)
    times = np.arange(config.length)
    found = []
    for hue in hues:
        label = int(rng.integers(len(CATEGORIES)))
        radius = config.height * rng.uniform(*config.radius)
        radii = radius * np.exp(0.18 * wave(rng, times, 0.1, 0.35))
        angles = rng.uniform(0, 2 * math.pi) + rng.uniform(-0.12, 0.12) * times + 0.3 * wave(rng, times, 0.1, 0.3)
        centres = _path(rng, config, radius)
        outlines = _deformed(rng, label, radii, angles)
        found.append(_Object(label, texture(rng, hue), centres, radii, angles, outlines))
    return found


def render(config: MovingShapesConfig, rng: np.random.Generator) -> MovingShapesVideo:
    """Draws and renders a video."""
    frames_THWC = backgrounds(rng, config.width, config.height, config.length)
    objects = _objects(rng, config)
    masks_NTHW = np.zeros((len(objects), *frames_THWC.shape[:3]), bool)
    for t, frame_HWC in enumerate(frames_THWC):
        for n, thing in enumerate(objects):
            points = thing.outlines_TP2[t]
            contours = [points, points * HOLE] if thing.label == _RING else [points]
            mask = paint(frame_HWC, contours, thing.centres[t], thing.radii[t], thing.angles[t], thing.texture)
            if mask is not None:
                masks_NTHW[:n, t] &= ~mask
                masks_NTHW[n, t] = mask
    return visible_video(frames_THWC, [thing.label for thing in objects], masks_NTHW)
