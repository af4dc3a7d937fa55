"""Objects of one window, from the several hypotheses that an engine has of each.

Letters: N instances, K and L lists of masks, T frames, D bins of colour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mssts import masks
from mssts.segmenters.base import Instances


@dataclass(frozen=True)
class Detection:
    """An object in a window of T frames.

    Attributes:
        scores: by label. An engine's best instances often hold one object under several classes.
        rles: its masks, as in `Instances`.
        boxes_T4: float32, x1 y1 x2 y2 in pixels.
        colours_D: as `colour_histograms` gives them, zeros if unknown.
    """

    scores: dict[int, float]
    rles: tuple[bytes | None, ...]
    boxes_T4: np.ndarray
    colours_D: np.ndarray

    @property
    def score(self) -> float:
        """The best of its classes' scores."""
        return max(self.scores.values())


def detections(
    found: Instances, colours_ND: np.ndarray | None = None, same_object_iou: float | None = 0.7
) -> list[Detection]:
    """The objects of a window, best first.

    An engine returns the best pairs of query and class, so an object comes several times: with the same masks under
    other classes, and with almost the same masks from other queries. The masks are those of the best, and a class has
    its best score. Instances without a mask are left out.

    Args:
        found: the instances.
        colours_ND: what `colour_histograms` gives for them.
        same_object_iou: from which overlap over the window on the masks of two queries are of one object; None keeps
            every instance for itself.
    """
    visible = [n for n, rles in enumerate(found.rles) if any(rle is not None for rle in rles)]
    visible.sort(key=lambda n: -found.scores[n])
    first_of: dict[tuple[bytes | None, ...], int] = {}
    of_query: dict[int, list[int]] = {}  # the instances with the masks of each first one
    for n in visible:
        first = n if same_object_iou is None else first_of.setdefault(found.rles[n], n)
        of_query.setdefault(first, []).append(n)
    firsts = list(of_query)
    merged: dict[int, list[int]] = {}  # by place in `firsts`
    if same_object_iou is None:
        merged = dict(enumerate(of_query.values()))
    else:
        rles = [found.rles[n] for n in firsts]
        iou_KK = mask_iou(rles, rles, found.size)
        for k, first in enumerate(firsts):
            same = next((kept for kept in merged if iou_KK[k, kept] >= same_object_iou), k)
            merged.setdefault(same, []).extend(of_query[first])
    objects = []
    for k, members in merged.items():
        scores: dict[int, float] = {}
        for n in members:
            label = int(found.labels[n])
            scores[label] = max(scores.get(label, 0.0), float(found.scores[n]))
        best = firsts[k]
        colours_D = np.zeros(1) if colours_ND is None else colours_ND[best]
        objects.append(Detection(scores, found.rles[best], found.boxes[best], colours_D))
    return objects


def mask_iou(
    first: Sequence[Sequence[bytes | None]], second: Sequence[Sequence[bytes | None]], size: tuple[int, int]
) -> np.ndarray:
    """Spatio-temporal IoU [K, L] of masks over the same frames, 0 where one has none."""
    intersection_KL = np.zeros((len(first), len(second)))
    areas_KL = np.zeros((len(first), len(second)))  # of both
    for t in range(len(first[0]) if first and second else 0):
        left = {k: rle for k, rles in enumerate(first) if (rle := rles[t]) is not None}
        right = {n: rle for n, rles in enumerate(second) if (rle := rles[t]) is not None}
        rows, columns = list(left), list(right)
        intersection_KL[np.ix_(rows, columns)] += masks.intersections(list(left.values()), list(right.values()), size)
        areas_KL[rows] += masks.areas(list(left.values()), size)[:, None]
        areas_KL[:, columns] += masks.areas(list(right.values()), size)
    union_KL = areas_KL - intersection_KL
    return np.divide(intersection_KL, union_KL, out=np.zeros_like(union_KL), where=union_KL > 0)


def box_iou(first_KT4: np.ndarray, second_LT4: np.ndarray) -> np.ndarray:
    """Spatio-temporal IoU [K, L] of boxes over the same T frames."""
    first_K1T4, second_1LT4 = first_KT4[:, None].astype(np.float64), second_LT4[None].astype(np.float64)
    low = np.maximum(first_K1T4[..., :2], second_1LT4[..., :2])
    high = np.minimum(first_K1T4[..., 2:], second_1LT4[..., 2:])
    intersection_KL = np.clip(high - low, 0, None).prod(axis=-1).sum(axis=-1)
    areas = [(boxes[..., 2:] - boxes[..., :2]).prod(axis=-1).sum(axis=-1) for boxes in (first_K1T4, second_1LT4)]
    return intersection_KL / np.maximum(areas[0] + areas[1] - intersection_KL, 1e-9)
