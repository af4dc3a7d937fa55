"""From given frames to the engine's input.

Runs inside Triton, so there is no torch here.

Letters: B clips, T frames, H and W of a frame, C its three colours.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from fractions import Fraction

import cv2
import numpy as np

from mssts.contract import LIMITS, Limits
from mssts.errors import MsstsError
from mssts.manifest import FixedShape, InputRule
from mssts.media.images import decode_image, image_size, size_text


def decode_frames(encoded: Sequence[bytes], limits: Limits = LIMITS) -> np.ndarray:
    """Decodes the frames of one clip, each a JPEG or PNG, into RGB uint8 [T, H, W, 3].

    All headers are read and the limits checked before any pixel is decoded, so a decompression bomb costs nothing.
    Damage inside a JPEG that leaves its structure whole cannot be distinguished from an image, and is decoded.

    An image may still be made to decode slowly. Time is looked at before each frame, as a decoder cannot be
    interrupted, and it is this thread's own, so that a busy machine refuses nobody.

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
                f"frame {index} is {size_text(sizes[index])} but frame 0 is {size_text(sizes[0])}; "
                "all frames of a clip must be of one size"
            )
    check_pixels(len(encoded), *sizes[0], limits)
    frames_THWC = np.empty((len(encoded), *sizes[0], 3), np.uint8)
    start = time.thread_time()
    for index, frame in enumerate(encoded):
        if time.thread_time() - start > limits.decode_seconds:
            raise MsstsError(
                f"{index} of {len(encoded)} frames took more than {limits.decode_seconds:g} s to decode; send fewer or "
                "smaller frames, or encode them as plain JPEGs"
            )
        try:
            frames_THWC[index] = decode_image(frame)
        except MsstsError as error:
            raise MsstsError(f"frame {index}: {error}") from None
    return frames_THWC


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
        raise MsstsError(f"a clip's frames must have pixels, not {size_text((height, width))}")
    check_pixels(frames, height, width, limits)


def _check_count(frames: int, limits: Limits) -> None:
    if not 1 <= frames <= limits.frames:
        raise MsstsError(f"a clip must have 1 to {limits.frames} frames, not {frames}; cut a longer video into windows")


def check_pixels(frames: int, height: int, width: int, limits: Limits) -> None:
    """Checks the size of one frame and of all frames of a clip against `limits`.

    Raises:
        MsstsError: one of them is over its limit.
    """
    if height * width > limits.pixels:
        raise MsstsError(
            f"frames of {size_text((height, width))} are over the limit of {limits.pixels} pixels; send smaller frames"
        )
    if frames * height * width > limits.total_pixels:
        raise MsstsError(
            f"{frames} frames of {size_text((height, width))} are over the limit of {limits.total_pixels} pixels a "
            "clip; send fewer or smaller frames"
        )


def input_size(height: int, width: int, rule: InputRule, shape: FixedShape | None = None) -> tuple[int, int]:
    """The height and width of a frame for the engine, multiples of `rule.multiple`.

    They are no larger than those of `shape`, if the engine takes that one only. The aspect ratio changes by what the
    rounding takes, which the postprocessing undoes.
    """
    # In whole numbers, so that every machine rounds in the same way.
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
    """A clip as engine input: a batch of one, resized by `rule`, without padding.

    Frames stay as they are for an engine that resizes them itself (`rule.in_engine`).

    Args:
        frames_THWC: RGB uint8.
        rule: the manifest's `input`.
        limits: what a clip may hold.
        shape: the manifest's `shape`.

    Returns:
        `frames_BTHWC` uint8 with B = 1, and `sizes_B2` int32, the valid height and width after resizing: the whole
        frame.

    Raises:
        MsstsError: as `check_clip`.
    """
    check_clip(frames_THWC, limits)
    frames, height, width, _ = frames_THWC.shape
    size = input_size(height, width, rule, shape)
    sizes_B2 = np.array([size], np.int32)
    if size == (height, width) or rule.in_engine:
        return np.ascontiguousarray(frames_THWC)[None], sizes_B2
    resized_THWC = np.empty((frames, *size, 3), np.uint8)
    # Averaging over the area keeps a shrunk frame from aliasing; it has no meaning for an enlarged one. The released
    # code resizes by Pillow's bilinear filter, which widens as far as the frame shrinks: it does not alias either, and
    # is a little softer than area averages.
    interpolation = cv2.INTER_AREA if size[0] * size[1] < height * width else cv2.INTER_LINEAR
    for source_HWC, target_HWC in zip(frames_THWC, resized_THWC, strict=True):
        cv2.resize(source_HWC, size[::-1], dst=target_HWC, interpolation=interpolation)
    return resized_THWC[None], sizes_B2


def resized_input(
    frames_THWC: np.ndarray,
    frame_size: tuple[int, int],
    rule: InputRule,
    limits: Limits = LIMITS,
    shape: FixedShape | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Engine input from frames that the client has resized already.

    It is what `engine_input` gives for frames of `frame_size`.

    Raises:
        MsstsError: a clip of that size is over `limits`, or the frames are not of the engine's size for it.
    """
    check_clip(frames_THWC, limits)
    frames, height, width, _ = frames_THWC.shape
    if min(frame_size) < 1:
        raise MsstsError(f"a clip's frames must have pixels, not {size_text(frame_size)}")
    check_pixels(frames, *frame_size, limits)
    expected = input_size(*frame_size, rule, shape)
    if (height, width) != expected:
        raise MsstsError(
            f"frames of {size_text(frame_size)} are {size_text(expected)} for this engine, and the ones that were sent "
            f"are {size_text((height, width))}; leave out frame_size and send them as they are"
        )
    return np.ascontiguousarray(frames_THWC)[None], np.array([expected], np.int32)
