"""Cameras and network streams, read by FFmpeg.

A source that is lost is connected again.

libavformat does not do that, and ends a camera that is lost as it ends a file.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import av
import av.error
import numpy as np

from mssts.errors import MsstsError
from mssts.media.video import Frame
from mssts.streaming.decoding import decoded_frames
from mssts.streaming.options import StreamOptions
from mssts.streaming.rtsp_connection import RtspConnection
from mssts.streaming.rtsp_film import RtspUnsupportedError
from mssts.streaming.rtsp_login import REFUSED, PasswordRefusedError
from mssts.streaming.source_clock import SourceClock
from mssts.streaming.sources import Gap, Items, SizedFrame, StreamSource, public_name

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 10.0  # seconds between attempts to connect
_REFUSED_PAUSE = 60.0  # after a refused password, and twice as long each time, as cameras lock accounts
_REFUSALS = (PasswordRefusedError, av.error.HTTPUnauthorizedError, av.error.HTTPForbiddenError)
_ATTACHED_PICTURE = 1 << 10
_MICROSECONDS = 1_000_000


class Connection:
    """An open input and its film.

    Args:
        url: as libavformat takes it.
        container_format: its name, None to find it out.
        options: libavformat's.
        timeout: seconds to open it, and for each packet.

    Raises:
        av.FFmpegError, OSError: it cannot be opened.
        MsstsError: there is no film in it.
    """

    def __init__(
        self, url: str, name: str, container_format: str | None, options: dict[str, str], timeout: float | None
    ) -> None:
        limits = None if timeout is None else (timeout, timeout)
        self._container = av.open(url, format=container_format, options=options, timeout=limits)
        films = [
            stream
            for stream in self._container.streams.video
            if stream.codec_context is not None and not int(stream.disposition) & _ATTACHED_PICTURE
        ]
        if not films:
            self._container.close()
            raise MsstsError(f"{name}: has no video; expected a camera, or a stream with a film")
        self._name = name
        self._stream = films[0]
        self._stream.thread_type = "SLICE"  # threads for frames would hold back as many frames as there are threads

    @property
    def ends(self) -> bool:
        """Whether it is a recording, of which the end is known."""
        return bool(self._container.duration and self._container.duration > 0)

    @property
    def fps(self) -> float | None:
        """Frames a second, None if it does not tell."""
        return float(self._stream.average_rate) if self._stream.average_rate else None

    def frames(self) -> Iterator[tuple[np.ndarray, float | None]]:
        """The frames, RGB uint8 [H, W, 3], and their seconds by the source's clock.

        None where it tells none.

        Raises:
            av.FFmpegError, OSError: nothing came in time, or the connection broke.
        """
        stream = self._stream
        packets = self._container.demux(stream)
        return decoded_frames(packets, stream.codec_context, lambda: stream.sample_aspect_ratio, self._name)

    def close(self) -> None:
        """Ends it."""
        self._container.close()


class LiveCapture:
    """Frames of a source that may be lost, for as long as it comes back.

    Args:
        name: for people.
        connect: opens the source.
        options: for how long a source that was lost is tried.
        clock: seconds, never going back.

    Raises:
        MsstsError: it cannot be opened now. That it was there once is what makes another attempt worth while.
    """

    def __init__(
        self,
        name: str,
        connect: Callable[[], Connection | RtspConnection],
        options: StreamOptions,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._connect = connect
        self._options = options
        self._clock = clock
        try:
            self._connection: Connection | RtspConnection | None = connect()
        except (av.FFmpegError, OSError) as error:
            raise MsstsError(f"{name}: {_cause(error, options.timeout)}") from None
        self.ends = self._connection.ends
        self.fps = self._connection.fps

    def items(self, stopped: threading.Event, live: bool) -> Items:
        """The frames, with a gap wherever the source was lost.

        Raises:
            MsstsError: it did not come back in time.
        """
        times = SourceClock(self._clock)
        last_frame = self._clock()
        lost_at: float | None = None
        pause = _FIRST_PAUSE
        while not stopped.is_set():
            cause = ""
            is_refused = False
            try:
                self._connection = self._connection or self._connect()
                for rgb_HWC, shown in self._connection.frames():
                    if lost_at is not None:
                        yield Gap(f"{self._name}: back after {self._clock() - lost_at:.1f} s", is_back=True)
                        times.reconnected()
                    lost_at, pause = None, _FIRST_PAUSE
                    yield from _timed(rgb_HWC, shown, times, self._name)
                    last_frame = self._clock()
                    if stopped.is_set():
                        return
                if self.ends:
                    return
                cause = "the connection ended"
            except (av.FFmpegError, OSError) as error:
                cause = _cause(error, self._options.timeout)
                is_refused = isinstance(error, _REFUSALS)
            finally:
                if self._connection is not None:
                    self._connection.close()
                    self._connection = None
            if self.ends:
                raise MsstsError(f"{self._name}: broke off: {cause}")
            if lost_at is None:
                lost_at = self._clock()
                yield Gap(f"{self._name}: lost: {cause}; trying again for {self._options.reconnect:g} s")
            left = last_frame + self._options.reconnect - self._clock()
            if left <= 0:
                raise MsstsError(f"{self._name}: lost, and not back after {self._options.reconnect:g} s: {cause}")
            pause = max(pause, _REFUSED_PAUSE) if is_refused else min(pause, _LONGEST_PAUSE)
            stopped.wait(min(pause, max(left, _LONGEST_PAUSE)))
            pause *= 2


def open_network(url: str, options: StreamOptions) -> StreamSource:
    """Opens `rtsp(s)://`, `http(s)://` or `udp://`."""
    name = public_name(url)
    scheme = urlsplit(url).scheme.lower()
    microseconds = str(round(options.timeout * _MICROSECONDS))
    settings: dict[str, str] = {"timeout": microseconds}
    if scheme in ("rtsp", "rtsps"):
        # Without a look ahead it opens ten times sooner: the codec stands in the session's description.
        settings |= {"rtsp_transport": "tcp", "probesize": "32", "analyzeduration": "0"}
    elif scheme == "udp":
        settings |= {"fifo_size": "100000", "overrun_nonfatal": "1"}
    else:
        settings = {"rw_timeout": microseconds}

    is_ours: bool | None = None if scheme == "rtsp" else False  # whether our client reads it, None if not known yet

    def connect() -> Connection | RtspConnection:
        nonlocal is_ours
        if is_ours is not False:
            try:
                ours = RtspConnection(url, name, options.timeout)
                is_ours = True
                return ours
            except RtspUnsupportedError:
                pass  # FFmpeg knows more codecs and cameras, and gives frames later
        connection = Connection(url, name, None, settings, options.timeout)
        if is_ours is None:  # a camera that our client has read may ask for FFmpeg while it starts
            is_ours = False
        return connection

    return _source(name, connect, options)


def open_webcam(number: int, options: StreamOptions) -> StreamSource:
    """Opens a webcam by its number."""
    path = Path(f"/dev/video{number}")
    name = f"webcam {number}"
    if not path.exists():
        there = ", ".join(sorted(found.name.removeprefix("video") for found in Path("/dev").glob("video[0-9]*")))
        raise MsstsError(f"{name}: there is no {path}; the numbers that are there: {there or 'none'}")
    return _source(name, lambda: Connection(str(path), name, "v4l2", {}, options.timeout), options)


def open_stdin() -> StreamSource:
    """Opens a container on stdin, as MPEG-TS or Matroska."""
    try:
        connection = Connection("pipe:0", "stdin", None, {}, None)
    except (av.FFmpegError, OSError) as error:
        raise MsstsError(
            f"stdin: {_cause(error, 0)}; expected a container that needs no seeking (MPEG-TS, Matroska), or "
            "--raw-video with its size"
        ) from None

    def items(stopped: threading.Event, live: bool) -> Items:
        times = SourceClock(time.monotonic)
        try:
            for rgb_HWC, shown in connection.frames():
                yield from _timed(rgb_HWC, shown, times, "stdin")
                if stopped.is_set():
                    return
        except (av.FFmpegError, OSError) as error:
            raise MsstsError(f"stdin: {_cause(error, 0)}") from None
        finally:
            connection.close()

    return StreamSource("stdin", False, items, connection.fps)


def _timed(rgb_HWC: np.ndarray, shown: float | None, times: SourceClock, name: str) -> Items:
    """A frame with its time, after a gap if there is something to be said of that."""
    seconds, line = times.time(shown)
    if line:
        yield Gap(f"{name}: {line}")
    yield SizedFrame(Frame(rgb_HWC, time=seconds), (rgb_HWC.shape[0], rgb_HWC.shape[1]))


def _source(name: str, connect: Callable[[], Connection | RtspConnection], options: StreamOptions) -> StreamSource:
    capture = LiveCapture(name, connect, options)
    return StreamSource(name, not capture.ends, capture.items, capture.fps)


def _cause(error: Any, timeout: float) -> str:
    """Why a source failed, without its URL, which may hold a password."""
    if isinstance(error, av.error.HTTPUnauthorizedError | av.error.HTTPForbiddenError):
        return REFUSED
    if isinstance(error, av.error.HTTPNotFoundError):
        return "there is no such stream at that address"
    if isinstance(error, (TimeoutError, av.error.ExitError)):
        return f"nothing came for {timeout:g} s"
    if isinstance(error, ConnectionRefusedError):
        return "nothing listens at that address"
    if isinstance(error, av.error.InvalidDataError):
        return "no stream that FFmpeg can read, or nothing in time"
    if error.errno == errno.EIO:  # what libavformat makes of a name without an address too
        return "there is no such host, or the connection broke"
    return error.strerror or type(error).__name__
