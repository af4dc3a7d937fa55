"""Frames handed to a server on the same machine through system shared memory."""

from __future__ import annotations

import mmap
import os
import secrets
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mssts.errors import MsstsError
from mssts.segmenters.triton.retries import Server

_FOLDER = Path("/dev/shm")


class Region:
    """A named piece of shared memory, which this process writes and servers read."""

    def __init__(self, size: int) -> None:
        self.name = f"mssts_client_{os.getpid()}_{secrets.token_hex(4)}"
        self.size = size
        self._path = _FOLDER / self.name
        try:
            handle = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
            try:
                # Reserved now: a full /dev/shm is an error here, and a bus error later.
                os.posix_fallocate(handle, 0, size)
                self._memory = mmap.mmap(handle, size)
            finally:
                os.close(handle)
        except OSError as error:
            self._path.unlink(missing_ok=True)
            raise MsstsError(f"no shared memory of {size} bytes in {_FOLDER}: {error.strerror}") from None

    def write(self, array: np.ndarray) -> None:
        """Copies an array to the start of the region."""
        target = np.frombuffer(self._memory, array.dtype, array.size)
        target[:] = array.reshape(-1)

    def register(self, server: Server) -> None:
        """Makes the region known to a server, once for each of its lives."""
        if self.name in server.regions:
            return
        server.client.unregister_system_shared_memory(self.name)
        server.client.register_system_shared_memory(self.name, f"/{self.name}", self.size)
        server.regions.add(self.name)

    def close(self) -> None:
        """Removes it.

        A server that has it open keeps it until it unregisters it.
        """
        self._path.unlink(missing_ok=True)


class Regions:
    """Regions for the clips in flight, used again one after the other.

    Safe to share between threads.
    """

    def __init__(self) -> None:
        self._free: list[Region] = []
        self._all: list[Region] = []
        self._lock = threading.Lock()

    def take(self, size: int) -> Region:
        """A region of at least so many bytes."""
        with self._lock:
            for region in self._free:
                if region.size >= size:
                    self._free.remove(region)
                    return region
        region = Region(size)
        with self._lock:
            self._all.append(region)
        return region

    def give_back(self, regions: Sequence[Region]) -> None:
        """Makes regions free for the next clip."""
        with self._lock:
            self._free.extend(regions)

    def close(self, servers: tuple[Server, ...], error: type[Exception]) -> None:
        """Removes all regions, here and on the servers that answer."""
        for region in self._all:
            for server in servers:
                if region.name in server.regions:
                    try:
                        server.client.unregister_system_shared_memory(region.name, client_timeout=1.0)
                    except error:
                        continue
            region.close()
        self._all.clear()
        self._free.clear()


def check_allowed(servers: tuple[Server, ...], error: Any) -> None:
    """Checks that all servers are on this machine and take shared memory.

    Raises:
        MsstsError: one is not or does not.
    """
    for server in servers:
        if not server.address.is_loopback:
            raise MsstsError(f"{server.address}: shared memory needs a server on this machine")
        if not server.is_known:
            continue
        try:
            server.client.get_system_shared_memory_status(client_timeout=5.0)
        except error as failure:
            raise MsstsError(
                f"{server.address}: does not allow shared memory ({failure.message()}); start it with "
                "`mssts serve --allow-shared-memory`, or do without"
            ) from None
