"""Display orientation: EXIF tags and the display matrices of videos.

Runs inside Triton, so no torch here.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Literal

import numpy as np

Exif = Literal["apply", "ignore"]
EXIF_CHOICES: tuple[Exif, ...] = ("apply", "ignore")

_EXIF_HEADER = b"Exif\x00\x00"
_ORIENTATION_TAG = 0x0112
_TIFF_TYPES = {3: "H", 4: "I"}  # a tag's value is a short, and some writers make it a long


@dataclass(frozen=True)
class Orientation:
    """One of the eight ways to turn and mirror a picture.

    Its axes are exchanged first, then it is mirrored.

    Attributes:
        transpose: rows become columns.
        flip_x: left and right change places.
        flip_y: top and bottom change places.
    """

    transpose: bool = False
    flip_x: bool = False
    flip_y: bool = False

    @classmethod
    def from_exif(cls, tag: int) -> Orientation:
        """The orientation that an EXIF tag from 1 to 8 asks for."""
        return _OF_EXIF[tag]

    @classmethod
    def from_display_matrix(cls, matrix: bytes) -> Orientation:
        """The orientation nearest to FFmpeg's display matrix.

        The matrix is nine native 32-bit integers (a b u c d v x y w).

        A point x, y of the stored frame is displayed at (a·x + c·y, b·x + d·y). Turns by other angles than quarters
        become the nearest quarter, as most players show them.
        """
        a, b, _, c, d, *_ = struct.unpack("=9i", matrix[:36])
        if abs(a) + abs(d) >= abs(b) + abs(c):
            return cls(flip_x=a < 0, flip_y=d < 0)
        return cls(transpose=True, flip_x=c < 0, flip_y=b < 0)

    def size(self, stored: tuple[int, int]) -> tuple[int, int]:
        """Height and width as displayed, from those as stored."""
        return (stored[1], stored[0]) if self.transpose else stored

    def apply(self, stored_HWC: np.ndarray) -> np.ndarray:
        """The picture as displayed, contiguous in memory.

        It is the picture itself where nothing is to be done.
        """
        if self == _UPRIGHT:
            return stored_HWC
        displayed_HWC = stored_HWC.swapaxes(0, 1) if self.transpose else stored_HWC
        return np.ascontiguousarray(
            displayed_HWC[:: -1 if self.flip_y else 1, :: -1 if self.flip_x else 1],
        )


_UPRIGHT = Orientation()
_OF_EXIF = {
    1: _UPRIGHT,
    2: Orientation(flip_x=True),
    3: Orientation(flip_x=True, flip_y=True),
    4: Orientation(flip_y=True),
    5: Orientation(transpose=True),
    6: Orientation(transpose=True, flip_x=True),  # a quarter turn clockwise
    7: Orientation(transpose=True, flip_x=True, flip_y=True),
    8: Orientation(transpose=True, flip_y=True),
}


def jpeg_segment_tag(segment: bytes) -> int | None:
    """The orientation, 1 to 8, in the contents of a JPEG's APP1 segment.

    None if the segment is not EXIF.

    A tag that is absent or out of range counts as 1, as viewers take it.
    """
    return tiff_tag(segment[len(_EXIF_HEADER) :]) if segment.startswith(_EXIF_HEADER) else None


def tiff_tag(tiff: bytes) -> int:
    """The orientation, 1 to 8, in a TIFF structure.

    EXIF is one, and so is a PNG's `eXIf` chunk.
    """
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    try:
        (directory,) = struct.unpack_from(f"{order}I", tiff, 4)
        (entries,) = struct.unpack_from(f"{order}H", tiff, directory)
        for entry in range(directory + 2, directory + 2 + 12 * entries, 12):
            tag, kind, count = struct.unpack_from(f"{order}HHI", tiff, entry)
            if tag == _ORIENTATION_TAG and kind in _TIFF_TYPES and count == 1:
                (value,) = struct.unpack_from(f"{order}{_TIFF_TYPES[kind]}", tiff, entry + 8)
                return int(value) if value in _OF_EXIF else 1
    except struct.error:  # a directory that leads out of the structure
        pass
    return 1
