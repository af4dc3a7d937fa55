"""Version 1: ten classes, and seven scenarios that tell models of video apart.

Seven classes are geometries, as in version 0. The last three share one, a clover: it stands still, turns, or pulses, so
one frame does not tell them apart. Each video has one scenario, which makes one thing hard, and few, large objects.
Colour and texture are drawn independently of the class.

Letters: N objects, T frames, P points of an outline.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from mssts.data.moving_shapes import version0
from mssts.data.moving_shapes.drawing import POINTS, TILE, backgrounds, paint, texture, wave
from mssts.data.moving_shapes.video import MovingShapesVideo, visible_video
from mssts.errors import MsstsError
from mssts.manifest import Category

# Ids 1 to 5 are those of version 0.
CATEGORIES = tuple(
    Category(i + 1, name)
    for i, name in enumerate(
        (*(category.name for category in version0.CATEGORIES), "heart", "crescent", "clover", "spinner", "pulser")
    )
)
_RING, _CLOVER, _SPINNER, _PULSER = 4, 7, 8, 9


@dataclass(frozen=True)
class MovingShapes1Config:
    """Size of the videos, in pixels and frames. The splits are of the default size."""

    width: int = 256
    height: int = 144
    length: int = 16

    def __post_init__(self) -> None:
        if min(self.width, self.height) < 32:
            raise MsstsError(f"MovingShapes frames must be at least 32x32 pixels, not {self.width}x{self.height}")
        if self.length < 1:
            raise MsstsError(f"MovingShapes videos must have at least 1 frame, not {self.length}")


def _shapes() -> tuple[np.ndarray, ...]:
    """The outline of each class, float64 [P, 2], of similar areas."""
    theta = np.arange(POINTS) * (2 * math.pi / POINTS)
    circle = np.stack([np.cos(theta), np.sin(theta)], axis=-1)
    heart = np.stack(
        [
            16 * np.sin(theta) ** 3,
            -13 * np.cos(theta) + 5 * np.cos(2 * theta) + 2 * np.cos(3 * theta) + np.cos(4 * theta) - 2,
        ],
        axis=-1,
    )
    # A disc of radius 1.2 about the origin without one of radius 0.95 about (0.6, 0).
    outer, inner, shift = 1.2, 0.95, 0.6
    x = (outer**2 - inner**2 + shift**2) / (2 * shift)
    y = math.sqrt(outer**2 - x**2)
    along, back = math.atan2(y, x), math.atan2(y, x - shift)
    convex = np.linspace(along, 2 * math.pi - along, POINTS // 2)
    concave = np.linspace(2 * math.pi - back, back, POINTS // 2)
    crescent = np.concatenate(
        [
            outer * np.stack([np.cos(convex), np.sin(convex)], axis=-1),
            inner * np.stack([np.cos(concave), np.sin(concave)], axis=-1) + (shift, 0),
        ]
    )
    crescent += (0.25, 0)
    clover = circle * (0.98 * (1 + 0.3 * np.cos(4 * theta)))[:, None]
    geometries = tuple(circle * radii[:, None] for radii in version0.OUTLINES)
    return (*geometries, heart / 14, crescent, clover, clover, clover)


_SHAPES = _shapes()


@dataclass
class _Object:
    """An object: its class, its looks, and the path of its pose with one row a frame."""

    label: int
    centres: np.ndarray  # [T, 2], x and y in pixels
    radii: np.ndarray  # [T], pixels
    angles: np.ndarray  # [T], radians
    outlines_TP2: np.ndarray  # points relative to the centre, in pixels, turned and deformed
    texture: np.ndarray  # uint8 [TILE, TILE, 3]
    later_texture: np.ndarray  # what it turns into
    blend: np.ndarray  # [T], how much of that shows, 0 to 1

    def texture_at(self, t: int) -> np.ndarray:
        """What fills it in a frame."""
        later = float(self.blend[t])
        if later == 0:
            return self.texture
        return cv2.addWeighted(self.texture, 1 - later, self.later_texture, later, 0)


@dataclass
class _Scene:
    """A video in the making.

    `pillar` is the left and right edge of what stands in front of everything, `blur` the length in pixels and the
    direction in radians of each frame's motion blur, `light` its brightness."""

    config: MovingShapes1Config
    rng: np.random.Generator
    frames_THWC: np.ndarray
    objects: list[_Object]
    pillar: tuple[int, int] | None = None
    blur: np.ndarray | None = None  # [T, 2]
    light: np.ndarray | None = None  # [T]

    @property
    def times(self) -> np.ndarray:
        """0 to 1 over the video, float64 [T]."""
        return np.linspace(0, 1, self.config.length)

    def radius(self, low: float = 0.15, high: float = 0.25) -> float:
        """A size in pixels, from a range in fractions of the frame's height."""
        return float(self.config.height * self.rng.uniform(low, high))

    def add(
        self,
        centres: np.ndarray,
        radius: float,
        *,
        label: int | None = None,
        hue: float | None = None,
        growth: np.ndarray | None = None,
    ) -> _Object:
        """Adds an object in front of the others, of a random class if `label` is None."""
        rng, times = self.rng, np.arange(self.config.length)
        drawn_label, drawn_hue = int(rng.integers(len(CATEGORIES))), float(rng.random())
        label, hue = drawn_label if label is None else label, drawn_hue if hue is None else hue
        radii = radius * np.exp(0.1 * wave(rng, times, 0.1, 0.25)) * (1 if growth is None else growth)
        turn = rng.choice((-1, 1)) * rng.uniform(0.32, 0.5) if label == _SPINNER else rng.uniform(-0.1, 0.1)
        if label in (_CLOVER, _PULSER):
            turn *= 0.3
        pulse = 0.28 * wave(rng, times, 2 * math.pi / 6, 2 * math.pi / 4)
        if label == _PULSER:
            radii = radii * (1 + pulse)
        angles = rng.uniform(0, 2 * math.pi) + turn * times
        made = texture(rng, hue)
        thing = _Object(
            label, centres, radii, angles, _deformed(rng, label, radii, angles), made, made, np.zeros(len(times))
        )
        self.objects.append(thing)
        return thing

    def wander(self, radius: float, reach: float = 0.18) -> np.ndarray:
        """A gentle path that stays in the frame, float64 [T, 2]."""
        size = np.array([self.config.width, self.config.height], np.float64)
        home = self.rng.uniform(1.2 * radius, size - 1.2 * radius)
        sway = np.stack([wave(self.rng, np.arange(self.config.length), 0.1, 0.35) for _ in range(2)], axis=-1)
        return np.clip(home + reach * self.config.height * sway, 0.8 * radius, size - 0.8 * radius)


