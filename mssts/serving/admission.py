"""Bounded queues: whether a clip may join, and whether it waited too long.

Runs inside Triton.

`preprocess` asks the server how many clips wait for the engine before it decodes another, and refuses the clip at once
where they are too many, or where the engine is too slow for them. What waits for `preprocess` itself is bounded by
that: it is what arrives while one clip is decoded.

Triton's own limit of a queue (`max_queue_size` of a `default_queue_policy`) is not used. With it the scheduler often
misses the moment when the model becomes free, and lets it idle for half a second (2.51; the code of 2026 is the same).
"""

from __future__ import annotations

import http.client
import math
import os
import re
import time
from dataclasses import dataclass

from mssts.errors import MsstsError

METRICS_ADDRESS = "MSSTS_METRICS_ADDRESS"  # the environment variable; host:port
STOPPING_FILE = "MSSTS_STOPPING_FILE"  # the environment variable; while that file is there, no clip is let in
CLIP_SECONDS = "mssts_engine_clip_seconds"  # the engine's metric of what its last clip took
_DEFAULT_METRICS = "127.0.0.1:8002"  # Triton's own default
_SECONDS = 1.0  # that the server may take to say
_WAITING = re.compile(rb'^nv_inference_pending_request_count\{model="engine".*?\} (\d+)', re.MULTILINE)
_COMPUTES = re.compile(rb"^" + CLIP_SECONDS.encode() + rb"\S* (\S+)", re.MULTILINE)
_STAMPS = 2**31
# Of the time that the engine took for the clip before: what waits for a single clip is computed, however slow it was.
_PATIENCE = 1.25


@dataclass(frozen=True)
class QueueLimits:
    """The most that may wait for the engine.

    Clients are refused what comes on top, and may send it again.

    A client's own deadline does not reach the queues: without a limit of age, the engine computes clips that nobody
    waits for any more.

    Attributes:
        clips: that wait, beside the one being computed.
        seconds: that one waits at most, without limit if 0. A clip that waited for no more than one other is computed
            even so: a slow engine would idle otherwise.
    """

    clips: int = 2
    seconds: float = 1.0

    def __post_init__(self) -> None:
        if self.clips < 1:
            raise MsstsError(f"the queue must hold at least 1 clip, not {self.clips}")
        if not 0 <= self.seconds <= 86400:
            raise MsstsError(f"a clip may wait from 0 (no limit) to 86400 seconds, not {self.seconds:g}")

    def patience(self, clip_seconds: float) -> float:
        """Seconds that a clip may wait for an engine of so many seconds a clip."""
        return max(self.seconds, _PATIENCE * clip_seconds) if self.seconds else math.inf


class Refused(MsstsError):
    """A clip that was refused only for now. Clients may send it again."""


class Admission:
    """Lets clips pass while fewer than a limit wait for the engine.

    Args:
        limits: the limit.
        address: host:port of the server's metrics, from the environment if None.
        stopping_file: no clip passes while it is there; from the environment if None.
    """

    def __init__(self, limits: QueueLimits, address: str | None = None, stopping_file: str | None = None) -> None:
        self._stopping_file = stopping_file or os.environ.get(STOPPING_FILE, "")
        self._limits = limits
        self._address = address or os.environ.get(METRICS_ADDRESS, _DEFAULT_METRICS)
        self._connection = http.client.HTTPConnection(self._address, timeout=_SECONDS)

    def check(self) -> str | None:
        """Checks that a clip may join.

        A server that does not say how many wait is taken for one where none do.

        Returns:
            Why the server does not say, None where it does.

        Raises:
            Refused: as many wait as may, or so many that this one would wait too long, or the server is about to stop.
        """
        if self._stopping_file and os.path.exists(self._stopping_file):  # noqa: PTH110  (for every clip)
            raise Refused("the server is stopping; send the clip to another, or again later")
        try:
            self._connection.request("GET", "/metrics")
            page = self._connection.getresponse().read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()  # the next request opens it again
            return f"no metrics at {self._address}: {type(error).__name__} {error}"
        found = _WAITING.search(page)
        if found is None:
            return f"the metrics at {self._address} do not say how many requests wait for the engine"
        waiting = int(found[1])
        if waiting >= self._limits.clips:
            raise Refused(f"the server is full: {waiting} clips wait for the engine; send this one again later")
        computes = _COMPUTES.search(page)
        clip_seconds = float(computes[1]) if computes else 0.0
        # Half of the clip that is computed now is left on average.
        if waiting and (waiting + 0.5) * clip_seconds > self._limits.patience(clip_seconds):
            raise Refused(
                f"the server is full: {waiting} waits for the engine, which takes {clip_seconds:.1f} s a clip; send "
                "this one again later"
            )
        return None


def stamp() -> int:
    """The time now in milliseconds, for the tensor `arrived_ms`."""
    return time.monotonic_ns() // 1_000_000 % _STAMPS


def check_age(arrived_ms: int, limits: QueueLimits, clip_seconds: float = 0.0) -> None:
    """Checks how long a clip has waited since its `stamp`.

    Args:
        arrived_ms: the stamp.
        limits: the limit.
        clip_seconds: what the engine took for the clip before.

    Raises:
        Refused: longer than the limit.
    """
    seconds = (stamp() - arrived_ms) % _STAMPS / 1000
    limit = limits.patience(clip_seconds)
    if seconds > limit:
        raise Refused(
            f"the server is too slow for its queue: the clip waited {seconds:.1f} s for the engine, over the limit of "
            f"{limit:.3g} s; send it again later"
        )
