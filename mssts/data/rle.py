"""Masks as COCO writes them: polygons, or run lengths down the columns, compressed or not."""

from __future__ import annotations

import numpy as np
import pycocotools.mask

from mssts.data.fields import MAX_SIDE, Field


def read_rle(field: Field, frame: str, height: int, width: int) -> bytes:
    """A mask of any of COCO's three forms, as compressed run lengths. Messages call what it belongs to `frame`."""
    if isinstance(field.value, list):
        return _from_polygons(field, height, width)
    counts = field.get("counts")
    size = field.get("size").integers()
    if size != [height, width]:
        field.get("size").fail(f"is {size}, but {frame} is [{height}, {width}] (height, width)")

    pixels = height * width
    if isinstance(counts.value, list):
        covered = sum(counts.integers())
        if covered != pixels:
            counts.fail(f"covers {covered} pixels, the frame has {pixels}")
        return pycocotools.mask.frPyObjects(field.value, height, width)["counts"]
    text = counts.string()
    decoded = run_lengths(text.encode("utf-8", "surrogatepass"))
    if decoded is None or (decoded < 0).any():
        counts.fail(f"is not a COCO run-length string: {counts.shown()}")
    if int(decoded.sum()) != pixels:
        counts.fail(f"covers {int(decoded.sum())} pixels, the frame has {pixels}")
    return text.encode("ascii")


def _from_polygons(field: Field, height: int, width: int) -> bytes:
    polygons = [polygon.numbers() for polygon in field.items()]
    if not polygons:
        field.fail("is an empty list of polygons; write null where the object is not visible")
    for polygon, entry in zip(polygons, field.items(), strict=True):
        if len(polygon) < 6 or len(polygon) % 2:
            entry.fail(f"has {len(polygon)} numbers, a polygon has an even number of at least 6 (x1, y1, x2, y2, …)")
        # pycocotools walks the outline pixel by pixel, however far away it is.
        if max(map(abs, polygon)) > 2 * MAX_SIDE:
            entry.fail("lies far outside the frame")
    rles = pycocotools.mask.frPyObjects(polygons, height, width)
    return pycocotools.mask.merge(rles)["counts"]


def run_lengths(counts: bytes) -> np.ndarray | None:
    """The runs (background first) that a COCO run-length string stands for, int64; None if it is malformed.

    pycocotools' own reader trusts its input: it reads beyond a truncated string.

    The format: numbers in groups of 5 bits, least significant first, each a printable character from `0`; bit 5 says
    that the number continues, bit 4 of its last group is the sign; from the fourth on, a number is the difference to
    the run two before it.
    """
    groups = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    if not groups.size or groups.min() < 0 or groups.max() > 63 or groups[-1] & 32:
        return None
    last = np.flatnonzero((groups & 32) == 0)
    first = np.concatenate([[0], last[:-1] + 1])
    sizes = last - first + 1
    if sizes.max() > 7:  # 35 bits: more than any run of pixels, and far from overflow
        return None
    shifts = 5 * (np.arange(groups.size) - np.repeat(first, sizes))
    runs = np.add.reduceat((groups & 31) << shifts, first)
    runs -= np.where(groups[last] & 16, 1 << (5 * sizes), 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs
