"""Colours of instances: what an object looks like, to know it again.

Every engine's masks allow it, so it asks nothing of the contract. Measured on MovingShapes (docs/benchmarks.md), it is
what linking gains most from.

Letters: N instances, K tracks, D bins.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from mssts import masks
from mssts.media.video import Frame
from mssts.segmenters.base import Instances

_LIGHTNESSES, _HUES = 4, 8  # bins of L*, and of a* and b* each
_HUE_STEP = 12  # a* and b* a bin; what lies beyond falls into the outermost
BINS = _LIGHTNESSES * _HUES * _HUES
_PICTURES = 3  # of a window that are looked at
_ROWS = 144  # of a picture, about; more rows tell no more of the colours


def colour_histograms(found: Instances, frames: Sequence[Frame]) -> np.ndarray:
    """Shares of the colours under each instance's masks, float32 [N, D].

    The CIE L*a*b* colours of three frames spread over the window, at low resolution. A row sums to 1, or is 0 for an
    instance without a pixel there.

    Args:
        found: the instances of a window.
        frames: of that window.

    Raises:
        MsstsError: an image is corrupt.
    """
    histograms_ND = np.zeros((len(found), BINS), np.float32)
    chosen = sorted({0, len(frames) // 2, len(frames) - 1})
    step = max(1, found.size[0] // _ROWS)
    of_query: dict[tuple[bytes | None, ...], np.ndarray] = {}  # hypotheses of one query have the same masks
    bins = {t: _bins(frames[t].rgb_HWC[::step, ::step]) for t in chosen} if len(found) else {}
    for n, rles in enumerate(found.rles):
        if rles not in of_query:
            counts_D = np.zeros(BINS, np.int64)
            for t in chosen:
                rle = rles[t]
                if rle is not None:
                    inside_HW = masks.decode(rle, found.size)[::step, ::step]
                    counts_D += np.bincount(bins[t][inside_HW], minlength=BINS)
            of_query[rles] = counts_D / max(counts_D.sum(), 1)
        histograms_ND[n] = of_query[rles]
    return histograms_ND


def without_hues(histograms_ND: np.ndarray) -> np.ndarray:
    """The histograms that grey pictures of the same lightness would have."""
    lightness_NL = histograms_ND.reshape(len(histograms_ND), _LIGHTNESSES, -1).sum(axis=-1)
    grey_NLHH = np.zeros((len(histograms_ND), _LIGHTNESSES, _HUES, _HUES), histograms_ND.dtype)
    grey_NLHH[:, :, _HUES // 2, _HUES // 2] = lightness_NL
    return grey_NLHH.reshape(histograms_ND.shape)


def likeness(first_KD: np.ndarray, second_ND: np.ndarray) -> np.ndarray:
    """Bhattacharyya coefficients [K, N] of histograms, 1 for equal ones.

    An empty one is like any other.
    """
    first_KD, second_ND = _normalised(first_KD), _normalised(second_ND)
    alike_KN = np.clip(np.sqrt(first_KD) @ np.sqrt(second_ND).T, 0, 1)
    known_KN = first_KD.any(axis=1)[:, None] & second_ND.any(axis=1)
    return np.where(known_KN, alike_KN, 1.0)


def _normalised(histograms_ND: np.ndarray) -> np.ndarray:
    total_N1 = histograms_ND.sum(axis=1, keepdims=True)
    return np.divide(histograms_ND, total_N1, out=np.zeros_like(histograms_ND), where=total_N1 > 0)


def _bins(rgb_HWC: np.ndarray) -> np.ndarray:
    """The bin of each pixel, int [H, W]."""
    lab_HWC = cv2.cvtColor(np.ascontiguousarray(rgb_HWC), cv2.COLOR_RGB2LAB).astype(np.int32)
    lightness_HW = lab_HWC[..., 0] * _LIGHTNESSES // 256
    hues_HW2 = np.clip((lab_HWC[..., 1:] - 128) // _HUE_STEP + _HUES // 2, 0, _HUES - 1)
    return (lightness_HW * _HUES + hues_HW2[..., 0]) * _HUES + hues_HW2[..., 1]
