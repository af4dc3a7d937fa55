"""From the engine's output to instances in pixels of the given frames.

Runs inside Triton, so there is no torch here.

Letters: B clips, K instances of the engine, N instances returned, T frames, h and w of the engine's masks (stride 4),
H and W of the sent frames.
"""

from __future__ import annotations

import numpy as np

from mssts import masks
from mssts.runners.base import DeviceOutput, EngineOutput
from mssts.segmenters.base import Instances

_STRIDE = 4  # pixels of the engine's frame to one of its masks


def to_instances(
    output: EngineOutput | DeviceOutput,
    sizes_B2: np.ndarray,
    original_size: tuple[int, int],
    score_threshold: float = 0.0,
    clip: int = 0,
) -> Instances:
    """The instances of one clip of a batch, in pixels of the sent frames.

    A mask holds the pixels whose logit, bilinearly interpolated at the pixel's centre, is positive. Only the valid part
    of the frame counts; beyond its outermost logits it continues with their value, as in
    `torch.nn.functional.interpolate(mode="bilinear", align_corners=False)`. Boxes are clipped to the frame.

    Logits that are on a GPU are encoded there, to the same bytes.

    Args:
        output: what a runner returned.
        sizes_B2: the valid sizes (height, width) it was given.
        original_size: height and width of the frames as they were sent.
        score_threshold: instances whose score is below are left out.
        clip: which clip of the batch.
    """
    kept = np.flatnonzero(output.scores[clip] >= score_threshold)
    height, width = original_size
    valid_height, valid_width = (int(side) for side in sizes_B2[clip])
    if isinstance(output, DeviceOutput):
        valid = (valid_height, valid_width)
        rles = output.mask_logits.encode(clip, kept.tolist(), valid, original_size, _STRIDE)
    else:
        rles = encode_masks(output.mask_logits[clip][kept], (valid_height, valid_width), original_size)
    cx, cy, w, h = np.moveaxis(output.boxes[clip][kept].astype(np.float32), -1, 0)
    corners = np.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], axis=-1)
    scale = np.array([width, height, width, height], np.float32)
    return Instances(
        scores=output.scores[clip][kept].astype(np.float32),
        labels=output.labels[clip][kept].astype(np.int32),
        boxes=np.clip(corners, 0, 1) * scale,
        rles=rles,
        size=(height, width),
    )


def encode_masks(
    logits_KThw: np.ndarray, valid: tuple[int, int], size: tuple[int, int]
) -> tuple[tuple[bytes | None, ...], ...]:
    """Masks of a frame's size as COCO run-length strings, None where one has no pixel.

    Args:
        logits_KThw: mask logits of K instances in T frames, float32.
        valid: height and width of the valid part of the engine's frame.
        size: height and width of the frame.
    """
    rows, columns = (_Sampling(pixels, side) for pixels, side in zip(size, valid, strict=True))
    return tuple(
        tuple(_encode(logits_hw[: rows.logits, : columns.logits], rows, columns) for logits_hw in logits_Thw)
        for logits_Thw in logits_KThw
    )


class _Sampling:
    """Places of a frame's pixels among the mask logits, along one side.

    Attributes:
        pixels: the number of pixels.
        logits: the number of logits that touch the valid part.
        position: float64 [pixels], from 0 to logits − 1: between which two logits a pixel's centre lies, and where.
    """

    def __init__(self, pixels: int, valid: int) -> None:
        self.pixels = pixels
        self.logits = -(-valid // _STRIDE)
        # Pixel x is centred at (x + ½) · valid / pixels of the engine's frame, logit i at 4i + 2. One division, so that
        # places that are round numbers stay so.
        centre = (2 * np.arange(pixels) + 1) * valid / (2 * _STRIDE * pixels)
        self.position = np.clip(centre - 0.5, 0, self.logits - 1)
        self.lower = np.minimum(self.position.astype(np.intp), max(self.logits - 2, 0))
        self.upper = np.minimum(self.lower + 1, self.logits - 1)
        self.fraction = self.position - self.lower


def _encode(logits_hw: np.ndarray, rows: _Sampling, columns: _Sampling) -> bytes | None:
    """The run lengths of `interpolate(logits_hw, (H, W)) > 0`, without H × W values.

    A COCO run length goes down the columns. Down one column the interpolated logit is piecewise linear between the rows
    of logits, so it changes sign at most once between two rows, at a place that division gives: h × W values are enough
    for H × W pixels, and in float64 they cost less than a float32 resize of the whole frame.
    """
    positive_hw = logits_hw > 0
    rows_positive = np.flatnonzero(positive_hw.any(axis=1))
    if rows_positive.size == 0:
        return None
    columns_positive = np.flatnonzero(positive_hw.any(axis=0))
    # A positive value needs a positive logit beside it: nothing farther than one row or column away can be inside.
    top, bottom = max(rows_positive[0] - 1, 0), min(rows_positive[-1] + 1, rows.logits - 1)
    left = np.searchsorted(columns.position, columns_positive[0] - 1)
    right = np.searchsorted(columns.position, columns_positive[-1] + 1, side="right")

    logits_Wh = logits_hw[top : bottom + 1].T.astype(np.float64)
    fraction_W1 = columns.fraction[left:right, None]
    values_Wh = logits_Wh[columns.lower[left:right]] * (1 - fraction_W1)
    values_Wh += logits_Wh[columns.upper[left:right]] * fraction_W1

    # Outside the frame counts as negative, so that every column starts and ends outside the mask.
    inside_Wh = np.zeros((right - left, bottom - top + 3), bool)
    inside_Wh[:, 1:-1] = values_Wh > 0
    column, row = np.nonzero(inside_Wh[:, 1:] != inside_Wh[:, :-1])
    before = values_Wh[column, np.maximum(row - 1, 0)]
    after = values_Wh[column, np.minimum(row, bottom - top)]
    enters = inside_Wh[column, row + 1]
    with np.errstate(invalid="ignore", divide="ignore"):  # 0 / 0 at the frame's edges, which are set below
        crossing = top + row - 1 + before / (before - after)
    pixel = np.where(
        enters,
        np.searchsorted(rows.position, crossing, side="right"),  # a value of exactly 0 is outside
        np.searchsorted(rows.position, crossing, side="left"),
    )
    pixel[row == 0] = 0
    pixel[row == bottom - top + 1] = rows.pixels

    # A run that ends where the next begins (below one column and above the next, or between two pixels) is no border.
    changes, times = np.unique((left + column) * rows.pixels + pixel, return_counts=True)
    changes = changes[times % 2 == 1]
    total = rows.pixels * columns.pixels
    changes = changes[changes < total]
    if changes.size == 0:
        return None
    return masks.from_runs(np.diff(changes, prepend=0, append=total), (rows.pixels, columns.pixels))
