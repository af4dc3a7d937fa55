"""MovingShapes: a synthetic video instance segmentation data set.

Textured, deforming objects of five classes move, turn, change size, occlude one another, leave the frame and return, in
front of a textured background that moves too. A class is a geometry: colour and texture are drawn independently of it,
so nothing short of the outline tells it. Every video is a pure function of (configuration, seed, index).

Letters: N objects, T frames, H and W of a frame, P points of an outline.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from mssts import masks
from mssts.errors import MsstsError
from mssts.files import reason, write_text
from mssts.manifest import Category

CATEGORIES = tuple(Category(i + 1, name) for i, name in enumerate(("disc", "square", "triangle", "star", "ring")))

# Below this many visible pixels an object cannot be recognised, and its frame counts as one where it is absent.
MIN_VISIBLE_PIXELS = 16
JPEG_QUALITY = 92

_POINTS = 120  # a multiple of 2·3, 2·4 and 2·5: the corners of every class fall on points of the outline
_SUPERSAMPLING = 4
_TILE = 128  # pixels of an object's texture, which spans _TILE_RADII radii
_TILE_RADII = 3.2
_HOLE = 0.52  # inner radius of a ring
_SHIFT = 4  # fractional bits of OpenCV's fixed-point coordinates


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


@dataclass(frozen=True)
class MovingShapesVideo:
    """One video with its ground truth.

    `masks_NTHW` holds the visible pixels of each object: the masks of a frame are disjoint. Objects that are never
    visible are left out.
    """

    frames_THWC: np.ndarray  # uint8, RGB
    labels: np.ndarray  # int64 [N], index into CATEGORIES
    masks_NTHW: np.ndarray  # bool


def _star_polar(theta: np.ndarray, corners: int, outer: float, inner: float) -> np.ndarray:
    """Radius at each angle of a star whose tips and notches alternate.

    With inner = outer·cos(π/n) it is a regular n-gon."""
    step = math.pi / corners
    into = theta % step
    even = (theta // step).astype(int) % 2 == 0
    start, end = np.where(even, outer, inner), np.where(even, inner, outer)
    return start * end * math.sin(step) / (start * np.sin(into) + end * np.sin(step - into))


def _outlines() -> np.ndarray:
    """Radius of each class at _POINTS equal steps of angle, float64 [class, P].

    The classes cover similar areas."""
    # A corner's angle must not fall below a multiple of π/n by rounding, or `//` would take the edge before it.
    theta = np.arange(_POINTS) * (2 * math.pi / _POINTS) + 1e-9
    return np.stack(
        [
            np.full(_POINTS, 0.95),
            _star_polar(theta, 4, 1.2, 1.2 * math.cos(math.pi / 4)),
            _star_polar(theta, 3, 1.35, 1.35 * math.cos(math.pi / 3)),
            _star_polar(theta, 5, 1.35, 0.58),
            np.full(_POINTS, 1.05),
        ]
    )


_OUTLINES = _outlines()
_RING = 4


@dataclass(frozen=True)
class _Object:
    """One object: class, texture, and the path of its pose with one row a frame."""

    label: int
    texture: np.ndarray  # uint8 [_TILE, _TILE, 3]
    centres: np.ndarray  # [T, 2], x and y in pixels
    radii: np.ndarray  # [T], pixels
    angles: np.ndarray  # [T], radians
    outlines_TP2: np.ndarray  # points relative to the centre, in pixels, turned and deformed


def _wave(rng: np.random.Generator, times: np.ndarray, low: float, high: float) -> np.ndarray:
    """A sine over `times` of random phase and angular speed (radians a frame)."""
    return np.sin(rng.uniform(low, high) * times + rng.uniform(0, 2 * math.pi))


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
    theta = np.arange(_POINTS) * (2 * math.pi / _POINTS)
    radial_TP = np.ones((len(radii), _POINTS))
    for lobes in (2, 3, 5):
        phase = rng.uniform(0, 2 * math.pi) + rng.uniform(-0.5, 0.5) * times
        radial_TP += rng.uniform(0, 0.03) * np.sin(lobes * theta + phase)
    radial_TP *= _OUTLINES[label] * radii[:, None]
    stretch = np.exp(0.07 * _wave(rng, times, 0.2, 0.5))
    x, y = radial_TP * np.cos(theta) * stretch, radial_TP * np.sin(theta) / stretch
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    return np.stack([cos * x - sin * y, sin * x + cos * y], axis=-1)


def _rgb(hue: float, saturation: float, value: float) -> np.ndarray:
    """A colour as float32 RGB from 0 to 255 (hue in turns, the others 0 to 1)."""
    hsv = np.array([[[hue % 1 * 360, saturation, value]]], np.float32)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0] * 255


def _noise(rng: np.random.Generator, height: int, width: int, cells: int) -> np.ndarray:
    """Smooth noise, float32 [height, width], of about `cells` bumps in its height."""
    grid = rng.standard_normal((cells + 1, math.ceil(cells * width / height) + 1), dtype=np.float32)
    return cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)


def _texture(rng: np.random.Generator, hue: float) -> np.ndarray:
    """A saturated texture, uint8 [_TILE, _TILE, 3]: two colours in a pattern."""
    first = _rgb(hue, rng.uniform(0.65, 1), rng.uniform(0.75, 1))
    second = _rgb(hue + rng.uniform(-0.08, 0.08), rng.uniform(0.5, 1), rng.uniform(0.3, 0.6))
    angle, period = rng.uniform(0, math.pi), rng.uniform(0.45, 0.9)
    axis = np.linspace(-_TILE_RADII / 2, _TILE_RADII / 2, _TILE, dtype=np.float32) * np.float32(2 * math.pi / period)
    u = np.float32(math.cos(angle)) * axis + np.float32(math.sin(angle)) * axis[:, None]
    v = np.float32(math.cos(angle)) * axis[:, None] - np.float32(math.sin(angle)) * axis
    pattern = rng.integers(4)
    if pattern == 0:
        wave = np.sin(u)
    elif pattern == 1:
        wave = np.sin(u) * np.sin(v) * 1.5
    elif pattern == 2:
        wave = np.sin(u) + np.sin(v) - 0.8
    else:
        wave = _noise(rng, _TILE, _TILE, 9)
    mix = 0.5 + 0.5 * np.tanh(3 * wave)[:, :, None]
    grain = 6 * _noise(rng, _TILE, _TILE, 40)[:, :, None]
    return np.clip(second + (first - second) * mix + grain, 0, 255).astype(np.uint8)


def _background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A dull texture, uint8 [height, width, 3]: gradient, smooth noise, faint lines."""
    colour = _rgb(rng.random(), rng.uniform(0, 0.25), rng.uniform(0.3, 0.75))
    canvas = np.empty((height, width, 3), np.float32)
    canvas[:] = colour
    light = sum(
        amplitude * _noise(rng, height, width, cells) for cells, amplitude in ((3, 14), (9, 9), (30, 6), (80, 4))
    )
    slope = rng.uniform(-25, 25, 2).astype(np.float32)
    light += slope[0] * np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    light += slope[1] * np.linspace(-1, 1, width, dtype=np.float32)
    tint = np.stack([_noise(rng, height, width, 4) for _ in range(3)], axis=-1) * 5
    canvas += light[:, :, None] + tint
    image = np.clip(canvas, 0, 255).astype(np.uint8)
    for _ in range(rng.integers(2, 9)):
        ends = rng.integers(0, (width, height), (2, 2)).tolist()
        shade = np.clip(colour + rng.uniform(-45, 45), 0, 255).tolist()
        cv2.line(image, ends[0], ends[1], shade, int(rng.integers(1, 4)), cv2.LINE_AA)
    return image


