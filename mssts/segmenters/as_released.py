"""Frames and masks resized as in the released `inference.py`.

For comparisons with published figures. It differs from `preprocessing` and `postprocessing` in three ways: the long
edge has no limit and no side is rounded to a multiple, frames are resized by Pillow's bilinear filter instead of area
averages, and all of the mask logits are stretched over the frame, even where they reach up to 7 pixels beyond it.

Letters: T frames, H and W of a frame, C its three colours.
"""

from __future__ import annotations

import math

import numpy as np

from mssts.contract import Limits
from mssts.segmenters.preprocessing import check_clip, check_pixels

_FRACTION_BITS = 22  # of Pillow's whole-number weights for images of 8 bits
_STRIDE = 8  # pixels of the finest feature map, in whole numbers of which the masks cover a frame


def released_size(height: int, width: int, short_edge: int) -> tuple[int, int]:
    """The size after torchvision's `Resize(short_edge)`, the long edge cut to a whole."""
    shorter = min(height, width)
    return height * short_edge // shorter, width * short_edge // shorter


def released_input(frames_THWC: np.ndarray, short_edge: int, limits: Limits) -> tuple[np.ndarray, np.ndarray]:
    """A clip as engine input, resized as released (see `preprocessing.engine_input`).

    Raises:
        MsstsError: the clip is over the limits, before or after it was resized.
    """
    check_clip(frames_THWC, limits)
    frames, height, width, _ = frames_THWC.shape
    size = released_size(height, width, short_edge)
    check_pixels(frames, *size, limits)
    resized_THWC = np.empty((frames, *size, 3), np.uint8)
    for source_HWC, target_HWC in zip(frames_THWC, resized_THWC, strict=True):
        target_HWC[...] = resize_bilinear(source_HWC, size)
    return resized_THWC[None], np.array([size], np.int32)


def mask_extent(sizes_B2: np.ndarray) -> np.ndarray:
    """The sizes that mask logits cover, which are stretched over the frame."""
    return -(-sizes_B2 // _STRIDE) * _STRIDE


def resize_bilinear(image_HWC: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The image resized to the bit as by `PIL.Image.resize(…, BILINEAR)`.

    The filter is a triangle, which widens as far as the image shrinks. Rows come first, then columns, each rounded to
    uint8. (From version 13 on, Pillow takes columns first where the height shrinks much more than the width. That
    does not occur here, where both shrink equally.)
    """
    for axis in (1, 0):
        if image_HWC.shape[axis] != size[axis]:
            image_HWC = _resize_axis(image_HWC, axis, size[axis])
    return image_HWC


def _resize_axis(image_HWC: np.ndarray, axis: int, length: int) -> np.ndarray:
    index_lk, weight_lk = _taps(image_HWC.shape[axis], length)
    shape = [1, 1, 1]
    shape[axis] = length
    total = np.int32(1 << (_FRACTION_BITS - 1))  # a half, so that the shift below rounds
    for k in range(index_lk.shape[1]):
        total = total + image_HWC.take(index_lk[:, k], axis).astype(np.int32) * weight_lk[:, k].reshape(shape)
    return np.asarray(total >> _FRACTION_BITS, np.uint8)


def _taps(old: int, new: int) -> tuple[np.ndarray, np.ndarray]:
    """For each new pixel of an axis, indices and whole-number weights of the old ones."""
    scale = old / new
    widening = max(scale, 1.0)
    centre_l1 = ((np.arange(new) + 0.5) * scale)[:, None]
    first_l1 = np.maximum((centre_l1 - widening + 0.5).astype(np.intp), 0)
    end_l1 = np.minimum((centre_l1 + widening + 0.5).astype(np.intp), old)
    index_lk = first_l1 + np.arange(2 * math.ceil(widening) + 1)
    triangle_lk = np.maximum(1 - np.abs((index_lk - centre_l1 + 0.5) / widening), 0) * (index_lk < end_l1)
    weight_lk = triangle_lk / triangle_lk.sum(1, keepdims=True)
    whole_lk = np.floor(weight_lk * (1 << _FRACTION_BITS) + 0.5).astype(np.int32)
    return np.minimum(index_lk, old - 1), whole_lk
