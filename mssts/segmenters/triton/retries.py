"""When to try again, and on which server.

Without input and output, so that both clients use it.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from mssts import contract
from mssts.errors import MsstsError
from mssts.segmenters.triton.addresses import Address
from mssts.segmenters.triton.failures import Failure, Kind

CONNECT_SECONDS = 10.0  # that a question of a few bytes may take

# Pauses after a failure double from the first to the last, in seconds; of each a random half is left out, so that
# clients that were refused together do not come back together.
_PAUSES = {Kind.FULL: (0.05, 1.0), Kind.ABSENT: (0.1, 2.0), Kind.BROKEN: (0.25, 2.0)}


class Server:
    """One server of a client, with what is known of its state.

    Attributes:
        address: where it listens.
        client: tritonclient's client of it.
        is_known: its manifest was read since it last failed to answer.
        regions: names of the shared memory that it knows.
    """

    def __init__(self, address: Address, client: Any) -> None:
        self.address = address
        self.client = client
        self.is_known = False
        self.regions: set[str] = set()
        self.in_flight = 0
        self.usable_from = 0.0
        self.failures = 0  # in a row


class Pool:
    """The servers of a client.

    The next one to use is the least busy of those that did not refuse or fail a moment ago.

    Safe to share between threads.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        clock: Callable[[], float] = time.monotonic,
        fraction: Callable[[], float] = random.random,
    ) -> None:
        self.servers = tuple(servers)
        self.clock = clock
        self._fraction = fraction
        self._lock = threading.Lock()

    def take(self) -> tuple[Server, float]:
        """A server to send to, or the seconds to wait before asking again."""
        with self._lock:
            now = self.clock()
            server = min(self.servers, key=lambda one: (max(one.usable_from, now), one.in_flight))
            wait = max(0.0, server.usable_from - now)
            if not wait:
                server.in_flight += 1
            return server, wait

    def give_back(self, server: Server, failure: Failure | None) -> None:
        """Ends what `take` began: the server answered, or failed."""
        with self._lock:
            server.in_flight -= 1
            if failure is None or not failure.may_pass:
                server.failures = 0
                return
            server.failures += 1
            if failure.kind is not Kind.FULL:
                server.is_known = False
                server.regions.clear()
            first, last = _PAUSES[failure.kind]
            pause = min(last, first * 2 ** min(server.failures - 1, 16))
            server.usable_from = self.clock() + pause * (1 - self._fraction() / 2)


class Attempts:
    """The attempts at one request, until its deadline.

    Args:
        pool: the servers.
        timeout: seconds until the deadline.
        reconnect: seconds during which no server may answer.
    """

    def __init__(self, pool: Pool, timeout: float, reconnect: float) -> None:
        self._pool = pool
        self._timeout = timeout
        self._reconnect = reconnect
        self._deadline = pool.clock() + timeout
        self._absent_since: float | None = None
        self._last: tuple[Server, Failure] | None = None

    @property
    def remaining(self) -> float:
        """Seconds until the deadline."""
        return max(0.0, self._deadline - self._pool.clock())

    def take(self) -> tuple[Server, float]:
        """A server to send to, or how long to wait first.

        See `Pool.take`.

        Raises:
            MsstsError: the deadline would be over by then.
        """
        server, wait = self._pool.take()
        if wait >= self.remaining:
            if not wait:
                self._pool.give_back(server, None)
            failure = self._last[1] if self._last else Failure(Kind.LATE, "")
            raise error_of(server.address, failure, self._timeout)
        return server, wait

    def succeeded(self, server: Server) -> None:
        """Notes that the server answered."""
        self._pool.give_back(server, None)

    def failed(self, server: Server, failure: Failure) -> None:
        """Notes that the attempt failed.

        Raises:
            MsstsError: another attempt is of no use.
        """
        if failure.kind is Kind.LATE and not server.is_known:
            failure = Failure(Kind.ABSENT, failure.message)  # it did not even say who it is
        self._pool.give_back(server, failure)
        self._last = (server, failure)
        now = self._pool.clock()
        if failure.kind is not Kind.ABSENT:
            self._absent_since = None
        elif self._absent_since is None:
            self._absent_since = now
        if not failure.may_pass or (self._absent_since is not None and now - self._absent_since >= self._reconnect):
            raise error_of(server.address, failure, self._timeout)


def connect_error(address: Address, failure: Failure) -> MsstsError:
    """The message of a small request that failed, as when a client is opened."""
    if failure.kind is Kind.BROKEN:
        return MsstsError(f"{address}: does not serve {contract.ENSEMBLE} ({failure.message})")
    return error_of(address, failure, CONNECT_SECONDS)


def error_of(address: Address, failure: Failure, seconds: float) -> MsstsError:
    """The line that a user reads of a call that failed for good, after `seconds`."""
    if failure.kind is Kind.ABSENT:
        return MsstsError(
            f"{address}: no Triton server answers there; start one with `mssts serve` ({failure.message})"
        )
    if failure.kind is Kind.FULL:
        return MsstsError(
            f"{address}: the server is full and refused the clip for {seconds:g} s ({failure.message}); send fewer at "
            "a time, or start it with a larger `--max-queue`"
        )
    if failure.kind is Kind.BROKEN:
        return MsstsError(f"{address}: a model of the server is not running ({failure.message}); see its log")
    if failure.kind is Kind.LATE:
        return MsstsError(f"{address}: no answer after {seconds:g} s")
    return MsstsError(failure.message)
