"""RTSP over TCP from the client's side (RFC 2326), as much as a camera needs.

libavformat's own gives an access unit when the next one begins, a frame's time late: it does not pass on where RTP says
that one ends.
"""

from __future__ import annotations

import errno
import re
import socket
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from mssts.streaming.rtsp_film import Film, RtspUnsupportedError
from mssts.streaming.rtsp_login import Login, PasswordRefusedError, is_stale

_PORT = 554
_MOST_LINE, _MOST_LINES, _MOST_BODY = 8192, 100, 1 << 20
_MOST_EARLY = 4096  # packets
_SESSION_SECONDS = 60.0  # that a session lasts without a sign of life, where the camera does not say
_AGAIN_SECONDS, _GOODBYE_SECONDS = 1.0, 0.5


@dataclass(frozen=True)
class _Packet:
    channel: int
    data: bytes


@dataclass(frozen=True)
class _Message:
    """A camera's answer, or its own request, which has the status 0."""

    status: int
    headers: dict[str, list[str]]
    body: str

    def header(self, name: str) -> str:
        return self.headers.get(name, [""])[0]

    @property
    def challenges(self) -> list[str]:
        """The ways in which a password is asked for."""
        return self.headers.get("www-authenticate", [])


class RtspSession:
    """A camera's film, playing.

    Args:
        url: `rtsp://[USER:PASSWORD@]HOST[:PORT]/…`.
        timeout: seconds for each answer, and between packets of the film.

    Raises:
        OSError: the camera cannot be reached, or does not answer.
        PasswordRefusedError: it refuses the user or the password.
        RtspUnsupportedError: it needs more than is here.
    """

    def __init__(self, url: str, timeout: float) -> None:
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port or _PORT
        except ValueError:
            raise RtspUnsupportedError("no address") from None
        self._login = Login(unquote(parts.username or ""), unquote(parts.password or ""))
        self._url = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        self._timeout = timeout
        self._count = 0
        self._session = ""
        self._is_sign_refused = False
        self._early: deque[_Packet] = deque(maxlen=_MOST_EARLY)  # before the answer to a request
        try:
            self._socket = socket.create_connection((host, port), timeout)
        except (socket.gaierror, UnicodeError):
            raise OSError(errno.EIO, "there is no such host") from None
        self._file = self._socket.makefile("rb")
        try:
            self._play()
        except BaseException:
            self.close()
            raise

    def packets(self) -> Iterator[bytes]:
        """The film's RTP packets until the connection ends.

        Raises:
            OSError: nothing came in time, or the connection broke.
        """
        while (data := self._next_packet()) is not None:
            yield data

    def close(self) -> None:
        """Ends it, and tells the camera."""
        with suppress(OSError):
            if self._session:
                self._socket.settimeout(_GOODBYE_SECONDS)
                self._send("TEARDOWN", self._url)
        with suppress(OSError):
            self._file.close()
        self._socket.close()

    # --- requests -------------------------------------------------------------------------------------------------

    def _play(self) -> None:
        options = self._request("OPTIONS", self._url)
        self._sign_of_life = "GET_PARAMETER" if "GET_PARAMETER" in options.header("public") else "OPTIONS"
        described = self._request("DESCRIBE", self._url, {"Accept": "application/sdp"})
        self.film = Film.of_description(described.body)
        self._url = described.header("content-base") or self._url
        transport = {"Transport": "RTP/AVP/TCP;unicast;interleaved=0-1"}
        setup = self._request("SETUP", self._address(self.film.control), transport)
        channel = re.search(r"interleaved=(\d+)", setup.header("transport"))
        self._channel = int(channel[1]) if channel else 0
        self._session, _, more = setup.header("session").partition(";")
        seconds = re.search(r"timeout=(\d+)", more)
        self._pause = max(1.0, (float(seconds[1]) if seconds else _SESSION_SECONDS) / 2)
        self._request("PLAY", self._url, {"Range": "npt=0.000-"})
        self._next_sign = time.monotonic() + self._pause

    def _address(self, control: str) -> str:
        if control == "*":
            return self._url
        return control if "://" in control else f"{self._url.removesuffix('/')}/{control}"

    def _request(self, method: str, url: str, headers: dict[str, str] | None = None) -> _Message:
        """The answer to a request, which is sent again with a password if need be.

        A password is tried once, as cameras lock accounts after a few tries, and once more if nothing was wrong but
        the age of its nonce.
        """
        answer = self._answer_to(method, url, headers)
        tries = 0
        while answer.status == 401 and (tries == 0 or (tries == 1 and is_stale(answer.challenges))):
            if not self._login.accept(answer.challenges):
                if self._login.is_known:
                    raise RtspUnsupportedError("another way to log in")
                raise PasswordRefusedError("asks for a user and a password; expected rtsp://USER:PASSWORD@HOST/…")
            answer = self._answer_to(method, url, headers)
            tries += 1
        if answer.status == 401 or (answer.status == 403 and self._login.is_sent):
            raise PasswordRefusedError
        if answer.status != 200:
            raise RtspUnsupportedError(f"{method}: {answer.status}")
        return answer

    def _answer_to(self, method: str, url: str, headers: dict[str, str] | None) -> _Message:
        self._send(method, url, headers)
        return self._answer()

    def _answer(self) -> _Message:
        deadline = time.monotonic() + self._timeout
        while (received := self._receive(deadline)) is not None:
            if isinstance(received, _Packet):
                self._early.append(received)
            elif not received.status:
                self._confirm(received)
            elif received.header("cseq") == str(self._count):
                return received
        raise RtspUnsupportedError("the connection ended")

    def _next_packet(self) -> bytes | None:
        """The film's next packet, or None where the connection ends."""
        deadline = time.monotonic() + self._timeout
        while True:
            received = self._early.popleft() if self._early else self._receive(deadline)
            if received is None:
                return None
            if time.monotonic() >= self._next_sign:
                self._next_sign = time.monotonic() + self._pause
                self._send(self._sign_of_life, self._url)
            if isinstance(received, _Packet):
                if received.channel == self._channel:
                    return received.data
            elif not received.status:
                self._confirm(received)
            else:
                self._hear_sign(received)

    def _hear_sign(self, answer: _Message) -> None:
        """Takes the answer to a sign of life.

        Where a password is asked for, the sign is sent again soon, but once: packets may come all the same.
        """
        was_refused, self._is_sign_refused = self._is_sign_refused, answer.status == 401
        if self._is_sign_refused and not was_refused and self._login.accept(answer.challenges):
            self._next_sign = time.monotonic() + _AGAIN_SECONDS

    def _send(self, method: str, url: str, headers: dict[str, str] | None = None) -> None:
        self._count += 1
        said = {"CSeq": str(self._count), "User-Agent": "mssts", **(headers or {})}
        if self._session:
            said["Session"] = self._session
        if (login := self._login.header(method, url)) is not None:
            said["Authorization"] = login
        lines = [f"{method} {url} RTSP/1.0", *(f"{name}: {value}" for name, value in said.items())]
        self._socket.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())

    def _confirm(self, request: _Message) -> None:
        self._socket.sendall(f"RTSP/1.0 200 OK\r\nCSeq: {request.header('cseq')}\r\n\r\n".encode())

    # --- what comes -----------------------------------------------------------------------------------------------

    def _receive(self, deadline: float) -> _Packet | _Message | None:
        """The next packet or message, or None where the connection ends."""
        self._socket.settimeout(max(1e-3, deadline - time.monotonic()))
        while (first := self._file.read(1)) in (b"\r", b"\n"):
            pass
        if first == b"$":
            head = self._file.read(3)
            size = int.from_bytes(head[1:], "big")
            data = self._file.read(size)
            return _Packet(head[0], data) if len(head) == 3 and len(data) == size else None
        line = first + self._file.readline(_MOST_LINE)
        if not line.endswith(b"\n"):
            return None
        status = re.match(rb"RTSP/\d\.\d (\d{3})\b", line)
        if status is None and b" RTSP/" not in line:
            raise OSError(errno.EPROTO, "speaks no RTSP")
        headers: dict[str, list[str]] = {}
        for _ in range(_MOST_LINES):
            name, colon, value = self._file.readline(_MOST_LINE).decode("utf-8", "replace").partition(":")
            if not colon:
                break
            headers.setdefault(name.strip().lower(), []).append(value.strip())
        length = headers.get("content-length", ["0"])[0]
        size = min(int(length), _MOST_BODY) if length.isdecimal() else 0
        body = self._file.read(size).decode("utf-8", "replace")
        return _Message(int(status[1]) if status else 0, headers, body)
