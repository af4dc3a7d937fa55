"""A TCP proxy that can fall silent, as a machine does whose power is cut."""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType


class SilentProxy:
    """Forwards connections to a port of this machine until it is frozen.

    From then on it forwards nothing and closes nothing. New connections are taken, and have no answer either.

    Attributes:
        port: where it listens.
    """

    def __init__(self, target_port: int) -> None:
        self._target = ("127.0.0.1", target_port)
        self._is_frozen = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = [self._listener]
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def freeze(self) -> None:
        """Falls silent."""
        self._is_frozen.set()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                self._open.append(client)
                if self._is_frozen.is_set():
                    continue
                server = socket.create_connection(self._target)
                self._open.append(server)
                for source, sink in ((client, server), (server, client)):
                    threading.Thread(target=self._forward, args=(source, sink), daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if self._is_frozen.is_set():
                    return
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def __enter__(self) -> SilentProxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for one in self._open:
            one.close()