def _backgrounds(rng: np.random.Generator, config: MovingShapesConfig) -> np.ndarray:
    """The background under a camera that moves slowly, uint8 [T, H, W, 3]."""
    margin = config.height // 5
    canvas = _background(rng, config.height + 2 * margin, config.width + 2 * margin)
    times = np.arange(config.length)
    pan_x, pan_y = (margin * 0.7 * _wave(rng, times, 0.02, 0.15) for _ in range(2))
    turn, zoom = 0.03 * _wave(rng, times, 0.05, 0.2), np.exp(0.04 * _wave(rng, times, 0.05, 0.2))
    frames = np.empty((config.length, config.height, config.width, 3), np.uint8)
    middle_x, middle_y = config.width / 2, config.height / 2
    for t in range(config.length):
        cos, sin = zoom[t] * math.cos(turn[t]), zoom[t] * math.sin(turn[t])
        shift_x = margin + middle_x + pan_x[t] - cos * middle_x + sin * middle_y
        shift_y = margin + middle_y + pan_y[t] - sin * middle_x - cos * middle_y
        matrix = np.array([[cos, -sin, shift_x], [sin, cos, shift_y]])
        frames[t] = _warp(canvas, matrix, config.width, config.height)
    return frames


def _warp(image: np.ndarray, matrix: np.ndarray, width: int, height: int) -> np.ndarray:
    """Samples `image` bilinearly at matrix @ (x, y, 1) for every pixel (x, y)."""
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(image, matrix, (width, height), flags=flags, borderMode=cv2.BORDER_REFLECT_101)


