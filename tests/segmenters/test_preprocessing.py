"""Decoding, limits and resizing of clips."""

from __future__ import annotations

import contextlib
import struct
import time
import zlib
from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.media_files import with_exif

from mssts.contract import LIMITS
from mssts.errors import MsstsError
from mssts.manifest import InputRule
from mssts.media.images import image_size
from mssts.segmenters.preprocessing import check_clip, decode_frames, engine_input, input_size

RULE = InputRule(short_edge=64, long_edge=128)


def picture(height: int = 48, width: int = 80) -> np.ndarray:
    """RGB: red in the upper half, blue in the lower, a green column at the left."""
    image = np.zeros((height, width, 3), np.uint8)
    image[: height // 2] = (255, 0, 0)
    image[height // 2 :] = (0, 0, 255)
    image[:, :8] = (0, 255, 0)
    return image


def encode(rgb: np.ndarray, suffix: str, *parameters: int) -> bytes:
    return cv2.imencode(suffix, rgb[..., ::-1], parameters)[1].tobytes()


def png_header(height: int, width: int) -> bytes:
    """A PNG of a few bytes that claims any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_decoded_colours_are_rgb() -> None:
    np.testing.assert_array_equal(decode_frames([encode(picture(), ".png")] * 2), np.stack([picture()] * 2))
    decoded = decode_frames([encode(picture(), ".jpg", cv2.IMWRITE_JPEG_QUALITY, 100)])[0].astype(int)
    # JPEG halves the resolution of colour, so only the inside of an area is near its colour.
    for y, x, colour in ((10, 40, (255, 0, 0)), (40, 40, (0, 0, 255)), (20, 3, (0, 255, 0))):
        assert np.abs(decoded[y, x] - colour).max() < 12


@pytest.mark.parametrize(
    "parameters",
    [(), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1), (cv2.IMWRITE_JPEG_RST_INTERVAL, 2), (cv2.IMWRITE_JPEG_OPTIMIZE, 1)],
    ids=["baseline", "progressive", "restart markers", "optimised"],
)
def test_the_header_states_the_size(parameters: tuple[int, ...]) -> None:
    encoded = encode(picture(37, 53), ".jpg", *parameters)
    assert image_size(encoded) == (37, 53)
    assert decode_frames([encoded]).shape == (1, 37, 53, 3)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_frames_of_a_clip_are_decoded_as_displayed(suffix: str) -> None:
    upright = encode(picture(), suffix)
    turned = with_exif(encode(np.ascontiguousarray(np.rot90(picture())), suffix), 6)
    clip_THWC = decode_frames([upright, turned, with_exif(upright, 1)])  # all of one size, as displayed
    assert np.abs(clip_THWC[1].astype(int) - picture()).mean() < (5 if suffix == ".jpg" else 1e-9)
    np.testing.assert_array_equal(clip_THWC[2], clip_THWC[0])
    with pytest.raises(MsstsError, match=r"frame 1 is 48×80 .* frame 0 is 80×48"):
        decode_frames([upright, with_exif(upright, 8)])


def test_a_truncated_or_corrupt_frame_is_named() -> None:
    good = encode(picture(), ".jpg")
    png = encode(picture(), ".png")
    thumbnail = good[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(good)) + good + good[2:]
    assert decode_frames([good, thumbnail]).shape == (2, 48, 80, 3)
    damaged_png = bytearray(png)
    damaged_png[60:80] = bytes(20)
    truncated = (
        good[: len(good) // 2],
        good[:-2],
        good[:200],
        good[:3],
        thumbnail[:-2],  # the thumbnail's own end must not pass for the image's
        png[:-30],
    )
    for bad in truncated:
        with pytest.raises(MsstsError, match=r"^frame 1: a truncated "):
            decode_frames([good, bad])
    for bad in (bytes(damaged_png), b"", b"hello", b"\xff\xd8\xff" + bytes(300), encode(picture(), ".bmp")):
        with pytest.raises(MsstsError, match=r"^frame 1: "):
            decode_frames([good, bad])


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_no_bytes_escape_as_another_error(tail: bytes) -> None:
    good = encode(picture(8, 8), ".jpg")
    for encoded in (tail, good[:20] + tail, good[:-40] + tail, b"\x89PNG\r\n\x1a\n" + tail):
        with contextlib.suppress(MsstsError):
            decode_frames([encoded])


def test_frames_of_differing_sizes_are_refused() -> None:
    with pytest.raises(MsstsError, match=r"frame 2 is 64×48 .* frame 0 is 80×48"):
        decode_frames([encode(picture(), ".jpg")] * 2 + [encode(picture(48, 64), ".jpg")])


def test_a_decompression_bomb_is_refused_from_its_header() -> None:
    bomb = png_header(60_000, 60_000)  # 10.8 GB of pixels: decoding it would be noticed
    assert len(bomb) < 100
    with pytest.raises(MsstsError, match=str(LIMITS.pixels)):
        decode_frames([bomb])
    with pytest.raises(MsstsError, match=str(LIMITS.total_pixels)):
        decode_frames([png_header(2160, 3840)] * 10)


def test_a_jpeg_of_endless_scans_is_refused() -> None:
    encoded = encode(picture(), ".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    scan = encoded.rindex(b"\xff\xda")
    with pytest.raises(MsstsError, match="scans"):
        decode_frames([encoded[:-2] + encoded[scan:-2] * 200 + encoded[-2:]])


def test_time_to_decode_is_limited() -> None:
    """Many scans, which carry no bits, make a small file slow to decode."""
    encoded = encode(picture(1080, 1920), ".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    scan = encoded.rindex(b"\xff\xda")
    slow = encoded[:-2] + encoded[scan:-2] * 80 + encoded[-2:]
    start = time.thread_time()
    with pytest.raises(MsstsError, match=r"\d of 16 frames took more than 0\.05 s to decode; send fewer"):
        decode_frames([slow] * 16, replace(LIMITS, decode_seconds=0.05))
    assert time.thread_time() - start < 2  # one frame more at most


def test_limits_are_named() -> None:
    with pytest.raises(MsstsError, match="not 0"):
        decode_frames([])
    with pytest.raises(MsstsError, match=f"1 to {LIMITS.frames} frames, not {LIMITS.frames + 1}"):
        decode_frames([b""] * (LIMITS.frames + 1))
    with pytest.raises(MsstsError, match=str(LIMITS.encoded_bytes)):
        decode_frames([bytes(LIMITS.encoded_bytes + 1)])


@pytest.mark.parametrize(
    ("shape", "dtype", "names"),
    [
        ((2, 8, 8, 3), np.float32, "float32"),
        ((8, 8, 3), np.uint8, "8, 8, 3"),
        ((2, 8, 8, 4), np.uint8, "2, 8, 8, 4"),
        ((0, 8, 8, 3), np.uint8, "not 0"),
        ((2, 0, 8, 3), np.uint8, "8×0"),
        ((LIMITS.frames + 1, 1, 1, 3), np.uint8, str(LIMITS.frames)),
        ((1, 3000, 3000, 3), np.uint8, str(LIMITS.pixels)),
        ((64, 800, 1280, 3), np.uint8, str(LIMITS.total_pixels)),
    ],
)
def test_a_clip_out_of_bounds_is_refused(shape: tuple[int, ...], dtype: type, names: str) -> None:
    clip = np.broadcast_to(np.zeros((), dtype), shape)  # no memory behind it
    with pytest.raises(MsstsError, match=names):
        check_clip(clip)


@pytest.mark.parametrize(
    ("height", "width", "rule", "expected"),
    [
        (720, 1280, InputRule(360, 640), (360, 640)),
        (1280, 720, InputRule(360, 640), (640, 360)),
        (720, 1280, InputRule(360, 480), (272, 480)),  # the long edge binds: 270 is nearer to 272 than to 264
        (480, 640, InputRule(360, 640), (360, 480)),
        (144, 256, InputRule(144, 256), (144, 256)),
        (100, 100, InputRule(360, 640), (360, 360)),  # enlarged
        (1, 4000, InputRule(360, 640), (8, 640)),  # never less than one multiple
        (94, 100, InputRule(94, 100, multiple=4), (96, 100)),  # a half is rounded up
    ],
)
def test_input_size(height: int, width: int, rule: InputRule, expected: tuple[int, int]) -> None:
    assert input_size(height, width, rule) == expected


@settings(deadline=None)
@given(st.integers(1, 3000), st.integers(1, 3000))
def test_input_size_keeps_the_rule(height: int, width: int) -> None:
    rule = InputRule(360, 640)
    resized = input_size(height, width, rule)
    assert all(side % 8 == 0 and 8 <= side <= 640 for side in resized)
    scale = min(360 / min(height, width), 640 / max(height, width))
    for side, original in zip(resized, (height, width), strict=True):
        assert abs(side - max(original * scale, 8)) <= 4 + 1e-6


def test_engine_input_shrinks_by_averaging() -> None:
    rng = np.random.default_rng(0)
    frames_THWC = rng.integers(0, 256, (2, 128, 256, 3), np.uint8)
    frames_BTHWC, sizes_B2 = engine_input(frames_THWC, RULE)
    assert frames_BTHWC.shape == (1, 2, 64, 128, 3)
    assert frames_BTHWC.dtype == np.uint8
    assert sizes_B2.dtype == np.int32
    assert sizes_B2.tolist() == [[64, 128]]
    means = frames_THWC.reshape(2, 64, 2, 128, 2, 3).astype(float).mean((2, 4))
    assert np.abs(frames_BTHWC[0] - means).max() <= 0.5  # rounding


def test_a_fine_pattern_does_not_alias() -> None:
    """Stripes finer than the new pixels become grey.

    The released code's resize, Pillow's bilinear, widens its filter as far as the picture shrinks. In plain bilinear
    interpolation, stripes would become other stripes.
    """
    stripes = np.zeros((1, 256, 512, 3), np.uint8)
    stripes[:, :, ::2] = 255  # a quarter of the size of the new pixels
    checks = np.zeros((1, 192, 384, 3), np.uint8)
    checks[:, ::2, ::2] = checks[:, 1::2, 1::2] = 255
    for pattern_THWC in (stripes, checks):
        shrunk = engine_input(pattern_THWC, RULE)[0]
        assert shrunk.shape == (1, 1, 64, 128, 3)
        # At a third, an area of nine checks holds four or five of one colour: half a check more or less than half.
        assert np.abs(shrunk.astype(int) - 127.5).max() < 255 / 18 + 1


def test_engine_input_leaves_a_frame_of_the_right_size_as_it_is() -> None:
    frames_THWC = np.random.default_rng(0).integers(0, 256, (2, 64, 128, 3), np.uint8)
    np.testing.assert_array_equal(engine_input(frames_THWC, RULE)[0][0], frames_THWC)
    # Reversed channels are a view with negative strides, which an engine cannot read.
    assert engine_input(frames_THWC[..., ::-1], RULE)[0].flags.c_contiguous


def test_engine_input_enlarges_without_inventing_values() -> None:
    frames_THWC = np.zeros((1, 16, 32, 3), np.uint8)
    frames_THWC[:, :, 16:] = 200
    enlarged = engine_input(frames_THWC, RULE)[0][0, 0, :, :, 0].astype(int)
    assert enlarged.shape == (64, 128)
    assert (np.diff(enlarged, axis=1) >= 0).all()
    assert enlarged.min() == 0
    assert enlarged.max() == 200
