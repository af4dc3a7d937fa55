"""The HTTP server of a stream's page, in a thread with an event loop of its own."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import re
import socket
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mssts.errors import MsstsError
from mssts.files import reason
from mssts.streaming.page_address import PageAddress, is_loopback_header

if TYPE_CHECKING:
    from aiohttp import web

_PAGE = Path(__file__).with_name("page.html")
_BOUNDARY = b"--frame\r\n"
_PATIENCE = 5.0  # seconds for which a viewer may not read before it is dropped
_SEND_BUFFER = 1 << 18  # bytes in the kernel for one viewer, so that a slow one lags by a few pictures at most
_MOST_VIEWERS = 32
_REFUSED = "The address lacks the token that mssts stream printed.\n"
_REPEAT_SECONDS = 1.0  # a browser may hold a picture back until the next one, and a viewer that is gone is noticed
_START_SECONDS, _STOP_SECONDS = 10.0, 2.0


class PageServer:
    """Serves the page, its state, and pictures as MJPEG.

    Every viewer gets the newest picture whenever it is through with the one before. One that does not read for
    `patience` seconds is dropped.

    Args:
        address: where to listen.
        on_viewer: called when somebody begins to watch.
        patience: seconds.

    Raises:
        MsstsError: aiohttp is not installed.
    """

    def __init__(self, address: PageAddress, on_viewer: Callable[[], None], patience: float = _PATIENCE) -> None:
        try:
            import aiohttp  # noqa: F401
        except ImportError:
            raise MsstsError("aiohttp is not installed, which --view needs: `pip install 'mssts[view]'`") from None
        self._address, self._on_viewer, self._patience = address, on_viewer, patience
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="mssts-page", daemon=True)
        self._ready = threading.Event()
        self._socket: socket.socket | None = None
        self._page = _PAGE.read_bytes()
        # Of the loop's thread alone:
        self._viewers: dict[str, int] = {}  # the connections of a page, by the name that it gave itself
        self._state: dict[str, Any] = {}
        self._jpeg = b""
        self._number = 0
        self._changed = asyncio.Event()
        self._ended = asyncio.Event()

    @property
    def url(self) -> str:
        """The page's address, with its token."""
        assert self._socket is not None
        host, port = self._address.host, self._socket.getsockname()[1]
        if host in ("0.0.0.0", "::"):
            host = socket.gethostname()
        query = f"?token={self._address.token}" if self._address.token else ""
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/{query}"

    @property
    def is_watched(self) -> bool:
        """Whether anybody gets pictures."""
        return bool(self._viewers)

    def start(self) -> None:
        """Listens, and serves in a thread.

        Raises:
            MsstsError: the port is taken, or may not be used.
        """
        host, port = self._address.host, self._address.port
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._socket = socket.create_server((host, port), family=family)
        except OSError as error:
            raise MsstsError(f"--view {host}:{port}: cannot listen there: {reason(error)}; name another port") from None
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        self._thread.start()
        self._ready.wait(_START_SECONDS)

    def publish(self, state: dict[str, Any], jpeg: bytes | None = None) -> None:
        """Shows a state, and a picture if there is one, from any thread."""
        self._loop.call_soon_threadsafe(self._show, state, jpeg)

    def stop(self) -> None:
        """Ends all connections and the thread."""
        if self._thread.ident is not None:
            self._loop.call_soon_threadsafe(self._end)
            self._thread.join(2 * _STOP_SECONDS)
        if self._socket is not None:
            self._socket.close()

    # --- the loop's thread ----------------------------------------------------------------------------------------

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._run())
        finally:
            self._loop.close()

    async def _run(self) -> None:
        from aiohttp import web

        @web.middleware
        async def checked(
            request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
        ) -> web.StreamResponse:
            return await handler(request) if self._allows(request) else web.Response(status=403, text=_REFUSED)

        application = web.Application(middlewares=[checked])
        application.add_routes(
            [web.get("/", self._get_page), web.get("/state", self._get_state), web.get("/picture", self._get_picture)]
        )
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=_STOP_SECONDS)
        await runner.setup()
        await web.SockSite(runner, self._socket).start()  # type: ignore[arg-type]
        self._ready.set()
        await self._ended.wait()
        await runner.cleanup()

    def _show(self, state: dict[str, Any], jpeg: bytes | None) -> None:
        self._state = state
        if jpeg is not None:
            self._jpeg = jpeg
            self._number += 1
            self._wake()

    def _wake(self) -> None:
        """Wakes all who wait for a picture."""
        self._changed.set()
        self._changed = asyncio.Event()

    def _end(self) -> None:
        self._ended.set()
        self._wake()

    def _allows(self, request: web.Request) -> bool:
        token = self._address.token
        if token:
            return hmac.compare_digest(request.query.get("token", "").encode(), token.encode())
        return is_loopback_header(request.host)

    async def _get_page(self, request: web.Request) -> web.StreamResponse:
        from aiohttp import web

        return web.Response(
            body=self._page,
            content_type="text/html",
            charset="utf-8",
            headers={
                "Cache-Control": "no-store",
                "Referrer-Policy": "no-referrer",
                "Content-Security-Policy": _policy(self._page),
            },
        )

    async def _get_state(self, request: web.Request) -> web.StreamResponse:
        from aiohttp import web

        state = self._state | {
            "viewers": len(self._viewers),
            "watching": request.query.get("viewer", "") in self._viewers,
        }
        return web.Response(
            text=json.dumps(state, ensure_ascii=False),
            content_type="application/json",
            headers={"Cache-Control": "no-store"},
        )

    async def _get_picture(self, request: web.Request) -> web.StreamResponse:
        from aiohttp import web

        if sum(self._viewers.values()) >= _MOST_VIEWERS:
            return web.Response(status=503, text="There are too many viewers.\n")
        response = web.StreamResponse(
            headers={"Content-Type": "multipart/x-mixed-replace; boundary=frame", "Cache-Control": "no-store"}
        )
        await response.prepare(request)
        name = request.query.get("viewer", "")
        self._viewers[name] = self._viewers.get(name, 0) + 1
        self._on_viewer()
        try:
            await self._send_pictures(response)
        except (TimeoutError, asyncio.TimeoutError, ConnectionError):
            # What it was sent and did not read must not wait in memory until it does.
            if request.transport is not None:
                request.transport.abort()
        finally:
            self._viewers[name] -= 1
            if not self._viewers[name]:
                del self._viewers[name]
        return response

    async def _send_pictures(self, response: web.StreamResponse) -> None:
        await response.write(_BOUNDARY)
        has_picture = False
        seen = self._number  # the picture before may be old; a new one was asked for
        while not self._ended.is_set():
            if seen == self._number:
                with contextlib.suppress(TimeoutError, asyncio.TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), _REPEAT_SECONDS)
            if not self._number or self._ended.is_set() or (seen == self._number and not has_picture):
                continue
            seen, has_picture = self._number, True
            head = f"Content-Type: image/jpeg\r\nContent-Length: {len(self._jpeg)}\r\n\r\n".encode()
            # A browser shows a picture when the boundary after it is there.
            await asyncio.wait_for(response.write(head + self._jpeg + b"\r\n" + _BOUNDARY), self._patience)


def _policy(page: bytes) -> str:
    """The content security policy: the page itself, and this server alone."""
    hashes = {
        tag: " ".join(
            f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'"
            for text in re.findall(rf"<{tag}>(.*?)</{tag}>".encode(), page, re.DOTALL)
        )
        for tag in ("script", "style")
    }
    return (
        f"default-src 'none'; script-src {hashes['script']}; style-src {hashes['style']}; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
