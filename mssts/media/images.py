"""Encoded images: sizes from headers, decoding as displayed, encoding.

This runs inside Triton, so it does not import torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from mssts.contract import LIMITS
from mssts.errors import MsstsError
from mssts.media.orientation import Exif, Orientation, jpeg_segment_tag, tiff_tag

Colours = Literal["colour", "grey", "palette"]

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
_PNG_COLOURS: dict[int, Colours] = {0: "grey", 2: "colour", 3: "palette", 4: "grey", 6: "colour"}
_BEGINNING = 1 << 14  # bytes of a file, within which most states EXIF
_MAX_PNG_CHUNKS = 100_000  # encoders write chunks of pixels of 8 KB and more


def image_size(encoded: bytes, exif: Exif = "apply") -> tuple[int, int]:
    """The height and width at which an image is displayed, without decoding it.

    They are read from its header.

    Args:
        encoded: a JPEG or PNG.
        exif: with `ignore`, the size as stored.

    Raises:
        MsstsError: not a JPEG or PNG, or one whose end is missing.
    """
    size = _stored_size(encoded)
    return size if exif == "ignore" else Orientation.from_exif(exif_tag(encoded) or 1).size(size)


def exif_tag(encoded: bytes) -> int | None:
    """The EXIF orientation of a JPEG or PNG, 1 to 8.

    It is 1 where the image states none.

    None if the bytes end before the place where it could still come: those of the beginning of a file suffice mostly.
    """
    if encoded.startswith(_JPEG_SIGNATURE):
        for position, marker in _jpeg_markers(encoded):
            if marker == 0xE1:
                end = position + 2 + _uint16(encoded, position + 2)
                tag = jpeg_segment_tag(encoded[position + 4 : end])
                if end > len(encoded):
                    return None
                if tag is not None:
                    return tag
            elif marker in (0xDA, 0xD9):
                return 1
        return None
    if encoded.startswith(_PNG_SIGNATURE):
        return _png_tag(encoded)
    return 1


def file_exif_tag(path: Path) -> int:
    """The EXIF orientation of an image file, 1 without any or if it is no image.

    Usually only its beginning is read.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        encoded = file.read(_BEGINNING)
        try:
            tag = exif_tag(encoded)
            return exif_tag(encoded + file.read()) or 1 if tag is None else tag
        except MsstsError:  # a broken image is named when it is decoded
            return 1


def image_colours(encoded: bytes) -> Colours:
    """Whether an image's header announces colours, greys, or palette indices.

    The image is a JPEG or PNG.
    """
    if encoded.startswith(_PNG_SIGNATURE):
        return _PNG_COLOURS.get(encoded[25] if len(encoded) > 25 else 2, "colour")
    components = 3
    for position, marker in _jpeg_markers(encoded):
        if marker in _JPEG_SIZES and position + 9 < len(encoded):
            components = encoded[position + 9]
    return "grey" if components == 1 else "colour"


def is_animated_png(encoded: bytes) -> bool:
    """Whether a PNG holds several frames, of which image decoders read only the first."""
    first_pixels = encoded.find(b"IDAT")
    return encoded.startswith(_PNG_SIGNATURE) and b"acTL" in encoded[: max(first_pixels, 0)]


def _stored_size(encoded: bytes) -> tuple[int, int]:
    if encoded.startswith(_JPEG_SIGNATURE):
        return _jpeg_size(encoded)
    if encoded.startswith(_PNG_SIGNATURE):
        return _png_size(encoded)
    raise MsstsError("not a JPEG or PNG image")


def _jpeg_markers(encoded: bytes) -> Iterator[tuple[int, int]]:
    """Position and code of a JPEG's markers with a segment.

    Up to the first scan or the end of the bytes.

    Raises:
        MsstsError: something else is where a marker must be.
    """
    position = 2
    while position + 4 <= len(encoded):
        if encoded[position] != 0xFF:
            raise MsstsError("a corrupt JPEG: no marker where one must be")
        marker = encoded[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
        elif marker == 0x01 or 0xD0 <= marker <= 0xD7:  # markers without a segment
            position += 2
        else:
            yield position, marker
            if marker == 0xDA:
                return
            position += 2 + _uint16(encoded, position + 2)


def _jpeg_size(encoded: bytes) -> tuple[int, int]:
    size = None
    position = marker = 0
    for position, marker in _jpeg_markers(encoded):
        if marker in _JPEG_SIZES and position + 9 <= len(encoded):
            size = _uint16(encoded, position + 5), _uint16(encoded, position + 7)
    # Inside a scan FF is always escaped, so after its start these bytes can only be the markers; before it they may
    # belong to a thumbnail. Not every decoder refuses a truncated file: libjpeg fills what is missing with grey.
    if marker != 0xDA or encoded.find(_JPEG_END, position) < 0:
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


def _png_tag(encoded: bytes) -> int | None:
    if b"eXIf" in encoded:  # nearly no PNG has it, and only the way along its chunks tells it from pixels
        position = len(_PNG_SIGNATURE)
        for _ in range(_MAX_PNG_CHUNKS):
            if position + 8 > len(encoded):
                break
            length, kind = int.from_bytes(encoded[position : position + 4], "big"), encoded[position + 4 : position + 8]
            if kind == b"eXIf" and position + 8 + length <= len(encoded):
                return tiff_tag(encoded[position + 8 : position + 8 + length])
            position += 12 + length
    return 1 if _PNG_END in encoded[-64:] else None


def decode_image(encoded: bytes, exif: Exif = "apply", trusted: bool = False) -> np.ndarray:
    """Decodes one JPEG or PNG into RGB uint8 [H, W, 3], as displayed.

    It is turned and mirrored as its orientation requires.

    Args:
        encoded: a JPEG or PNG.
        exif: with `ignore`, the pixels as they are stored.
        trusted: it is of a data set and not of a request, so it may have any size. Other formats that OpenCV reads are
            taken too, as stored.

    Raises:
        MsstsError: corrupt, truncated, or more pixels than `LIMITS.pixels`; refused from the header alone if possible.
    """
    if trusted and not encoded.startswith((_JPEG_SIGNATURE, _PNG_SIGNATURE)):
        found = _decode(encoded)
        if found is None:
            raise MsstsError("not an image that can be decoded")
        return found
    height, width = _stored_size(encoded)
    if height * width > LIMITS.pixels and not trusted:
        raise MsstsError(f"{width}×{height} is more than {LIMITS.pixels} pixels; send smaller frames")
    rgb_HWC = _decode(encoded)
    if rgb_HWC is None or rgb_HWC.shape != (height, width, 3):
        raise MsstsError("a corrupt image: its pixels cannot be decoded")
    return rgb_HWC if exif == "ignore" else Orientation.from_exif(exif_tag(encoded) or 1).apply(rgb_HWC)


def _decode(encoded: bytes) -> np.ndarray | None:
    """The pixels as stored."""
    if not encoded:
        return None
    try:
        bgr = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        return None
    return None if bgr is None else cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB, dst=bgr)


def encode_jpeg(rgb_HWC: np.ndarray, quality: int) -> bytes:
    """Encodes an RGB uint8 frame [H, W, 3] as JPEG, to send over a slow network."""
    _, encoded = cv2.imencode(".jpg", cv2.cvtColor(rgb_HWC, cv2.COLOR_RGB2BGR), (cv2.IMWRITE_JPEG_QUALITY, quality))
    return encoded.tobytes()


def size_text(size: tuple[int, int]) -> str:
    """A size (height, width) as people write it: width×height."""
    return f"{size[1]}×{size[0]}"
