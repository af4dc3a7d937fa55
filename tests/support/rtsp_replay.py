"""An RTSP server that sends packets once, and then nothing or the end."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import av
import numpy as np

RATE = 12


def rtp_packets(
    pictures: Sequence[np.ndarray], codec: str = "libx264", packet_size: int = 1400, **options: str
) -> list[bytes]:
    """The RTP packets that FFmpeg makes of pictures, RGB uint8 [H, W, 3]."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.setblocking(False)
        found: list[bytes] = []

        def collect() -> None:
            with contextlib.suppress(BlockingIOError):
                while True:
                    found.append(receiver.recv(1 << 16))

        url = f"rtp://127.0.0.1:{receiver.getsockname()[1]}?pkt_size={packet_size}"
        with av.open(url, "w", format="rtp") as container:
            stream: Any = container.add_stream(codec, rate=Fraction(RATE), options=options)
            stream.height, stream.width = pictures[0].shape[:2]
            stream.pix_fmt = "yuv420p"
            for picture in pictures:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
                collect()
            container.mux(stream.encode())
            collect()
    return found


class ReplayServer:
    """Plays packets to each client that comes, as fast as it takes them.

    Args:
        packets: of RTP.
        encoding: the codec's name in RTP.
        session: of the answer to SETUP.
        pause: seconds after each packet.
        ends: whether the connection ends after the packets.
        login: what is asked of a request without a password, as `Basic realm="x"`.
        refusals: the status and the challenge with which the next passwords are refused, one after the other.

    Attributes:
        refusals: those that are left.
        requests: the first line of each.
        agents: the program of each request to describe the stream.
        passwords: the value of `Authorization` of each request that has one.
    """

    def __init__(
        self,
        packets: Sequence[bytes],
        encoding: str = "H264",
        session: str = "1",
        pause: float = 0.0,
        ends: bool = False,
        login: str = "",
        refusals: Sequence[tuple[int, str]] = (),
    ) -> None:
        self._packets = packets
        self._ends = ends
        self._login = login
        self.refusals = list(refusals)
        self.agents: list[str] = []
        self.passwords: list[str] = []
        self._description = (
            "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 0.0.0.0\r\nt=0 0\r\na=control:*\r\n"
            f"m=audio 0 RTP/AVP 0\r\na=control:track0\r\nm=video 0 RTP/AVP 96\r\na=rtpmap:96 {encoding}/90000\r\n"
            "a=fmtp:96 packetization-mode=1\r\na=control:track1\r\n"
        )
        self._session = session
        self._pause = pause
        self.requests: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"rtsp://127.0.0.1:{self._listener.getsockname()[1]}/camera"
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._talk, args=(client,), daemon=True).start()

    def _talk(self, client: socket.socket) -> None:
        channel = 0
        sending = threading.Lock()
        with client, client.makefile("rb") as file, contextlib.suppress(OSError):
            while line := file.readline().decode():
                method = line.split(" ", 1)[0]
                self.requests.append(line.strip())
                headers = {}
                while ":" in (header := file.readline().decode()):
                    name, value = header.split(":", 1)
                    headers[name.lower()] = value.strip()
                if method == "DESCRIBE":
                    self.agents.append(headers.get("user-agent", ""))
                if self._login and (refusal := self._refusal(headers.get("authorization"))):
                    with sending:
                        client.sendall(refusal.format(headers["cseq"]).encode())
                    continue
                answer = [f"CSeq: {headers['cseq']}", *self._more(method)]
                if method == "SETUP":
                    answer.append(f"Transport: {headers['transport']}")
                    if "track1" in line:
                        channel = int(headers["transport"].partition("interleaved=")[2].partition("-")[0])
                body = self._description if method == "DESCRIBE" else ""
                with sending:
                    client.sendall("\r\n".join(["RTSP/1.0 200 OK", *answer, "", body]).encode())
                if method == "PLAY":
                    threading.Thread(target=self._play, args=(client, channel, sending), daemon=True).start()

    def _play(self, client: socket.socket, channel: int, sending: threading.Lock) -> None:
        with contextlib.suppress(OSError):
            for packet in self._packets:
                with sending:
                    client.sendall(b"$" + bytes([channel]) + len(packet).to_bytes(2, "big") + packet)
                time.sleep(self._pause)
            if self._ends:
                client.shutdown(socket.SHUT_RDWR)

    def _refusal(self, password: str | None) -> str:
        """The answer to what is not allowed, empty for what is."""
        if password is None:
            status, challenge = 401, self._login
        else:
            self.passwords.append(password)
            if not self.refusals:
                return ""
            status, challenge = self.refusals.pop(0)
        return f"RTSP/1.0 {status} No\r\nCSeq: {{}}\r\nWWW-Authenticate: {challenge}\r\n\r\n"

    def _more(self, method: str) -> list[str]:
        if method == "DESCRIBE":
            size = len(self._description)
            return [f"Content-Base: {self.url}/", "Content-Type: application/sdp", f"Content-Length: {size}"]
        if method == "SETUP":
            return [f"Session: {self._session}"]
        return ["Public: OPTIONS, DESCRIBE, SETUP, PLAY, GET_PARAMETER"] if method == "OPTIONS" else []
