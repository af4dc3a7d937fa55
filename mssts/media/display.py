"""Decoded frames as a player shows them: upright, in square pixels and SDR."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import av
import cv2
import numpy as np
from av.video.reformatter import Colorspace, VideoReformatter

from mssts.contract import LIMITS
from mssts.errors import MsstsError
from mssts.media.images import size_text
from mssts.media.orientation import Orientation
from mssts.media.tone_mapping import HLG, PQ, to_sdr

_UNSPECIFIED = 2  # a colour space's code (ITU-T H.273)


class Display:
    """Shows the decoded frames of one video.

    Not to be shared between threads.

    Args:
        aspect: of a pixel, width to height.
        name: of the video, for messages.
    """

    def __init__(self, aspect: Fraction, name: str) -> None:
        self._aspect = aspect
        self._name = name
        self._converter = VideoReformatter()  # one for all frames, as setting it up takes as long as its work
        self._orientation: Orientation | None = None
        self._rotation = 0

    def pixels(self, frame: av.VideoFrame, transfer: int) -> np.ndarray:
        """The pixels of a frame, RGB uint8 [H, W, 3].

        Args:
            frame: as decoded.
            transfer: the code of its transfer function (ITU-T H.273).

        Raises:
            MsstsError: it is displayed so wide that it has more pixels than a frame may.
        """
        if transfer in (PQ, HLG):
            space = Colorspace.BT2020 if frame.colorspace == _UNSPECIFIED else None
            signal = self._converter.reformat(frame, format="rgb48le", src_colorspace=space)
            rgb_HWC = to_sdr(signal.to_ndarray(), transfer)
        else:
            rgb_HWC = self._converter.reformat(frame, format="rgb24").to_ndarray()
        if self._aspect != 1:
            rgb_HWC = self._square_pixels(rgb_HWC)
        return self._oriented(frame).apply(rgb_HWC)

    def _oriented(self, frame: av.VideoFrame) -> Orientation:
        # Asking for a frame's side data makes a cycle of references, which keeps its pixels until Python happens to
        # look for cycles: hundreds of megabytes in large videos. So only the first frame and a change are asked.
        rotation = getattr(frame, "rotation", 0)
        if self._orientation is None or rotation != self._rotation:
            self._rotation = rotation
            matrix: Any = frame.side_data.get("DISPLAYMATRIX")
            self._orientation = Orientation() if matrix is None else Orientation.from_display_matrix(bytes(matrix))
        return self._orientation

    def _square_pixels(self, rgb_HWC: np.ndarray) -> np.ndarray:
        """The height stays and the width becomes what players make of it."""
        height, width, _ = rgb_HWC.shape
        wide = max(1, round(width * self._aspect))
        if wide > width and height * wide > LIMITS.pixels:
            raise MsstsError(
                f"{self._name}: displayed at {size_text((height, wide))}, as its pixels are {self._aspect} as wide as "
                f"high, which is over the limit of {LIMITS.pixels} pixels; scale it down"
            )
        interpolation = cv2.INTER_LINEAR if wide > width else cv2.INTER_AREA
        return cv2.resize(rgb_HWC, (wide, height), interpolation=interpolation)
