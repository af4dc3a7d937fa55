"""Masks of COCO JSON files, checked before pycocotools sees them.

pycocotools trusts what it is given: a string that is cut off makes it read past the end, and run lengths that do not
fill the frame make its IoU run forever. A results file comes from anywhere, so all of that is refused here.
"""

from __future__ import annotations

from typing import Any

from pycocotools import mask as coco_mask

from mssts.data.rle import run_lengths
from mssts.errors import MsstsError

_FARTHEST = 1e6  # pixels; pycocotools walks along a polygon pixel by pixel


def read_mask(value: Any, where: str, size: tuple[int, int]) -> dict[str, Any] | None:
    """A mask as compressed run lengths, whichever of COCO's three forms it came in; None where there is no mask.

    Args:
        value: compressed or uncompressed run lengths, polygons, or null (an empty list or object says the same).
        where: words that name the mask in an error.
        size: height and width of the frame.

    Raises:
        MsstsError: it is none of these, is of another size, or does not fill the frame.
    """
    if value is None or value in ([], {}):
        return None
    if isinstance(value, list):
        return _from_polygons(value, where, size)
    if not isinstance(value, dict) or "counts" not in value or "size" not in value:
        raise MsstsError(f"{where}: expected run lengths with size and counts, or null, found {json_kind(value)}")
    if not isinstance(value["size"], (list, tuple)) or tuple(value["size"]) != size:
        raise MsstsError(f"{where}: size is {value['size']}, but the video's frames are {list(size)} (height, width)")
    counts = value["counts"]
    if isinstance(counts, list):
        are_runs = all(isinstance(count, int) and count >= 0 for count in counts)
        _check_total(sum(counts) if are_runs else None, where, size)
        return coco_mask.frPyObjects(value, *size)
    if isinstance(counts, str):
        counts = counts.encode(errors="replace")
    runs = run_lengths(counts) if isinstance(counts, bytes) else None
    _check_total(int(runs.sum()) if runs is not None and runs.min() >= 0 else None, where, size)
    return {"size": list(size), "counts": counts}


def json_kind(value: Any) -> str:
    """What a JSON value is, for people."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, (int, float)) else type(value).__name__)


def _check_total(total: int | None, where: str, size: tuple[int, int]) -> None:
    if total is None:
        raise MsstsError(f"{where}: counts are not COCO run lengths")
    if total != size[0] * size[1]:
        raise MsstsError(f"{where}: counts add up to {total} pixels, the frame has {size[0]} × {size[1]}")


def _from_polygons(polygons: list[Any], where: str, size: tuple[int, int]) -> dict[str, Any]:
    for polygon in polygons:
        is_polygon = isinstance(polygon, list) and len(polygon) >= 4
        if not is_polygon or not all(isinstance(number, (int, float)) for number in polygon):
            raise MsstsError(f"{where}: expected run lengths, null, or polygons [[x1, y1, x2, y2, …], …]")
        if not all(abs(number) <= _FARTHEST for number in polygon):  # NaN is not less than anything
            raise MsstsError(f"{where}: a polygon lies far outside the frame")
    return coco_mask.merge(coco_mask.frPyObjects(polygons, *size))
