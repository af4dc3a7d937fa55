"""Where a page listens, and who may see it."""

from __future__ import annotations

import ipaddress
import os
import secrets
from dataclasses import dataclass, field

from mssts.errors import MsstsError

_LOOPBACK = "127.0.0.1"
TOKEN_VARIABLE = "MSSTS_VIEW_TOKEN"


def _token() -> str:
    return os.environ.get(TOKEN_VARIABLE) or secrets.token_urlsafe(16)


@dataclass(frozen=True)
class PageAddress:
    """An address to listen at.

    Attributes:
        host: this machine's own name or address, all of its addresses if `0.0.0.0` or `::`.
        port: a free one is taken if 0.
        token: what a viewer must know, empty on loopback. It is taken from MSSTS_VIEW_TOKEN, or made.
    """

    host: str
    port: int
    token: str = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> PageAddress:
        """Reads `PORT` or `HOST:PORT`, an IPv6 address in brackets.

        Raises:
            MsstsError: it is not of that form.
        """
        host, _, port = text.rpartition(":")
        if not (port.isascii() and port.isdigit() and int(port) < 1 << 16) or (":" in host and host[:1] != "["):
            raise MsstsError(f"--view {text}: expected a port as 8080, or an address and a port as 0.0.0.0:8080")
        host = host.strip("[]") or _LOOPBACK
        return cls(host, int(port), "" if _is_loopback(host) else _token())

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return _is_loopback(self.host)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_loopback_header(host: str) -> bool:
    """Whether a request's Host header names this machine itself.

    A page of another site whose name was made to point here has its own name in it.
    """
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    return _is_loopback(name.strip("[]"))
