"""How a client talks to its servers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mssts.errors import MsstsError


@dataclass(frozen=True)
class ClientOptions:
    """Options of a client.

    Attributes:
        timeout: seconds a clip may take, everything included: transfer, the server's queue, pauses before the clip is
            sent again.
        reconnect: seconds during which no server may answer, as while it is restarted, before a clip fails.
        keepalive: seconds without a word from a server that has clips, after which it must give a sign of life, and
            seconds that it has for that. The machine behind an open connection may be dead. Servers with Triton's own
            settings tolerate two such questions within five minutes; `mssts serve` tolerates any.
        in_flight: clips that `segment_many` sends at once, two a server if None.
        root_certificates: PEM file of the authority that signed the server's certificate, the system's if None. Only
            for `grpcs://`, as the next two.
        certificate: PEM file of this client's own certificate, where the server asks for one.
        key: PEM file of its private key.
        resize: frames that the engine takes smaller are resized here, as the server would: the same result from fewer
            bytes, at this machine's expense.
        jpeg_quality: raw frames are sent as JPEG of this quality, 1 to 100: fewer bytes, slightly other pixels. As they
            are if None.
        shared_memory: hand raw frames to the servers through shared memory. They must be on this machine and allow it.
            Not for asyncio.
    """

    timeout: float = 300.0
    reconnect: float = 60.0
    keepalive: float = 5.0
    in_flight: int | None = None
    root_certificates: Path | str | None = None
    certificate: Path | str | None = None
    key: Path | str | None = None
    resize: bool = True
    jpeg_quality: int | None = None
    shared_memory: bool = False

    def __post_init__(self) -> None:
        if self.timeout <= 0 or self.reconnect < 0:
            raise MsstsError(f"a clip's timeout must be above 0 s, not {self.timeout:g}, and reconnect at least 0 s")
        if not 0.1 <= self.keepalive <= 3600:
            raise MsstsError(f"keepalive must be from 0.1 to 3600 s, not {self.keepalive:g}")
        if self.in_flight is not None and self.in_flight < 1:
            raise MsstsError(f"at least 1 clip must be in flight, not {self.in_flight}")
        if (self.certificate is None) != (self.key is None):
            raise MsstsError("a client's certificate needs its key, and the key its certificate; give both")
        if self.jpeg_quality is not None and not 1 <= self.jpeg_quality <= 100:
            raise MsstsError(f"the JPEG quality must be from 1 to 100, not {self.jpeg_quality}")
