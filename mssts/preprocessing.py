"""From frames as they were sent to the engine's input. Runs inside Triton: no torch here.

Letters: B clips, T frames, H and W of a frame, C its three colours.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from fractions import Fraction

import cv2
import numpy as np

from mssts.contract import LIMITS, Limits
from mssts.errors import MsstsError
from mssts.manifest import FixedShape, InputRule

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


def decode_frames(encoded: Sequence[bytes], limits: Limits = LIMITS) -> np.ndarray:
    """Decodes the frames of one clip, each a JPEG or PNG, into RGB uint8 [T, H, W, 3].

    All headers are read and the limits checked before any pixel is decoded, so a decompression bomb costs nothing.
    Damage inside a JPEG that leaves its structure whole cannot be told from an image, and is decoded.

    Raises:
        MsstsError: no frame, a corrupt or truncated one, frames of differing sizes, or a clip over `limits`;
            the message names the frame (counted from 0) or the limit.
    """
    encoded_bytes = sum(len(frame) for frame in encoded)
    if encoded_bytes > limits.encoded_bytes:
        raise MsstsError(
            f"a clip of {encoded_bytes} encoded bytes is over the limit of {limits.encoded_bytes}; send fewer frames"
        )
    _check_count(len(encoded), limits)
    sizes = []
    for index, frame in enumerate(encoded):
        try:
            sizes.append(image_size(frame))
        except MsstsError as error:
            raise MsstsError(f"frame {index}: {error}") from None
        if sizes[index] != sizes[0]:
            raise MsstsError(
                f"frame {index} is {_shown(sizes[index])} but frame 0 is {_shown(sizes[0])}; "
                "all frames of a clip must be of one size"
            )
    _check_pixels(len(encoded), *sizes[0], limits)
    frames_THWC = np.empty((len(encoded), *sizes[0], 3), np.uint8)
    for index, frame in enumerate(encoded):
        try:
            frames_THWC[index] = decode_image(frame)
        except MsstsError as error:
            raise MsstsError(f"frame {index}: {error}") from None
    return frames_THWC


def encode_jpeg(rgb_HWC: np.ndarray, quality: int) -> bytes:
    """Encodes an RGB uint8 frame [H, W, 3] as JPEG, for a clip that is sent over a slow network."""
    _, encoded = cv2.imencode(".jpg", cv2.cvtColor(rgb_HWC, cv2.COLOR_RGB2BGR), (cv2.IMWRITE_JPEG_QUALITY, quality))
    return encoded.tobytes()


def check_clip(frames_THWC: np.ndarray, limits: Limits = LIMITS) -> None:
    """Checks type, shape and `limits` of a clip of RGB uint8 frames [T, H, W, 3].

    Raises:
        MsstsError: which of them does not hold.
    """
    if frames_THWC.dtype != np.uint8 or frames_THWC.ndim != 4 or frames_THWC.shape[3] != 3:
        raise MsstsError(
            f"a clip must be RGB uint8 frames of shape [T, H, W, 3], not {frames_THWC.dtype} {list(frames_THWC.shape)}"
        )
    frames, height, width, _ = frames_THWC.shape
    _check_count(frames, limits)
    if height < 1 or width < 1:
        raise MsstsError(f"a clip's frames must have pixels, not {_shown((height, width))}")
    _check_pixels(frames, height, width, limits)


def _check_count(frames: int, limits: Limits) -> None:
    if not 1 <= frames <= limits.frames:
        raise MsstsError(f"a clip must have 1 to {limits.frames} frames, not {frames}; cut a longer video into windows")


def _check_pixels(frames: int, height: int, width: int, limits: Limits) -> None:
    if height * width > limits.pixels:
        raise MsstsError(
            f"frames of {_shown((height, width))} are over the limit of {limits.pixels} pixels; send smaller frames"
        )
    if frames * height * width > limits.total_pixels:
        raise MsstsError(
            f"{frames} frames of {_shown((height, width))} are over the limit of {limits.total_pixels} pixels a clip; "
            "send fewer or smaller frames"
        )


def _shown(size: tuple[int, int]) -> str:
    return f"{size[1]}×{size[0]} (width × height)"


def input_size(height: int, width: int, rule: InputRule, shape: FixedShape | None = None) -> tuple[int, int]:
    """The height and width a frame is resized to for the engine, by `rule`; multiples of `rule.multiple`, at least one.

    They are no larger than those of `shape`, if the engine takes that one only. The aspect ratio changes by what the
    rounding takes, which the postprocessing undoes.
    """
    # In whole numbers, so that every machine rounds alike.
    scale = min(Fraction(rule.short_edge, min(height, width)), Fraction(rule.long_edge, max(height, width)))
    most_height, most_width = (sys.maxsize, sys.maxsize) if shape is None else (shape.height, shape.width)
    scale = min(scale, Fraction(most_height, height), Fraction(most_width, width))

    def rounded(side: int, most: int) -> int:
        multiples = min(int(side * scale / rule.multiple + Fraction(1, 2)), most // rule.multiple)
        return max(1, multiples) * rule.multiple

    return rounded(height, most_height), rounded(width, most_width)


def engine_input(
    frames_THWC: np.ndarray, rule: InputRule, limits: Limits = LIMITS, shape: FixedShape | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """A clip as the engine takes it: a batch of one, resized by `rule`, without padding.

    Args:
        frames_THWC: RGB uint8.
        rule: the manifest's `input`.
        limits: what a clip may hold.
        shape: the manifest's `shape`.

    Returns:
        `frames_BTHWC` uint8 with B = 1, and `sizes_B2` int32, the valid height and width: the whole frame.

    Raises:
        MsstsError: as `check_clip`.
    """
    check_clip(frames_THWC, limits)
    frames, height, width, _ = frames_THWC.shape
    size = input_size(height, width, rule, shape)
    sizes_B2 = np.array([size], np.int32)
    if size == (height, width):
        return np.ascontiguousarray(frames_THWC)[None], sizes_B2
    resized_THWC = np.empty((frames, *size, 3), np.uint8)
    # Averaging over the area keeps a shrunk frame from aliasing; it has no meaning for an enlarged one.
    interpolation = cv2.INTER_AREA if size[0] * size[1] < height * width else cv2.INTER_LINEAR
    for source_HWC, target_HWC in zip(frames_THWC, resized_THWC, strict=True):
        cv2.resize(source_HWC, size[::-1], dst=target_HWC, interpolation=interpolation)
    return resized_THWC[None], sizes_B2
