"""Draws masks, boxes and labels over frames, and sheets of such frames.

Each identity has its own colour.

Images are RGB uint8 [H, W, 3]; points and boxes are x, y in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from mssts import masks
from mssts.files import atomic_path

Colour = tuple[int, int, int]
_Rectangle = tuple[int, int, int, int]  # x1, y1, x2, y2, the last two exclusive

# The colours that Okabe and Ito chose to be distinguishable with any kind of colour vision, brightest contrasts first.
_FIRST_COLOURS = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (204, 121, 167),
    (213, 94, 0),
    (0, 114, 178),
)
_PALETTE_SIZE = 64
_FILL = 0.45  # opacity of a mask
_LEGIBLE_SIDE = 480  # pixels of the shorter side
_LONGEST_SIDE = 1920  # what enlarging must not exceed

# OpenCV's own: it has ASCII only, but no font file is needed.
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_SUPERSAMPLING = 4  # of text
_PAGE: Colour = (24, 26, 30)
_PAGE_TEXT: Colour = (228, 230, 235)


@dataclass(frozen=True)
class VisibleInstance:
    """An object as it is drawn into one frame.

    `mask` is a bool array [H, W] of the frame's size, or COCO compressed run lengths of it; `box` is x1, y1, x2, y2 in
    the frame's pixels, NaN or None where there is none. Without a `score` (ground truth) none is written.
    """

    track_id: int
    class_name: str
    score: float | None = None
    mask: np.ndarray | bytes | None = None
    box: Sequence[float] | np.ndarray | None = None

    @property
    def label(self) -> str:
        """The label's text: class, score, identity."""
        score = "" if self.score is None else f" {self.score:.2f}"
        return f"{self.class_name}{score} #{self.track_id}"


def palette(track_id: int) -> Colour:
    """The RGB colour of an identity, always the same and unlike the others.

    The first seven are safe for colour-blind people; each further one is the farthest from all before it in CIELAB.
    After 64 they begin again.
    """
    return _colours()[(track_id - 1) % _PALETTE_SIZE]


