"""Results posted to an address, in batches, without ever holding up the video."""

from __future__ import annotations

import base64
import http.client
import json
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from mssts.errors import MsstsError
from mssts.streaming.results import FrameResult
from mssts.streaming.sinks import Monitored, Sink
from mssts.streaming.sources import public_name

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 8.0  # seconds between attempts at one batch
_END_SECONDS = 5.0  # for what is left when the stream ends
_AGAIN = frozenset({408, 425, 429})  # besides 5xx, the statuses that may pass


class _NoRedirection(urllib.request.HTTPRedirectHandler):
    """Takes a redirection for a failure.

    Followed, a post would become a GET without the results, with the password, to another host.
    """

    def redirect_request(self, *_: Any) -> None:
        """No request instead."""


_OPENER = urllib.request.build_opener(_NoRedirection)


class Webhook(Sink):
    """Posts results as JSON, `{"frames": [a JSONL line's object, …]}`.

    A thread of its own sends a batch as soon as there is one frame and the one before is through, or `seconds` after
    it. A batch that fails is sent again, `attempts` times in all, and then given up. Frames wait in a queue of
    `most_waiting`, of which the oldest are given up.

    Args:
        url: `http://` or `https://`; a user and password in it are sent as basic authentication.
        batch: frames in one request at most.
        seconds: between the requests, at least.
        most_waiting: frames.
        attempts: at one batch.
        timeout: seconds for one request.

    Raises:
        MsstsError: the URL is not one of HTTP.
    """

    def __init__(
        self,
        url: str,
        *,
        batch: int = 64,
        seconds: float = 0.5,
        most_waiting: int = 1024,
        attempts: int = 5,
        timeout: float = 10.0,
    ) -> None:
        self._name = public_name(url)
        try:
            parts = urlsplit(url)
            valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            valid = False
        if not valid:
            raise MsstsError(f"{self._name}: not an address to post to; expected http://… or https://…")
        self._headers = {"Content-Type": "application/json"}
        if parts.username is not None:
            secret = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            self._headers["Authorization"] = "Basic " + base64.b64encode(secret.encode()).decode()
        self._url = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
        self._batch, self._seconds, self._attempts, self._timeout = batch, seconds, attempts, timeout
        self._waiting: deque[dict[str, Any]] = deque(maxlen=most_waiting)
        self._changed = threading.Condition()
        self._end: float | None = None  # until when what is left may still be sent, once closed
        self._sending = 0
        self._lost = 0
        self._line = ""  # what is to be said
        self._is_failing = False
        self._thread = threading.Thread(target=self._send_all, name="mssts-webhook", daemon=True)

    def open(self, stream: Monitored) -> None:
        """Starts sending."""
        self._thread.start()

    def write(self, result: FrameResult) -> None:
        """Queues a result.

        Raises:
            MsstsError: requests began to fail, or succeed again; said once each.
        """
        with self._changed:
            self._lost += len(self._waiting) == self._waiting.maxlen
            self._waiting.append(result.to_json())
            self._changed.notify()
            line, self._line = self._line, ""
        if line:
            raise MsstsError(line)

    def close(self) -> None:
        """Sends what waits, for a few seconds at most.

        Raises:
            MsstsError: frames were not sent.
        """
        with self._changed:
            self._end = time.monotonic() + _END_SECONDS
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join(_END_SECONDS)
        with self._changed:
            left = self._lost + self._sending + len(self._waiting)
        if left:
            raise MsstsError(f"{self._name}: {left} frames were not posted")

    def _send_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._end is not None)
                if not self._waiting or self._is_over:
                    return
                frames = [self._waiting.popleft() for _ in range(min(self._batch, len(self._waiting)))]
                self._sending = len(frames)
            sent = self._send(json.dumps({"frames": frames}, ensure_ascii=False, separators=(",", ":")).encode())
            with self._changed:
                self._lost += 0 if sent else len(frames)
                self._sending = 0
                self._changed.wait_for(lambda: self._end is not None, self._seconds)

    @property
    def _is_over(self) -> bool:
        return self._end is not None and time.monotonic() >= self._end

    def _send(self, body: bytes) -> bool:
        """Sends a batch, again if need be, and returns whether it arrived."""
        pause = _FIRST_PAUSE
        for attempt in range(self._attempts):
            cause, may_pass = self._post(body)
            if not cause:
                self._say(f"{self._name}: takes results again", failing=False)
                return True
            self._say(f"{self._name}: does not take results: {cause}", failing=True)
            if not may_pass or self._is_over or attempt + 1 == self._attempts:
                break
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        return False

    def _post(self, body: bytes) -> tuple[str, bool]:
        """Why a request failed, empty if it did not, and whether another may succeed."""
        request = urllib.request.Request(self._url, body, self._headers, method="POST")
        try:
            with _OPENER.open(request, timeout=self._timeout) as answer:
                answer.read(1 << 16)
            return "", True
        except urllib.error.HTTPError as error:
            error.close()
            return f"it answers {error.code}", error.code >= 500 or error.code in _AGAIN
        except urllib.error.URLError as error:
            cause = error.reason
            return (getattr(cause, "strerror", None) or str(cause)), True
        except (OSError, http.client.HTTPException, ValueError) as error:
            return (getattr(error, "strerror", None) or str(error) or type(error).__name__), True

    def _say(self, line: str, failing: bool) -> None:
        with self._changed:
            if failing != self._is_failing:
                self._is_failing = failing
                self._line = line
