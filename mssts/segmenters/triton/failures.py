"""Meaning of a server's errors: who must act, and whether to send again."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import Any

# What Triton writes in front of a message: the request's id, of which we give none, and the ensemble's name.
_PREFIX = re.compile(r"^(?:\[request id: \S+\] )?(?:in ensemble '\w+', )?(?:\[request id: \S+\] )?")
# Our models' two refusals, Triton's own two, and that of nginx's limit_conn.
_FULL = re.compile(
    r"the server is full|too slow for its queue|Exceeds maximum queue size|Request timeout expired|"
    r"http2 header with status: 503"
)
_BROKEN = re.compile(
    r"Stub process '\w+' is not healthy|failed to load|is not ready|unknown model|server is stopping", re.I
)
_UNTRUSTED = re.compile(r"CERTIFICATE|handshake failed|certificate", re.I)


class Kind(Enum):
    """Kinds of failure. All but the last two may pass."""

    FULL = "the server's queue takes no more clips"
    ABSENT = "no server answers there"
    BROKEN = "the server answers, but one of its models has died or is not loaded"
    LATE = "no answer in time"
    REFUSED = "the server will not or cannot do what was asked"


@dataclass(frozen=True)
class Failure:
    """A failed call: its kind, and the server's own line."""

    kind: Kind
    message: str

    @property
    def may_pass(self) -> bool:
        """Whether the same request may succeed later, or on another server."""
        return self.kind in (Kind.FULL, Kind.ABSENT, Kind.BROKEN)


def failure_of(error: Any) -> Failure:
    """The failure that tritonclient's `InferenceServerException` stands for."""
    status = str(error.status()).removeprefix("StatusCode.")
    message = _PREFIX.sub("", " ".join(str(error.message()).split()))
    if status == "DEADLINE_EXCEEDED":
        return Failure(Kind.LATE, message)
    if status == "UNAVAILABLE" and _UNTRUSTED.search(message):
        return Failure(Kind.REFUSED, f"TLS: {message}")
    if status == "UNAVAILABLE" and _FULL.search(message):
        return Failure(Kind.FULL, message)
    if _BROKEN.search(message) and status in ("UNAVAILABLE", "INTERNAL", "NOT_FOUND", "INVALID_ARGUMENT"):
        return Failure(Kind.BROKEN, message)
    if status == "UNAVAILABLE":
        return Failure(Kind.ABSENT, message)
    return Failure(Kind.REFUSED, message)
