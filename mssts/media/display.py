"""A decoded frame as a player shows it: upright, in square pixels and SDR colours."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import av
import cv2
import numpy as np
from av.video.reformatter import Colorspace

from mssts.contract import LIMITS
from mssts.errors import MsstsError
from mssts.media.images import size_text
from mssts.media.orientation import Orientation
from mssts.media.tone_mapping import HLG, PQ, to_sdr

_UNSPECIFIED = 2  # a colour space's code (ITU-T H.273)


def displayed(frame: av.VideoFrame, transfer: int, aspect: Fraction, name: str) -> np.ndarray:
    """The pixels of a decoded frame, RGB uint8 [H, W, 3].

    Args:
        frame: as decoded.
        transfer: the code of its transfer function (ITU-T H.273).
        aspect: of a pixel, width to height.
        name: of its video, for messages.

    Raises:
        MsstsError: it is displayed so wide that it has more pixels than a frame may.
    """
    if transfer in (PQ, HLG):
        space = Colorspace.BT2020 if frame.colorspace == _UNSPECIFIED else None
        signal_HWC = frame.reformat(format="rgb48le", src_colorspace=space).to_ndarray()
        rgb_HWC = to_sdr(signal_HWC, transfer)
    else:
        rgb_HWC = frame.to_ndarray(format="rgb24")
    if aspect != 1:
        rgb_HWC = _square_pixels(rgb_HWC, aspect, name)
    matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    return rgb_HWC if matrix is None else Orientation.from_display_matrix(bytes(matrix)).apply(rgb_HWC)


def _square_pixels(rgb_HWC: np.ndarray, aspect: Fraction, name: str) -> np.ndarray:
    """The height stays and the width becomes what players make of it."""
    height, width, _ = rgb_HWC.shape
    wide = max(1, round(width * aspect))
    if wide > width and height * wide > LIMITS.pixels:
        raise MsstsError(
            f"{name}: displayed at {size_text((height, wide))}, as its pixels are {aspect} as wide as "
            f"high, which is over the limit of {LIMITS.pixels} pixels; scale it down"
        )
    interpolation = cv2.INTER_LINEAR if wide > width else cv2.INTER_AREA
    return cv2.resize(rgb_HWC, (wide, height), interpolation=interpolation)