def _paint(frame_HWC: np.ndarray, thing: _Object, t: int) -> np.ndarray | None:
    """Paints an object over a frame and returns its pixels, None if it is outside."""
    height, width = frame_HWC.shape[:2]
    centre, points = thing.centres[t], thing.outlines_TP2[t]
    low = np.maximum(np.floor(centre + points.min(0)).astype(int) - 1, 0)
    high = np.minimum(np.ceil(centre + points.max(0)).astype(int) + 1, (width, height))
    if (low >= high).any():
        return None
    size = high - low

    # Filled at several times the resolution and averaged: OpenCV's own antialiasing widens the outline.
    origin = (centre - low) * _SUPERSAMPLING
    contours = [points, points * _HOLE] if thing.label == _RING else [points]
    fixed = [np.round((origin + contour * _SUPERSAMPLING - 0.5) * 2**_SHIFT).astype(np.int32) for contour in contours]
    fine = np.zeros((size[1] * _SUPERSAMPLING, size[0] * _SUPERSAMPLING), np.uint8)
    cv2.fillPoly(fine, fixed, (255,), shift=_SHIFT)
    coverage = cv2.resize(fine, tuple(size.tolist()), interpolation=cv2.INTER_AREA)

    scale = _TILE / _TILE_RADII / thing.radii[t]
    cos, sin = scale * math.cos(thing.angles[t]), scale * math.sin(thing.angles[t])
    x, y = low - centre
    matrix = np.array([[cos, sin, cos * x + sin * y + _TILE / 2], [-sin, cos, cos * y - sin * x + _TILE / 2]])
    texture = _warp(thing.texture, matrix, int(size[0]), int(size[1]))

    region = frame_HWC[low[1] : high[1], low[0] : high[0]]
    alpha = coverage[:, :, None].astype(np.float32) / 255
    region[:] = np.round(region + (texture.astype(np.float32) - region) * alpha).astype(np.uint8)
    mask = np.zeros((height, width), bool)
    mask[low[1] : high[1], low[0] : high[0]] = coverage >= 128
    return mask


def _objects(rng: np.random.Generator, config: MovingShapesConfig) -> list[_Object]:
    """The objects of a video, farthest first, with hues spread."""
    count = int(rng.integers(config.objects[0], config.objects[1] + 1))
    hues = rng.permutation(count) / count + rng.random() + rng.uniform(-0.06, 0.06, count)
    times = np.arange(config.length)
    found = []
    for hue in hues:
        label = int(rng.integers(len(CATEGORIES)))
        radius = config.height * rng.uniform(*config.radius)
        radii = radius * np.exp(0.18 * _wave(rng, times, 0.1, 0.35))
        angles = rng.uniform(0, 2 * math.pi) + rng.uniform(-0.12, 0.12) * times + 0.3 * _wave(rng, times, 0.1, 0.3)
        centres = _path(rng, config, radius)
        outlines = _deformed(rng, label, radii, angles)
        found.append(_Object(label, _texture(rng, hue), centres, radii, angles, outlines))
    return found


