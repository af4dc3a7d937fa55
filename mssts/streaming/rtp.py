"""Access units of H.264 and H.265 from RTP packets (RFC 3550, 6184 and 7798)."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Codec = Literal["h264", "hevc"]

START_CODE = b"\0\0\0\1"
_MARKERS_TO_TRUST = 8
_MOST_BYTES = 1 << 24  # of an access unit, far above what a camera's key frame has


@dataclass(frozen=True)
class RtpPacket:
    """An RTP packet.

    Attributes:
        sequence: its number, of 16 bits.
        timestamp: of what it carries, of 32 bits.
        has_marker: whether the sender says that it is its access unit's last.
        payload: what it carries.
    """

    sequence: int
    timestamp: int
    has_marker: bool
    payload: bytes

    @classmethod
    def parse(cls, data: bytes) -> RtpPacket | None:
        """The packet that these bytes are, or None if they are none."""
        if len(data) < 12 or data[0] >> 6 != 2:
            return None
        start = 12 + 4 * (data[0] & 0x0F)
        if data[0] & 0x10:  # a header extension
            start += 4 + 4 * int.from_bytes(data[start + 2 : start + 4], "big")
        end = len(data) - (data[-1] if data[0] & 0x20 else 0)
        if start >= end:
            return None
        sequence, timestamp = int.from_bytes(data[2:4], "big"), int.from_bytes(data[4:8], "big")
        return cls(sequence, timestamp, bool(data[1] & 0x80), data[start:end])


@dataclass(frozen=True)
class AccessUnit:
    """What a decoder needs for one frame.

    Attributes:
        data: NAL units, each after a start code.
        timestamp: of its packets.
    """

    data: bytes
    timestamp: int


class AccessUnits:
    """Puts access units together from RTP packets in their order.

    A unit surely ends where a packet with another timestamp comes, which is a frame's time late. The marker bit ends it
    at once. Some senders set it on every NAL unit and some not at all, so it is believed when it has been right for
    eight units in a row, and never more once a packet of the same unit has followed it.

    Args:
        codec: of the packets.
    """

    def __init__(self, codec: Codec) -> None:
        self._nals_of = _h264_nals if codec == "h264" else _hevc_nals
        self._data = bytearray()
        self._fragment: bytearray | None = None
        self._sequence: int | None = None
        self._timestamp: int | None = None
        self._is_marked = False
        self._right_markers = 0
        self._has_wrong_markers = False

    def push(self, packet: RtpPacket) -> list[AccessUnit]:
        """Adds a packet, and returns the access units that are complete now.

        Raises:
            OSError: one grows beyond any sense.
        """
        if self._sequence is not None and packet.sequence != (self._sequence + 1) & 0xFFFF:
            self._fragment = None  # a part of it is missing
        self._sequence = packet.sequence
        units = []
        if packet.timestamp != self._timestamp:
            if self._timestamp is not None:
                self._right_markers = self._right_markers + 1 if self._is_marked else 0
                units += self._taken()
            self._timestamp, self._is_marked, self._fragment = packet.timestamp, False, None
        elif self._is_marked:
            self._has_wrong_markers = True
        self._is_marked |= packet.has_marker
        for is_start, is_end, part in self._nals_of(packet.payload):
            self._add(is_start, is_end, part)
        if packet.has_marker and not self._has_wrong_markers and self._right_markers >= _MARKERS_TO_TRUST:
            units += self._taken()
        return units

    def _add(self, is_start: bool, is_end: bool, part: bytes) -> None:
        if is_start:
            self._fragment = bytearray()
        if self._fragment is None:
            return
        self._fragment += part
        if len(self._data) + len(self._fragment) > _MOST_BYTES:
            raise OSError(errno.EMSGSIZE, f"sends more than {_MOST_BYTES >> 20} MiB for one frame")
        if is_end:
            self._data += START_CODE + self._fragment
            self._fragment = None

    def _taken(self) -> list[AccessUnit]:
        if not self._data:
            return []
        assert self._timestamp is not None
        unit = AccessUnit(bytes(self._data), self._timestamp)
        self._data.clear()
        return [unit]


_Parts = Iterator[tuple[bool, bool, bytes]]


def _h264_nals(payload: bytes) -> _Parts:
    """NAL units, or a part of one: whether it starts here, and ends here, its bytes."""
    kind = payload[0] & 0x1F
    if 1 <= kind <= 23:
        yield True, True, payload
    elif kind == 24:
        yield from _aggregated(payload, 1)
    elif kind == 28 and len(payload) > 2:
        is_start = bool(payload[1] & 0x80)
        header = bytes([payload[0] & 0xE0 | payload[1] & 0x1F]) if is_start else b""
        yield is_start, bool(payload[1] & 0x40), header + payload[2:]


def _hevc_nals(payload: bytes) -> _Parts:
    """The same for H.265."""
    if len(payload) < 3:
        return
    kind = payload[0] >> 1 & 0x3F
    if kind < 48:
        yield True, True, payload
    elif kind == 48:
        yield from _aggregated(payload, 2)
    elif kind == 49 and len(payload) > 3:
        is_start = bool(payload[2] & 0x80)
        header = bytes([payload[0] & 0x81 | (payload[2] & 0x3F) << 1, payload[1]]) if is_start else b""
        yield is_start, bool(payload[2] & 0x40), header + payload[3:]


def _aggregated(payload: bytes, at: int) -> _Parts:
    """The NAL units of a packet that has several, each after its size, from a byte on."""
    while at + 2 < len(payload):
        size = int.from_bytes(payload[at : at + 2], "big")
        nal = payload[at + 2 : at + 2 + size]
        if nal and len(nal) == size:
            yield True, True, nal
        at += 2 + size
