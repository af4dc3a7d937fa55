"""A camera's frames over RTSP, each as soon as it is there."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import av
import numpy as np
from av.video.codeccontext import VideoCodecContext

from mssts.streaming.decoding import decoded_frames
from mssts.streaming.rtp import START_CODE, AccessUnit, AccessUnits, RtpPacket
from mssts.streaming.rtsp_session import RtspSession

_WRAP = 1 << 32  # of RTP's timestamps


class RtspConnection:
    """A camera that is open, used as `Connection` is.

    Args:
        url: of the camera.
        name: for people.
        timeout: seconds for each answer, and between packets.

    Raises:
        OSError: it cannot be reached, or does not answer.
        PasswordRefusedError: it refuses the user or the password.
        RtspUnsupportedError: FFmpeg has to see to it.
    """

    ends = False

    def __init__(self, url: str, name: str, timeout: float) -> None:
        self._name = name
        self._session = RtspSession(url, timeout)
        film = self._session.film
        self.fps = film.fps
        self._codec = film.codec
        self._base = Fraction(1, film.clock_rate)
        self._context = VideoCodecContext.create(film.codec, "r")
        self._context.thread_type = "SLICE"  # threads for frames would hold back as many frames as there are threads
        if film.parameter_sets:
            self._context.extradata = b"".join(START_CODE + each for each in film.parameter_sets)

    def frames(self) -> Iterator[tuple[np.ndarray, float | None]]:
        """The frames, RGB uint8 [H, W, 3], and their seconds by the camera's clock.

        None where it tells none.

        Raises:
            OSError: nothing came in time, or the connection broke.
        """
        return decoded_frames(self._packets(), self._context, lambda: self._context.sample_aspect_ratio, self._name)

    def close(self) -> None:
        """Ends it."""
        self._session.close()

    def _packets(self) -> Iterator[av.Packet]:
        """What the decoder takes, with timestamps that do not wrap around."""
        time = 0
        for unit in self._units():
            time += (unit.timestamp - time + _WRAP // 2) % _WRAP - _WRAP // 2
            packet = av.Packet(unit.data)
            packet.pts = time
            packet.time_base = self._base
            yield packet

    def _units(self) -> Iterator[AccessUnit]:
        units = AccessUnits(self._codec)
        for data in self._session.packets():
            packet = RtpPacket.parse(data)
            if packet is not None:
                yield from units.push(packet)
