"""Realistic video and image files.

They have several streams, display matrices, wide pixels or EXIF.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

AS_STORED = (1, 0, 0, 1)  # a, b, c, d of a display matrix


def write_video(
    path: Path,
    frames: Sequence[np.ndarray | Sequence[np.ndarray]],
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv444p",
    rate: int = 10,
    times: Sequence[float] | None = None,
    aspect: Fraction | None = None,
    container: dict[str, str] | None = None,
    colours: tuple[int, int, int, int] | None = None,
    still: np.ndarray | None = None,
    sound: bool = False,
) -> Path:
    """Writes frames nearly without loss.

    They are RGB, or the planes of `pix_fmt` (of uint8 or uint16).

    Args:
        path: its suffix says which container.
        frames: all of one size.
        codec: FFmpeg's name.
        pix_fmt: FFmpeg's name.
        rate: frames a second.
        times: of each frame in seconds, instead of a constant rate.
        aspect: of a pixel, width to height.
        container: options of the muxer.
        colours: primaries, transfer function and matrix, as ITU-T H.273 numbers them, and 1 for limited range or 2.
        still: a stream of this one picture comes first.
        sound: half a second of it comes last.
    """
    first = frames[0]
    height, width = (first if isinstance(first, np.ndarray) else first[0]).shape[:2]
    options = {"qp": "0", "bf": "0"} if codec == "libx264" else {}
    with av.open(str(path), "w", options=container or {}) as file:
        if still is not None:
            cover = file.add_stream("mjpeg", rate=1)
            cover.height, cover.width, cover.pix_fmt = *still.shape[:2], "yuvj420p"
        stream = file.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width, stream.pix_fmt = height, width, pix_fmt
        context = stream.codec_context
        if codec == "mpeg4":
            context.bit_rate = 8_000_000
        if aspect is not None:
            context.sample_aspect_ratio = aspect
        if colours is not None:
            context.color_primaries, context.color_trc, context.colorspace, context.color_range = colours
        if times is not None:
            context.time_base = Fraction(1, 1000)
        speaker = file.add_stream("aac", rate=8000) if sound else None
        file.start_encoding()
        if still is not None:
            file.mux(cover.encode(av.VideoFrame.from_ndarray(still, "rgb24").reformat(format="yuvj420p")))
            file.mux(cover.encode())
        for index, pixels in enumerate(frames):
            rgb = isinstance(pixels, np.ndarray)
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24") if rgb else _planar(pixels, pix_fmt)
            if times is not None:
                frame.pts, frame.time_base = round(1000 * times[index]), Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
        if speaker is not None:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
            silence.rate = 8000
            file.mux(speaker.encode(silence))
            file.mux(speaker.encode())
    return path


def _planar(planes: Sequence[np.ndarray], pix_fmt: str) -> av.VideoFrame:
    height, width = planes[0].shape
    frame = av.VideoFrame(width, height, pix_fmt)
    for plane, values in zip(frame.planes, planes, strict=True):
        padded = np.zeros((plane.height, plane.line_size // values.itemsize), values.dtype)
        padded[:, : values.shape[1]] = values
        plane.update(padded.tobytes())
    return frame


def write_sound(path: Path) -> Path:
    """An m4a of half a second's silence."""
    with av.open(str(path), "w", format="mp4") as file:
        speaker = file.add_stream("aac", rate=8000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        silence.rate = 8000
        file.mux(speaker.encode(silence))
        file.mux(speaker.encode())
    return path


def set_display_matrix(path: Path, turn: tuple[int, int, int, int]) -> None:
    """Makes players show a point x, y at (a·x + c·y, b·x + d·y).

    The file is an mp4 with a single track.
    """
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40  # of a header of version 0
    assert struct.unpack(">9i", data[matrix : matrix + 36]) == (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    a, b, c, d = (value << 16 for value in turn)
    data[matrix : matrix + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


def as_displayed(picture: np.ndarray, turn: tuple[int, int, int, int]) -> np.ndarray:
    """A picture as a player shows it.

    Each pixel is moved by the matrix, the whole is moved back into view.
    """
    a, b, c, d = turn
    rows, columns = np.indices(picture.shape[:2])
    x, y = a * columns + c * rows, b * columns + d * rows
    x, y = x - x.min(), y - y.min()
    shown = np.zeros((y.max() + 1, x.max() + 1, 3), picture.dtype)
    shown[y, x] = picture
    return shown


def add_cover(path: Path, picture: np.ndarray) -> None:
    """Puts a cover picture before the tracks of an mp4 or m4a.

    Music players and drones do so.
    """
    jpeg = cv2.imencode(".jpg", picture[..., ::-1])[1].tobytes()
    cover = _box(b"covr", _box(b"data", struct.pack(">II", 13, 0) + jpeg))
    handler = _box(b"hdlr", bytes(8) + b"mdirappl" + bytes(9))
    user_data = _box(b"udta", _box(b"meta", bytes(4) + handler + _box(b"ilst", cover)))
    data = bytearray(path.read_bytes())
    moov = data.index(b"moov") - 4
    assert moov > data.index(b"mdat"), "boxes that hold offsets into the file would be wrong"
    (size,) = struct.unpack_from(">I", data, moov)
    struct.pack_into(">I", data, moov, size + len(user_data))
    data[moov + 8 : moov + 8] = user_data
    path.write_bytes(data)


def _box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", 8 + len(content)) + kind + content


def with_exif(encoded: bytes, tag: int, order: str = ">", kind: int = 3) -> bytes:
    """A JPEG or PNG with an EXIF orientation.

    In big or little endian order, as a short (3) or a long (4).
    """
    value = struct.pack(f"{order}HH", tag, 0) if kind == 3 else struct.pack(f"{order}I", tag)
    make = struct.pack(f"{order}HHI", 0x010F, 2, 4) + b"abc\0"  # another entry before it
    entry = struct.pack(f"{order}HHI", 0x0112, kind, 1) + value
    tiff = {">": b"MM", "<": b"II"}[order] + struct.pack(f"{order}HIH", 42, 8, 2) + make + entry + bytes(4)
    if encoded.startswith(b"\x89PNG"):
        chunk = b"eXIf" + tiff
        return encoded[:33] + struct.pack(">I", len(tiff)) + chunk + struct.pack(">I", zlib.crc32(chunk)) + encoded[33:]
    segment = b"Exif\x00\x00" + tiff
    after = 2 + 2 + struct.unpack_from(">H", encoded, 4)[0]  # behind JFIF's own segment, which comes first
    return encoded[:after] + b"\xff\xe1" + struct.pack(">H", 2 + len(segment)) + segment + encoded[after:]
