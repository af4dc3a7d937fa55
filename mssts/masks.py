"""Masks as COCO run lengths: read from JSON, made from pixels, decoded, compared.

Inside the code a mask is the compressed run-length string (bytes), or None where an object is not visible; the height
and width of its frame come beside it, as `size`. Each operation is done by the faster of two libraries whose answers
are equal: rlemasklib encodes, decodes and compares, pycocotools measures.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import rlemasklib
from pycocotools import mask as coco_mask

from mssts.data.fields import MAX_SIDE, Box, Field

Size = tuple[int, int]  # height and width

# A number is a group of 5 bits a character, from `0` on; all but its last group have bit 5 set. Both libraries trust
# their input: pycocotools reads beyond a string that is cut off, and numbers of more than 6 groups overflow.
_WELL_FORMED = re.compile(rb"(?:[P-o]{0,5}[0-O])+")


# --- JSON ---------------------------------------------------------------------------------------------------------


def read_mask(field: Field, frame: str, size: Size) -> bytes:
    """A mask in any of COCO's three forms.

    They are polygons and run lengths down the columns, compressed or not.

    Args:
        field: the mask's place in its file.
        frame: what messages call the thing that it belongs to.
        size: of the frame.

    Raises:
        MsstsError: it is none of these, is of another size, or does not fill the frame; the message names the field.
    """
    if isinstance(field.value, list):
        return _from_polygons(field, size)
    counts, given = field.get("counts"), field.get("size").integers()
    if given != list(size):
        field.get("size").fail(f"is {given}, but {frame} is {list(size)} (height, width)")

    pixels = size[0] * size[1]
    if isinstance(counts.value, list):
        covered = sum(counts.integers())
        if covered != pixels:
            counts.fail(f"covers {covered} pixels, the frame has {pixels}")
        return from_runs(counts.value, size)
    # pycocotools.mask.encode gives bytes, JSON a string.
    rle = counts.value if isinstance(counts.value, bytes) else counts.string().encode("utf-8", "surrogatepass")
    if not _WELL_FORMED.fullmatch(rle):
        counts.fail(f"is not a COCO run-length string: {counts.shown()}")
    try:
        rlemasklib.RLEMask.from_dict(_object(rle, size))
    except ValueError:
        counts.fail(f"is a COCO run-length string, but not of the {pixels} pixels of the frame: {counts.shown()}")
    return rle


def _from_polygons(field: Field, size: Size) -> bytes:
    polygons = [polygon.numbers() for polygon in field.items()]
    if not polygons:
        field.fail("is an empty list of polygons; write null where the object is not visible")
    for polygon, entry in zip(polygons, field.items(), strict=True):
        if len(polygon) < 6 or len(polygon) % 2:
            entry.fail(f"has {len(polygon)} numbers, a polygon has an even number of at least 6 (x1, y1, x2, y2, …)")
        # pycocotools walks the outline pixel by pixel, however far away it is.
        if max(map(abs, polygon)) > 2 * MAX_SIDE:
            entry.fail("lies far outside the frame")
    merged: bytes = coco_mask.merge(coco_mask.frPyObjects(polygons, *size))["counts"]
    return merged


def to_json(rle: bytes | None, size: Size) -> dict[str, Any] | None:
    """A mask as in COCO's JSON files, null where there is none."""
    return None if rle is None else {"size": list(size), "counts": rle.decode("ascii")}


# --- pixels -------------------------------------------------------------------------------------------------------


def encode(mask_HW: np.ndarray) -> bytes:
    """The run lengths of a bool mask, in memory order of rows or of columns."""
    rle: bytes = rlemasklib.encode(mask_HW.view(np.uint8))["counts"]
    return rle


def from_runs(counts: Sequence[int] | np.ndarray, size: Size) -> bytes:
    """Compresses runs down the columns, the first of them outside the mask."""
    rle: bytes = coco_mask.frPyObjects({"size": size, "counts": counts}, *size)["counts"]
    return rle


def decode(rle: bytes, size: Size) -> np.ndarray:
    """The pixels of a mask, bool [H, W]."""
    return rlemasklib.decode(_object(rle, size)).view(bool)


# --- measures -----------------------------------------------------------------------------------------------------


def areas(rles: Sequence[bytes], size: Size) -> np.ndarray:
    """The pixels in each of N masks, int64 [N]."""
    return np.asarray(coco_mask.area([_object(rle, size) for rle in rles]), np.int64)


def box(rle: bytes, size: Size) -> Box:
    """The extent of a mask: x, y, width and height in pixels, all 0 of an empty one."""
    x, y, width, height = coco_mask.toBbox(_object(rle, size)).tolist()
    return x, y, width, height


def iou(first: Sequence[bytes], second: Sequence[bytes], size: Size) -> np.ndarray:
    """Intersection over union of each of N masks with each of M, float64 [N, M].

    It is 0 for two empty masks.
    """
    masks = [[rlemasklib.RLEMask.from_dict(_object(rle, size)) for rle in rles] for rles in (first, second)]
    return rlemasklib.RLEMask.iou_matrix(*masks)


def intersections(first: Sequence[bytes], second: Sequence[bytes], size: Size) -> np.ndarray:
    """The pixels that each of N masks has in common with each of M, int64 [N, M]."""
    iou_NM = iou(first, second, size)
    areas_NM = areas(first, size)[:, None] + areas(second, size)
    # IoU = i / (areas − i); what this gives is a whole number but for rounding.
    return np.rint(areas_NM * iou_NM / (1 + iou_NM)).astype(np.int64)


def without_overlap(rles: Sequence[bytes], size: Size) -> list[bytes | None]:
    """Each mask less the pixels of those before it, None where nothing is left."""
    rest: list[bytes | None] = []
    taken = rlemasklib.RLEMask.zeros(size)
    for rle in rles:
        mask = rlemasklib.RLEMask.from_dict(_object(rle, size))
        left = mask - taken
        rest.append(left.to_dict()["counts"] if left.any() else None)
        taken = taken | mask
    return rest


def _object(rle: bytes, size: Size) -> dict[str, Any]:
    return {"size": size, "counts": rle}
