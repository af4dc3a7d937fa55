"""Encoded images: sizes from headers, decoding, encoding. Runs inside Triton, so no torch here."""

from __future__ import annotations

import cv2
import numpy as np

from mssts.contract import LIMITS
from mssts.errors import MsstsError

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"IEND\xaeB`\x82"
_JPEG_SIGNATURE = b"\xff\xd8\xff"
_JPEG_END = b"\xff\xd9"
_JPEG_SCAN = b"\xff\xda"
# Start-of-frame markers; C4, C8 and CC, which lie between them, mean something else.
_JPEG_SIZES = frozenset({0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF})
# A progressive JPEG has some ten scans, and each is a pass over the whole image: a few kilobytes of empty scans would
# keep a decoder busy for minutes.
_MAX_JPEG_SCANS = 100


def image_size(encoded: bytes) -> tuple[int, int]:
    """The height and width an image's header states, read without decoding its pixels.

    Raises:
        MsstsError: not a JPEG or PNG, or one whose end is missing.
    """
    if encoded.startswith(_JPEG_SIGNATURE):
        return _jpeg_size(encoded)
    if encoded.startswith(_PNG_SIGNATURE):
        return _png_size(encoded)
    raise MsstsError("not a JPEG or PNG image")


def _jpeg_size(encoded: bytes) -> tuple[int, int]:
    size = None
    position = 2
    while position + 4 <= len(encoded):
        if encoded[position] != 0xFF:
            raise MsstsError("a corrupt JPEG: no marker where one must be")
        marker = encoded[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        if marker == 0x01 or 0xD0 <= marker <= 0xD7:  # markers without a segment
            position += 2
            continue
        if marker == 0xDA:
            break
        if marker in _JPEG_SIZES and position + 9 <= len(encoded):
            size = _uint16(encoded, position + 5), _uint16(encoded, position + 7)
        position += 2 + _uint16(encoded, position + 2)
    # Inside a scan FF is always escaped, so after its start these bytes can only be the markers; before it they may
    # belong to a thumbnail. Not every decoder refuses a truncated file: libjpeg fills what is missing with grey.
    if encoded.find(_JPEG_END, position) < 0:
        raise MsstsError("a truncated JPEG: its end is missing")
    if encoded.count(_JPEG_SCAN, position) > _MAX_JPEG_SCANS:
        raise MsstsError(f"a JPEG of more than {_MAX_JPEG_SCANS} scans; encode it again")
    if size is None or 0 in size:
        raise MsstsError("a corrupt JPEG: its header states no size")
    return size


def _uint16(data: bytes, position: int) -> int:
    return int.from_bytes(data[position : position + 2], "big")


def _png_size(encoded: bytes) -> tuple[int, int]:
    width, height = int.from_bytes(encoded[16:20], "big"), int.from_bytes(encoded[20:24], "big")
    if encoded[12:16] != b"IHDR" or 0 in (height, width):
        raise MsstsError("a corrupt PNG: its header states no size")
    if _PNG_END not in encoded[-64:]:
        raise MsstsError("a truncated PNG: its end is missing")
    return height, width


def decode_image(encoded: bytes) -> np.ndarray:
    """Decodes one JPEG or PNG into RGB uint8 [H, W, 3].

    EXIF orientation is ignored, as annotations refer to the pixels as they are stored.

    Raises:
        MsstsError: corrupt, truncated, or more pixels than `LIMITS.pixels`; refused from the header alone if possible.
    """
    height, width = image_size(encoded)
    if height * width > LIMITS.pixels:
        raise MsstsError(f"{width}×{height} is more than {LIMITS.pixels} pixels; send smaller frames")
    try:
        bgr = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        bgr = None
    if bgr is None or bgr.shape != (height, width, 3):
        raise MsstsError("a corrupt image: its pixels cannot be decoded")
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB, dst=bgr)


def encode_jpeg(rgb_HWC: np.ndarray, quality: int) -> bytes:
    """Encodes an RGB uint8 frame [H, W, 3] as JPEG, for a clip that is sent over a slow network."""
    _, encoded = cv2.imencode(".jpg", cv2.cvtColor(rgb_HWC, cv2.COLOR_RGB2BGR), (cv2.IMWRITE_JPEG_QUALITY, quality))
    return encoded.tobytes()


def size_text(size: tuple[int, int]) -> str:
    """A size (height, width) as people write it: width×height."""
    return f"{size[1]}×{size[0]}"