def legible_scale(height: int, width: int) -> int:
    """The enlargement of a frame of this size that makes labels readable.

    It is 1 from 480 pixels a side on.
    """
    wanted = math.ceil(_LEGIBLE_SIDE / min(height, width))
    return max(1, min(wanted, _LONGEST_SIDE // max(height, width)))


def draw_instances(frame_HWC: np.ndarray, instances: Sequence[VisibleInstance], scale: int = 1) -> np.ndarray:
    """Draws instances over a copy of the frame that is enlarged `scale` times.

    The first instance is on top.
    """
    height, width = frame_HWC.shape[:2]
    size = (width * scale, height * scale)
    # Masks grow with the frame, so that contours come out smooth rather than as enlarged pixels.
    image = frame_HWC.copy() if scale == 1 else cv2.resize(frame_HWC, size, interpolation=cv2.INTER_CUBIC)
    line = max(1, round(min(size) / 360))
    coverages = [_coverage(instance.mask, (height, width), scale) for instance in instances]
    boxes = [_box(instance.box, size, scale) for instance in instances]

    drawn = list(zip(instances, coverages, boxes, strict=True))
    for instance, coverage, _ in reversed(drawn):
        if coverage is not None:
            _fill(image, coverage, palette(instance.track_id))
    for instance, coverage, box in reversed(drawn):
        colour = palette(instance.track_id)
        if coverage is not None:
            outline = (coverage >= 128).astype(np.uint8)
            contours, _ = cv2.findContours(outline, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(image, contours, -1, colour, line, cv2.LINE_AA)
        if box is not None:
            cv2.rectangle(image, box[:2], (box[2] - 1, box[3] - 1), colour, line)

    text_height = max(9, round(min(size) / 38))
    taken: list[_Rectangle] = []
    for instance, coverage, box in drawn:
        anchor = box if box is not None else _bounds(coverage)
        if anchor is not None:
            taken.append(_draw_label(image, instance, anchor, text_height, taken))
    return image


def contact_sheet(images: Sequence[np.ndarray], columns: int, captions: Sequence[str] = ()) -> np.ndarray:
    """Images in rows of `columns`, each with its caption above it.

    Smaller images are centred in their cells.
    """
    if not images:
        raise ValueError("a contact sheet needs at least one image")
    columns = min(columns, len(images))
    cell_height, cell_width = (max(image.shape[axis] for image in images) for axis in (0, 1))
    gap = max(6, round(cell_width / 60))
    text_height = max(9, round(min(cell_height, cell_width) / 26))
    head = 2 * text_height if captions else 0
    rows = math.ceil(len(images) / columns)
    shape = (gap + rows * (head + cell_height + gap), gap + columns * (cell_width + gap), 3)
    sheet = np.full(shape, _PAGE, np.uint8)
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        top, left = gap + row * (head + cell_height + gap), gap + column * (cell_width + gap)
        if index < len(captions):
            _write(sheet, captions[index], (left, top + (head - text_height) // 3), text_height, cell_width, _PAGE_TEXT)
        y = top + head + (cell_height - image.shape[0]) // 2
        x = left + (cell_width - image.shape[1]) // 2
        sheet[y : y + image.shape[0], x : x + image.shape[1]] = image
    return sheet


def write_png(path: Path | str, image_HWC: np.ndarray) -> None:
    """Writes an image, atomically.

    Raises:
        MsstsError: the file cannot be written.
    """
    _, encoded = cv2.imencode(".png", cv2.cvtColor(image_HWC, cv2.COLOR_RGB2BGR))
    with atomic_path(path) as temporary:
        temporary.write_bytes(encoded.tobytes())


# --- colours ------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _colours() -> tuple[Colour, ...]:
    steps = np.arange(0, 256, 15, dtype=np.uint8)
    candidates = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = _lab(candidates)
    # Neither so dark or grey as to be lost in a picture, nor so light that only white is left.
    vivid = (lab[:, 0] > 45) & (lab[:, 0] < 90) & (np.hypot(lab[:, 1], lab[:, 2]) > 40)
    candidates, lab = candidates[vivid], lab[vivid]
    chosen = np.array(_FIRST_COLOURS, np.uint8)
    distance = np.linalg.norm(lab[:, None] - _lab(chosen)[None], axis=-1).min(axis=1)
    while len(chosen) < _PALETTE_SIZE:
        farthest = int(distance.argmax())
        chosen = np.concatenate([chosen, candidates[farthest, None]])
        distance = np.minimum(distance, np.linalg.norm(lab - lab[farthest], axis=-1))
    return tuple((int(r), int(g), int(b)) for r, g, b in chosen)


def _lab(colours: np.ndarray) -> np.ndarray:
    return cv2.cvtColor((colours[None] / 255).astype(np.float32), cv2.COLOR_RGB2LAB)[0]


# --- masks and boxes ----------------------------------------------------------------------------------------------


def _coverage(mask: np.ndarray | bytes | None, size: tuple[int, int], scale: int) -> np.ndarray | None:
    """Coverage of each pixel of the enlarged frame by a mask, uint8 [H, W].

    None if the mask is empty.
    """
    if mask is None:
        return None
    pixels = masks.decode(mask, size) if isinstance(mask, bytes) else mask
    if pixels.shape != size:
        raise ValueError(f"a mask of {pixels.shape} does not fit a frame of {size}")
    if not pixels.any():
        return None
    coverage: np.ndarray = np.ascontiguousarray(pixels, np.uint8) * 255
    if scale == 1:
        return coverage
    enlarged = cv2.resize(coverage, (size[1] * scale, size[0] * scale), interpolation=cv2.INTER_LINEAR)
    return cv2.GaussianBlur(enlarged, (0, 0), 0.7 * scale)


def _fill(image: np.ndarray, coverage: np.ndarray, colour: Colour) -> None:
    x, y, width, height = cv2.boundingRect(coverage)
    _blend(image, coverage[y : y + height, x : x + width], (x, y), colour, _FILL)


def _box(box: Sequence[float] | np.ndarray | None, size: tuple[int, int], scale: int) -> _Rectangle | None:
    """A box in whole pixels of the enlarged frame, inside it.

    None if nothing of it is visible.
    """
    if box is None or not np.isfinite(box).all():
        return None
    x1, y1, x2, y2 = (round(float(edge) * scale) for edge in box)
    x1, y1, x2, y2 = max(x1, 0), max(y1, 0), min(x2, size[0]), min(y2, size[1])
    return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None


def _bounds(coverage: np.ndarray | None) -> _Rectangle | None:
    if coverage is None:
        return None
    x, y, width, height = cv2.boundingRect(coverage)
    return x, y, x + width, y + height


# --- text ---------------------------------------------------------------------------------------------------------


def _draw_label(
    image: np.ndarray, instance: VisibleInstance, anchor: _Rectangle, text_height: int, taken: Sequence[_Rectangle]
) -> _Rectangle:
    """Writes a label at its object, clear of the labels in `taken`.

    It stands over the box where there is room.
    """
    frame_height, frame_width = image.shape[:2]
    pad = max(2, round(text_height / 3))
    text, font_scale, width = _fitted(instance.label, text_height, frame_width - 2 * pad)
    width, height = width + 2 * pad, min(text_height + 2 * pad, frame_height)
    x1, y1, _, y2 = anchor
    x = min(max(x1, 0), frame_width - width)
    # Above the box, inside its upper edge, below it; and if labels are there, ever further down, then up.
    tops = [y1 - height, y1, y2, *range(y1 + height, frame_height, height), *range(y1 - 2 * height, -1, -height)]
    places = [(x, y, x + width, y + height) for y in (min(max(top, 0), frame_height - height) for top in tops)]
    place = next((place for place in places if not any(_overlap(place, other) for other in taken)), places[0])
    colour = palette(instance.track_id)
    cv2.rectangle(image, place[:2], (place[2] - 1, place[3] - 1), colour, cv2.FILLED)
    luminance = np.dot(colour, (0.299, 0.587, 0.114))
    ink: Colour = (0, 0, 0) if luminance > 120 else (255, 255, 255)
    _put(image, text, (place[0] + pad, place[1] + pad), text_height, font_scale, ink)
    return place


def _overlap(a: _Rectangle, b: _Rectangle) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _write(image: np.ndarray, text: str, at: tuple[int, int], text_height: int, max_width: int, colour: Colour) -> None:
    text, font_scale, _ = _fitted(text, text_height, max_width)
    _put(image, text, at, text_height, font_scale, colour)


def _fitted(text: str, text_height: int, max_width: int) -> tuple[str, float, int]:
    """The text cut to fit, its font scale, and its width in pixels.

    The font scale gives capitals the wanted height.
    """
    font_scale = cv2.getFontScaleFromHeight(_FONT, text_height)
    text = text.encode("ascii", "replace").decode()

    def width(part: str) -> int:
        return cv2.getTextSize(part, _FONT, font_scale, 1)[0][0]

    if width(text) > max_width:
        text = next((text[:end] + ".." for end in range(len(text), 0, -1) if width(text[:end] + "..") <= max_width), "")
    return text, font_scale, width(text)


def _put(
    image: np.ndarray, text: str, at: tuple[int, int], text_height: int, font_scale: float, colour: Colour
) -> None:
    """Writes text whose capitals fill `text_height` below `at`."""
    (width, _), descent = cv2.getTextSize(text, _FONT, font_scale, 1)
    # OpenCV's strokes are whole pixels wide; drawn larger and averaged, they come out even.
    shape = (text_height + descent + 1, width + 2)
    ink = np.zeros((shape[0] * _SUPERSAMPLING, shape[1] * _SUPERSAMPLING), np.uint8)
    thickness = max(1, round(text_height * _SUPERSAMPLING / 9))
    origin = (_SUPERSAMPLING, text_height * _SUPERSAMPLING)
    cv2.putText(ink, text, origin, _FONT, font_scale * _SUPERSAMPLING, (255,), thickness, cv2.LINE_AA)
    _blend(image, cv2.resize(ink, shape[::-1], interpolation=cv2.INTER_AREA), (at[0] - 1, at[1]), colour, 1.0)


def _blend(image: np.ndarray, coverage: np.ndarray, at: tuple[int, int], colour: Colour, opacity: float) -> None:
    """Paints `colour` over the image at `at`, weighted by `coverage`.

    `coverage` is uint8, and what lies outside the image is left out.
    """
    region = image[at[1] : at[1] + coverage.shape[0], at[0] : at[0] + coverage.shape[1]]
    alpha = coverage[: region.shape[0], : region.shape[1], None] * np.float32(opacity / 255)
    region[:] = np.rint(region + (np.array(colour, np.float32) - region) * alpha)
