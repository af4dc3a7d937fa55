"""A user's name and password, as cameras ask for them."""

from __future__ import annotations

import base64
import errno
import hashlib
import re
import secrets
import urllib.request
from collections.abc import Sequence

REFUSED = "refuses the user or the password"
_HASHES = {"MD5": hashlib.md5, "SHA-256": hashlib.sha256}


class PasswordRefusedError(OSError):
    """The camera refuses the user or the password, or asks for them."""

    def __init__(self, reason: str = REFUSED) -> None:
        super().__init__(errno.EACCES, reason)


class Login:
    """Answers to what a server challenges with: Basic (RFC 7617), Digest (RFC 7616).

    Args:
        user: the name, empty if there is none.
        password: of the user.
    """

    def __init__(self, user: str, password: str) -> None:
        self._user, self._password = user, password
        self._scheme = ""
        self._values: dict[str, str] = {}

    @property
    def is_known(self) -> bool:
        """Whether there is a user."""
        return bool(self._user)

    @property
    def is_sent(self) -> bool:
        """Whether requests have the password with them."""
        return bool(self._scheme)

    def accept(self, challenges: Sequence[str]) -> bool:
        """Keeps the best of the challenges, and returns whether there is an answer."""
        for scheme, values in sorted(map(_parsed, challenges), key=lambda each: each[0], reverse=True):
            if self.is_known and _can_answer(scheme, values):
                self._scheme, self._values = scheme, values
                return True
        return False

    def header(self, method: str, url: str) -> str | None:
        """The value of `Authorization` for a request, None before a challenge."""
        if self._scheme == "digest":
            return self._digest(method, url)
        if self._scheme == "basic":
            return "Basic " + base64.b64encode(f"{self._user}:{self._password}".encode()).decode()
        return None

    def _digest(self, method: str, url: str) -> str:
        algorithm = self._values.get("algorithm", "MD5").upper()

        def hashed(*parts: str) -> str:
            return _HASHES[algorithm](":".join(parts).encode(), usedforsecurity=False).hexdigest()

        realm, nonce = self._values.get("realm", ""), self._values.get("nonce", "")
        secret, asked = hashed(self._user, realm, self._password), hashed(method, url)
        said = {"username": self._user, "realm": realm, "nonce": nonce, "uri": url}
        plain = {"algorithm": algorithm} if "algorithm" in self._values else {}
        if "qop" in self._values:
            own = secrets.token_hex(8)
            plain |= {"qop": "auth", "nc": "00000001"}
            said |= {"cnonce": own, "response": hashed(secret, nonce, "00000001", own, "auth", asked)}
        else:
            said["response"] = hashed(secret, nonce, asked)
        if "opaque" in self._values:
            said["opaque"] = self._values["opaque"]
        quoted = [f'{name}="{value}"' for name, value in said.items()]
        return "Digest " + ", ".join([*quoted, *(f"{name}={value}" for name, value in plain.items())])


def is_stale(challenges: Sequence[str]) -> bool:
    """Whether a refused answer was only too old, so that the password may be right."""
    return any(values.get("stale", "").lower() == "true" for _, values in map(_parsed, challenges))


def _can_answer(scheme: str, values: dict[str, str]) -> bool:
    if scheme != "digest":
        return scheme == "basic"
    is_known = values.get("algorithm", "MD5").upper() in _HASHES
    return is_known and "auth" in re.split(r"[ ,]+", values.get("qop", "auth"))


def _parsed(challenge: str) -> tuple[str, dict[str, str]]:
    """The scheme, in lower case, and the values of a `WWW-Authenticate`."""
    scheme, _, rest = challenge.partition(" ")
    pairs = [each for each in urllib.request.parse_http_list(rest) if "=" in each]
    return scheme.lower(), urllib.request.parse_keqv_list(pairs)