def render_video(config: MovingShapesConfig, seed: int, index: int) -> MovingShapesVideo:
    """Renders video `index` of the set `seed`.

    Raises:
        MsstsError: `seed` is negative.
    """
    if seed < 0:
        raise MsstsError(f"the MovingShapes seed must not be negative, not {seed}")
    rng = np.random.default_rng(np.random.SeedSequence([seed, index]))
    frames_THWC = _backgrounds(rng, config)
    objects = _objects(rng, config)
    masks_NTHW = np.zeros((len(objects), *frames_THWC.shape[:3]), bool)
    for t, frame_HWC in enumerate(frames_THWC):
        for n, thing in enumerate(objects):
            mask = _paint(frame_HWC, thing, t)
            if mask is not None:
                masks_NTHW[:n, t] &= ~mask
                masks_NTHW[n, t] = mask
    masks_NTHW &= (np.count_nonzero(masks_NTHW, axis=(2, 3)) >= MIN_VISIBLE_PIXELS)[:, :, None, None]
    seen = masks_NTHW.any(axis=(1, 2, 3))
    labels = np.array([thing.label for thing in objects], np.int64)
    return MovingShapesVideo(frames_THWC, labels[seen], masks_NTHW[seen])


def _annotation(mask_THW: np.ndarray, label: int, identity: int, video_id: int) -> dict[str, Any]:
    """The YouTube-VIS annotation of one object."""
    height, width = mask_THW.shape[1:]
    size = (height, width)
    rles = [masks.encode(mask_HW) for mask_HW in mask_THW]
    areas = masks.areas(rles, size).tolist()
    return {
        "id": identity,
        "video_id": video_id,
        "category_id": CATEGORIES[label].id,
        "iscrowd": 0,
        "height": height,
        "width": width,
        "segmentations": [masks.to_json(rle, size) if area else None for rle, area in zip(rles, areas, strict=True)],
        "bboxes": [masks.box(rle, size) if area else None for rle, area in zip(rles, areas, strict=True)],
        "areas": [area or None for area in areas],
    }


@contextmanager
def _atomic_folder(path: Path) -> Iterator[Path]:
    """Yields a new folder that becomes `path` if the block succeeds."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise MsstsError(f"{path} exists and is not an empty folder; name another one or remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        whole = temporary / path.name  # made inside, because mkdtemp's own folder is private to this user
        whole.mkdir()
        yield whole
        whole.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_dataset(out: Path | str, videos: int, seed: int, config: MovingShapesConfig, progress: bool = True) -> Path:
    """Writes the videos of the set `seed` into the folder `out`, whole or not at all.

    `JPEGImages/<video>/<frame>.jpg` and `instances.json` are laid out as in YouTube-VIS 2019 and 2021.

    Returns:
        The path of `instances.json`.

    Raises:
        MsstsError: `out` exists and is not an empty folder, cannot be written, or `videos` is less than 1.
    """
    out = Path(out)
    if videos < 1:
        raise MsstsError(f"the number of videos must be at least 1, not {videos}")
    try:
        with _atomic_folder(out) as folder:
            _write_files(folder, videos, seed, config, progress)
    except OSError as error:
        raise MsstsError(f"{out} cannot be made ({reason(error)}); expected a folder that does not exist yet") from None
    return out / "instances.json"


def _write_files(folder: Path, videos: int, seed: int, config: MovingShapesConfig, progress: bool) -> None:
    records: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in tqdm(range(videos), desc="MovingShapes", unit="video", disable=None if progress else True):
        video = render_video(config, seed, index)
        names = [f"{index:05d}/{t:05d}.jpg" for t in range(config.length)]
        (folder / "JPEGImages" / f"{index:05d}").mkdir(parents=True)
        for name, frame in zip(names, video.frames_THWC, strict=True):
            encoded = cv2.imencode(".jpg", frame[:, :, ::-1], (cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY))[1]
            (folder / "JPEGImages" / name).write_bytes(encoded.tobytes())
        size = {"width": config.width, "height": config.height, "length": config.length}
        records.append({"id": index + 1, **size, "file_names": names})
        for label, mask_THW in zip(video.labels, video.masks_NTHW, strict=True):
            annotations.append(_annotation(mask_THW, int(label), len(annotations) + 1, index + 1))
    content = {
        "info": {"description": "MovingShapes", "version": "1", "seed": seed, "config": asdict(config)},
        "licenses": [],
        "videos": records,
        "categories": [{**asdict(category), "supercategory": "shape"} for category in CATEGORIES],
        "annotations": annotations,
    }
    write_text(folder / "instances.json", json.dumps(content) + "\n")  # not indented: half of it would be spaces