def _deformed(rng: np.random.Generator, label: int, radii: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """Outline of an object in every frame, float64 [T, P, 2].

    Its radial waves and stretch are as slight as those of version 0."""
    points = _SHAPES[label]
    times = np.arange(len(radii))[:, None]
    theta = np.arctan2(points[:, 1], points[:, 0])
    radial_TP = np.ones((len(radii), len(points)))
    for lobes in (2, 3):
        phase = rng.uniform(0, 2 * math.pi) + rng.uniform(-0.5, 0.5) * times
        radial_TP += rng.uniform(0, 0.03) * np.sin(lobes * theta + phase)
    radial_TP *= radii[:, None]
    stretch = np.exp(0.06 * wave(rng, times, 0.2, 0.5))
    x, y = radial_TP * points[:, 0] * stretch, radial_TP * points[:, 1] / stretch
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    return np.stack([cos * x - sin * y, sin * x + cos * y], axis=-1)


# --- scenarios ----------------------------------------------------------------------------------------------------


def _bystanders(scene: _Scene, least: int, most: int) -> None:
    for _ in range(int(scene.rng.integers(least, most + 1))):
        radius = scene.radius()
        scene.add(scene.wander(radius), radius)


def _plain(scene: _Scene) -> None:
    """One to three objects that move gently."""
    _bystanders(scene, 1, 3)


def _crossing(scene: _Scene) -> None:
    """Two objects of one class and of similar colour pass one another."""
    rng, config = scene.rng, scene.config
    _bystanders(scene, 0, 1)
    label, hue, radius = int(rng.integers(len(CATEGORIES))), float(rng.random()), scene.radius(0.15, 0.22)
    middle = config.height * rng.uniform(0.35, 0.65)
    # Both turn their way at the middle of the video, more or less, and slow down where they meet.
    position = 2 * scene.times - 1 + rng.uniform(-0.2, 0.2)
    along = np.sign(position) * np.abs(position) ** rng.uniform(1.0, 1.5)
    for side in (-1, 1):
        x = config.width * (0.5 + side * rng.uniform(0.26, 0.34) * along)
        y = (
            middle
            + side * rng.uniform(0.1, 0.45) * radius
            + 0.03 * config.height * wave(rng, np.arange(config.length), 0.2, 0.5)
        )
        scene.add(
            np.stack([x, y], axis=-1), radius * rng.uniform(0.9, 1.1), label=label, hue=hue + rng.uniform(-0.04, 0.04)
        )


def _occlusion(scene: _Scene) -> None:
    """One or two objects are hidden behind a pillar for 2 to 6 frames.

    They come out on either side.
    """
    rng, config = scene.rng, scene.config
    radius = scene.radius(0.13, 0.18)
    half = 1.45 * radius + 2
    middle = config.width * rng.uniform(0.38, 0.62)
    scene.pillar = (round(middle - half), round(middle + half))
    for _ in range(int(rng.integers(1, 3))):
        hidden = rng.uniform(1.5, 4) / config.length
        begin = rng.uniform(0.3, 0.7 - min(hidden, 0.35))
        # Distance from the pillar's middle: 1 on the way in and out, 0 while hidden.
        away_in = np.clip((begin - scene.times) / 0.3, 0, 1.4)
        away_out = np.clip((scene.times - begin - hidden) / 0.3, 0, 1.4)
        side = rng.choice((-1, 1))
        out = side if rng.random() < 0.35 else -side
        x = middle + 2.0 * half * (side * away_in + out * away_out)
        y = rng.uniform(1.2 * radius, config.height - 1.2 * radius) + 0.08 * config.height * wave(
            rng, np.arange(config.length), 0.1, 0.4
        )
        scene.add(np.stack([x, y], axis=-1), radius * rng.uniform(0.92, 1.0))


def _returning(scene: _Scene) -> None:
    """One or two objects leave the frame and return, and another may stay."""
    rng, config = scene.rng, scene.config
    _bystanders(scene, 0, 1)
    size = (config.width, config.height)
    for _ in range(int(rng.integers(1, 3))):
        radius = scene.radius()
        centres = scene.wander(radius, 0.1)
        axis = int(rng.integers(2))
        # Outside for 2 to 5 frames about the middle of the video.
        away = np.abs(scene.times - rng.uniform(0.35, 0.65)) * config.length
        reach = np.clip((away - rng.uniform(0.75, 2)) / rng.uniform(2.5, 4), -0.4, 1)
        distance = -1.45 * radius + 3.2 * radius * reach
        centres[:, axis] = distance if rng.random() < 0.5 else size[axis] - distance
        scene.add(centres, radius)


def _change(scene: _Scene) -> None:
    """Objects grow or shrink two to three times.

    Their colours and patterns change too, and the light.
    """
    rng = scene.rng
    for _ in range(int(rng.integers(1, 4))):
        radius = scene.radius(0.16, 0.22)
        factor = rng.uniform(0.35, 0.55) * rng.choice((-1, 1))
        growth = np.exp(factor * (2 * scene.times - 1))
        thing = scene.add(scene.wander(radius), radius, growth=growth)
        thing.later_texture = texture(rng, float(rng.random()))
        thing.blend = np.clip((scene.times - rng.uniform(0, 0.4)) / rng.uniform(0.3, 0.6), 0, 1)
    scene.light = 1 + 0.3 * wave(rng, np.arange(scene.config.length), 0.1, 0.5)


def _camouflage(scene: _Scene) -> None:
    """One or two objects have the background's own texture.

    They are a little lighter or darker. Another object may have colours.
    """
    rng, height = scene.rng, scene.config.height
    _bystanders(scene, 0, 1)
    for _ in range(int(rng.integers(1, 3))):
        radius = scene.radius(0.17, 0.26)
        thing = scene.add(scene.wander(radius), radius)
        left = int(rng.integers(scene.frames_THWC.shape[2] - height + 1))
        patch = cv2.resize(scene.frames_THWC[0, :, left : left + height], (TILE, TILE), interpolation=cv2.INTER_LINEAR)
        offset = rng.choice((-1, 1)) * rng.uniform(20, 34) + rng.uniform(-5, 5, 3)
        thing.texture = np.clip(patch[:, ::-1] + offset, 0, 255).astype(np.uint8)
        thing.later_texture = thing.texture


def _blur(scene: _Scene) -> None:
    """Objects move fast, and the camera shakes.

    So each frame is blurred along a line.
    """
    rng, config = scene.rng, scene.config
    times = np.arange(config.length)
    for _ in range(int(rng.integers(1, 4))):
        radius = scene.radius()
        reach = rng.uniform(0.35, 0.6)
        scene.add(scene.wander(radius, reach), radius)
    length = 6 + 6 * wave(rng, times, 0.3, 0.8)
    scene.blur = np.stack([length, rng.uniform(0, math.pi) + 0.5 * wave(rng, times, 0.1, 0.4)], axis=-1)


_SCENARIOS: dict[str, Callable[[_Scene], None]] = {
    "plain": _plain,
    "crossing": _crossing,
    "occlusion": _occlusion,
    "returning": _returning,
    "change": _change,
    "camouflage": _camouflage,
    "blur": _blur,
}
SCENARIOS = tuple(_SCENARIOS)


def render(config: MovingShapes1Config, rng: np.random.Generator) -> MovingShapesVideo:
    """Draws and renders a video."""
    scenario = SCENARIOS[int(rng.integers(len(SCENARIOS)))]
    frames_THWC = backgrounds(rng, config.width, config.height, config.length)
    scene = _Scene(config, rng, frames_THWC, [])
    _SCENARIOS[scenario](scene)
    pillar = _pillar(scene) if scene.pillar is not None else None
    masks_NTHW = np.zeros((len(scene.objects), *frames_THWC.shape[:3]), bool)
    for t, frame_HWC in enumerate(frames_THWC):
        for n, thing in enumerate(scene.objects):
            points = thing.outlines_TP2[t]
            contours = [points, points * version0.HOLE] if thing.label == _RING else [points]
            mask = paint(frame_HWC, contours, thing.centres[t], thing.radii[t], thing.angles[t], thing.texture_at(t))
            if mask is not None:
                masks_NTHW[:n, t] &= ~mask
                masks_NTHW[n, t] = mask
        if scene.pillar is not None:
            hidden = slice(*scene.pillar)
            frame_HWC[:, hidden] = pillar
            masks_NTHW[:, t, :, hidden] = False
        if scene.light is not None:
            frame_HWC[:] = cv2.convertScaleAbs(frame_HWC, alpha=float(scene.light[t]))
        if scene.blur is not None:
            frame_HWC[:] = _blurred(frame_HWC, *scene.blur[t])
    return visible_video(frames_THWC, [thing.label for thing in scene.objects], masks_NTHW, scenario)


def _pillar(scene: _Scene) -> np.ndarray:
    """A pillar, uint8 [H, width, 3], of another shade than the background."""
    assert scene.pillar is not None
    left, right = scene.pillar
    whole = backgrounds(scene.rng, scene.config.width, scene.config.height, 1)[0]
    shade = whole[:, left:right].astype(np.float32)
    behind = float(scene.frames_THWC[0].mean())
    wanted = behind + (50 if behind < 120 else -50)
    pillar = shade + (wanted - shade.mean())
    # Darker towards its edges, as a round pillar is.
    across = np.linspace(-1, 1, right - left, dtype=np.float32)[None, :, None]
    return np.clip(pillar * (1 - 0.35 * across**4), 0, 255).astype(np.uint8)


def _blurred(frame_HWC: np.ndarray, length: float, angle: float) -> np.ndarray:
    """The frame, moved along a line of `length` pixels during exposure."""
    side = 13
    middle, scale = side // 2, 16  # cv2.line takes 4 fractional bits
    reach = np.array([math.cos(angle), math.sin(angle)]) * max(length, 0) / 2
    start, end = (np.round((middle + sign * reach) * scale).astype(int).tolist() for sign in (-1, 1))
    kernel = np.zeros((side, side), np.uint8)
    cv2.line(kernel, start, end, (255,), 1, cv2.LINE_AA, 4)
    return cv2.filter2D(frame_HWC, -1, kernel.astype(np.float32) / kernel.sum(), borderType=cv2.BORDER_REFLECT_101)
