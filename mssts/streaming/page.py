"""A page to watch a running stream on: its picture, tracks and figures."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import cv2
import numpy as np

from mssts.media.rendering import legible_scale, palette
from mssts.segmenters.base import Segmenter
from mssts.streaming.overlay import annotated
from mssts.streaming.page_address import PageAddress
from mssts.streaming.page_server import PageServer
from mssts.streaming.results import FrameResult, StreamFigures
from mssts.streaming.sinks import Monitored, Sink

_RATE = 12.0  # pictures a second at most
_WAITING = 8  # frames between the stream and the picture, as results come a window at a time
_LONGEST_SIDE = 1280  # pixels of a picture
_QUALITY = 80  # of its JPEG
_HEALTH_SECONDS = 2.0  # between questions to the servers
_STATE_SECONDS = 0.5  # between the figures while no frames come
_LAST_LOOK = 1.0  # seconds for which the page's end can be seen
_FORGET = 300  # frames without a track after which its first sight is forgotten


class Page(Sink):
    """Serves one page with the annotated stream.

    Each picture is drawn and encoded once for all viewers, by a thread of its own, and only while somebody watches. It
    shows frames evenly, at most 12 a second, and drops those that do not fit. The page's figures and tracks are those
    of the frame that it shows.

    Args:
        address: where to listen.
        source: the stream's source, as it may be shown.
        segmenter: whose servers' health is shown.
        say: is given the page's address.
    """

    needs_images = True

    def __init__(self, address: PageAddress, source: str, segmenter: Segmenter, say: Callable[[str], None]) -> None:
        self._source, self._segmenter, self._say = source, segmenter, say
        self._stream: Monitored | None = None
        self._server = PageServer(address, self._redraw)
        self._ages = _Ages()
        self._waiting: deque[FrameResult] = deque(maxlen=_WAITING)
        self._changed = threading.Condition()
        self._closed = threading.Event()
        self._is_redrawn = False
        self._servers: list[dict[str, Any]] = []
        self._threads = [
            threading.Thread(target=self._show_all, name="mssts-picture", daemon=True),
            threading.Thread(target=self._ask_servers, name="mssts-health", daemon=True),
        ]

    def open(self, stream: Monitored) -> None:
        """Starts the server and says its address.

        Raises:
            MsstsError: the port is taken, or may not be used.
        """
        self._stream = stream
        self._server.start()
        self._server.publish(self._state(None))
        for thread in self._threads:
            thread.start()
        self._say(f"watch it at {self._server.url}")

    def write(self, result: FrameResult) -> None:
        """Queues a result, in place of the oldest where there is no room."""
        self._ages.see(result)
        with self._changed:
            self._waiting.append(result)
            self._changed.notify()

    def close(self) -> None:
        """Shows the end for a moment if somebody watches, and stops the server."""
        self._closed.set()
        with self._changed:
            self._changed.notify()
        if self._threads[0].ident is not None:
            self._threads[0].join(_LAST_LOOK)
        if self._server.is_watched:
            time.sleep(_LAST_LOOK)
        self._server.stop()

    def _redraw(self) -> None:
        """Asks for a picture, as a viewer came who has none."""
        with self._changed:
            self._is_redrawn = True
            self._changed.notify()

    def _show_all(self) -> None:
        last: FrameResult | None = None
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._waiting or self._is_redrawn or self._closed.is_set(), _STATE_SECONDS
                )
                is_new = bool(self._waiting) or self._is_redrawn
                rate = self._figures().frames_per_second
                if self._closed.is_set() or rate > _RATE:
                    last = self._waiting[-1] if self._waiting else last
                    self._waiting.clear()
                elif self._waiting:
                    last = self._waiting.popleft()
                self._is_redrawn = False
                left = len(self._waiting)
            started = time.monotonic()
            is_drawn = last is not None and is_new and self._server.is_watched
            self._server.publish(self._state(last), _jpeg(last) if is_drawn and last is not None else None)
            if self._closed.is_set():
                self._server.publish(self._state(last) | {"ended": True})
                return
            interval = 1 / min(_RATE, max(rate, 1.0) * (1 + left / _WAITING))
            self._closed.wait(max(0.0, interval - (time.monotonic() - started)))

    def _ask_servers(self) -> None:
        while True:
            self._servers = [asdict(server) for server in self._segmenter.health()]
            if self._closed.wait(_HEALTH_SECONDS):
                return

    def _figures(self) -> StreamFigures:
        assert self._stream is not None
        return self._stream.figures()

    def _state(self, result: FrameResult | None) -> dict[str, Any]:
        """What the page shows beside the picture, as a JSON value."""
        assert self._stream is not None
        return {
            "source": self._source,
            "ended": False,
            **asdict(self._figures()),
            "lines": self._stream.lines(),
            "servers": self._servers,
            "frame": None if result is None else result.frame,
            "time": None if result is None else result.time,
            "tracks": [] if result is None else self._ages.tracks(result),
        }


class _Ages:
    """For how long tracks have been there.

    One thread tells it what is seen, another asks.
    """

    def __init__(self) -> None:
        self._seen: dict[int, tuple[float, int]] = {}  # of a track: the time of its first frame, and its last frame
        self._lock = threading.Lock()

    def see(self, result: FrameResult) -> None:
        """Notes the tracks of the next frame."""
        now = _time(result)
        with self._lock:
            for item in result.instances:
                first, _ = self._seen.get(item.track, (now, 0))
                self._seen[item.track] = first, result.frame
            if result.frame % _FORGET == 0:
                self._seen = {track: seen for track, seen in self._seen.items() if result.frame - seen[1] < _FORGET}

    def tracks(self, result: FrameResult) -> list[dict[str, Any]]:
        """The tracks of a frame, best first, with their ages in seconds."""
        now = _time(result)
        with self._lock:
            firsts = [self._seen.get(item.track, (now, 0))[0] for item in result.instances]
        return [
            {
                "track": item.track,
                "name": item.name,
                "score": item.score,
                "age": round(max(0.0, now - first), 2),
                "colour": "#{:02x}{:02x}{:02x}".format(*palette(item.track)),
            }
            for item, first in zip(result.instances, firsts, strict=True)
        ]


def _time(result: FrameResult) -> float:
    """Seconds by the source's clock, or by this machine's where it has none."""
    return result.time if result.time is not None else time.monotonic()


def _jpeg(result: FrameResult) -> bytes:
    assert result.image is not None
    height, width = result.image.shape[:2]
    image_HWC = annotated(result, legible_scale(height, width))
    scale = _LONGEST_SIDE / max(image_HWC.shape)
    if scale < 1:
        image_HWC = cv2.resize(image_HWC, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    bgr_HWC = np.ascontiguousarray(image_HWC[..., ::-1])
    _, encoded = cv2.imencode(".jpg", bgr_HWC, (cv2.IMWRITE_JPEG_QUALITY, _QUALITY))
    return encoded.tobytes()
