"""Sources of a stream: what a user names, opened."""

from __future__ import annotations

import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

import numpy as np

from mssts.errors import MsstsError
from mssts.media.sources import open_source
from mssts.media.video import Frame, Video
from mssts.streaming.options import RawFormat, StreamOptions

SCHEMES = ("rtsp", "rtsps", "http", "https", "udp")
_EXPECTED = "a video file, a folder of images, rtsp://, http(s)://, udp://, a webcam's number, or - for stdin"


@dataclass(frozen=True)
class SizedFrame:
    """A frame and its height and width."""

    frame: Frame
    size: tuple[int, int]


@dataclass(frozen=True)
class Gap:
    """Frames may be missing between those before and those after.

    Attributes:
        line: what happened, for people.
        is_back: whether a source that was lost is back.
    """

    line: str
    is_back: bool = False


Items = Iterator["SizedFrame | Gap"]


@dataclass(frozen=True)
class StreamSource:
    """A source that is open.

    Attributes:
        name: for people, without credentials.
        is_live: whether frames come at their own time and without an end.
        items: called once, with an event that ends it and whether frames may be dropped. It raises `MsstsError` when
            the source is broken or lost for good.
        fps: frames a second, None where the source does not tell.
    """

    name: str
    is_live: bool
    items: Callable[[threading.Event, bool], Items]
    fps: float | None = None

    def __str__(self) -> str:
        return self.name


def open_stream_source(source: Path | str | int, options: StreamOptions) -> StreamSource:
    """Opens a source, see `mssts.stream`.

    Raises:
        MsstsError: it cannot be opened; a password in it is not repeated.
    """
    text = str(source)
    scheme = urlsplit(text).scheme.lower() if "://" in text else ""
    if options.raw is not None and text != "-":
        raise MsstsError(f"{public_name(text)}: the raw format is that of stdin; give - as the source")
    if text == "-":
        if options.raw is not None:
            # Without the buffer, whose lock a thread that waits for bytes would hold when Python ends.
            return _raw_source(getattr(sys.stdin.buffer, "raw", sys.stdin.buffer), options.raw)
        from mssts.streaming.capture import open_stdin

        return open_stdin()
    if scheme in SCHEMES:
        from mssts.streaming.capture import open_network

        return open_network(text, options)
    if scheme:
        raise MsstsError(f"{public_name(text)}: {scheme}:// is not read; expected {_EXPECTED}")
    if re.fullmatch(r"\d+", text) or re.fullmatch(r"/dev/video\d+", text):
        from mssts.streaming.capture import open_webcam

        return open_webcam(int(re.findall(r"\d+", text)[-1]), options)
    opened = open_source(text)
    if len(opened.videos) > 1:
        raise MsstsError(f"{text}: {len(opened.videos)} videos, and a stream is one; predict them with `mssts predict`")
    return video_source(opened.videos[0], text)


def video_source(video: Video, name: str) -> StreamSource:
    """A stored video as a source.

    It is read as fast as it can be used, or at its own speed if live.
    """

    def items(stopped: threading.Event, live: bool) -> Items:
        start = time.monotonic()
        for frame in video.frames():
            if live:
                if frame.time is None:
                    raise MsstsError(f"{name}: has no times to be played by; use --every-frame")
                stopped.wait(max(0.0, start + frame.time - time.monotonic()))
            if stopped.is_set():
                return
            yield SizedFrame(frame, video.size)

    return StreamSource(name, False, items, video.fps)


def public_name(url: str) -> str:
    """A URL without what may be secret: user, password, query, values in its path."""
    if "://" not in url:
        return url
    scheme, _, rest = url.partition("://")
    address, slash, path = rest.partition("/")
    if "@" in path:  # of a password with a slash in it, perhaps
        return f"{scheme}://…"
    host = address.rpartition("@")[2].partition("?")[0]
    path = re.split(r"[?#]", path)[0]
    # Some cameras take credentials in the path, as /user=admin&password=…
    return f"{scheme}://{host}{slash}{re.sub(r'=[^&/;_]*', '=…', path)}"


def _raw_source(file: BinaryIO, raw: RawFormat) -> StreamSource:
    height, width = raw.size
    size = height * width * 3

    def items(stopped: threading.Event, live: bool) -> Items:
        number = 0
        while not stopped.is_set():
            pixels = bytearray()
            while len(pixels) < size and (read := file.read(size - len(pixels))):
                pixels += read
            if len(pixels) < size:
                if pixels:
                    yield Gap(f"stdin: ends within frame {number}: {len(pixels)} of its {size} bytes; it is left out")
                return
            shown = None if raw.fps is None else float(number / raw.fps)
            yield SizedFrame(Frame(np.frombuffer(pixels, np.uint8).reshape(height, width, 3), time=shown), raw.size)
            number += 1

    return StreamSource("stdin", False, items, None if raw.fps is None else float(raw.fps))
