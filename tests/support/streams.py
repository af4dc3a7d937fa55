"""Sources and segmenters that a test drives by hand."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mssts import masks
from mssts.manifest import InputRule, Manifest
from mssts.media.video import Frame
from mssts.segmenters.base import Instances, Segmenter
from mssts.segmenters.preprocessing import decode_frames
from mssts.streaming.sources import Gap, SizedFrame, StreamSource
from support.toy_engine import CATEGORIES, COLOURS

SIZE = (48, 96)
PATIENCE = 20.0  # seconds until a test that waits has failed


def manifest(clip_frames: int = 5, clip_overlap: int = 1) -> Manifest:
    return Manifest(
        preset="colours",
        precision="float32",
        categories=CATEGORIES,
        input=InputRule(short_edge=64, long_edge=128),
        clip_frames=clip_frames,
        clip_overlap=clip_overlap,
        top_k=len(CATEGORIES),
        artefact="none",
        artefact_sha256="",
    )


class ColourSegmenter(Segmenter):
    """Finds what is red, green and blue, exactly but for the noise of video codecs.

    Args:
        clip_frames: of its manifest.
        clip_overlap: of its manifest.
        seconds: that a clip takes.
        gate: if given, each clip waits until it can acquire it.
    """

    def __init__(
        self,
        clip_frames: int = 5,
        clip_overlap: int = 1,
        seconds: float = 0.0,
        gate: threading.Semaphore | None = None,
    ) -> None:
        self._manifest = manifest(clip_frames, clip_overlap)
        self._seconds = seconds
        self._gate = gate
        self.started = threading.Semaphore(0)
        self.most = 0
        self._now = 0
        self._lock = threading.Lock()

    @property
    def manifest(self) -> Manifest:
        return self._manifest

    def segment(self, frames_THWC: np.ndarray | Sequence[bytes], score_threshold: float = 0.0) -> Instances:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
        self.started.release()
        if self._gate is not None:
            assert self._gate.acquire(timeout=PATIENCE)
        threading.Event().wait(self._seconds)
        clip = frames_THWC if isinstance(frames_THWC, np.ndarray) else decode_frames(frames_THWC, self.limits)
        found = [(label, _masks(clip, label)) for label in range(len(COLOURS))]
        found = [(label, masks_THW) for label, masks_THW in found if masks_THW.any()]
        with self._lock:
            self._now -= 1
        return Instances(
            scores=np.full(len(found), 0.9, np.float32),
            labels=np.array([label for label, _ in found], np.int32),
            boxes=np.array([[_box(mask) for mask in each] for _, each in found], np.float32).reshape(
                len(found), len(clip), 4
            ),
            rles=tuple(tuple(_encoded(mask) for mask in each) for _, each in found),
            size=(clip.shape[1], clip.shape[2]),
            categories=CATEGORIES,
        )


def _masks(clip_THWC: np.ndarray, label: int) -> np.ndarray:
    others = [channel for channel in range(3) if channel != label]
    clip = clip_THWC.astype(np.int16)
    return clip[..., label] - clip[..., others].max(axis=-1) > 100


def _box(mask_HW: np.ndarray) -> tuple[float, float, float, float]:
    if not mask_HW.any():
        return 0.0, 0.0, 0.0, 0.0
    rows, columns = np.flatnonzero(mask_HW.any(axis=1)), np.flatnonzero(mask_HW.any(axis=0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


def _encoded(mask_HW: np.ndarray) -> bytes | None:
    return masks.encode(np.ascontiguousarray(mask_HW)) if mask_HW.any() else None


def picture(number: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A red square that moves a little, and a blue one in every second ten."""
    rgb_HWC = np.full((*size, 3), 60, np.uint8)
    x = 4 + number % 16
    rgb_HWC[8:28, x : x + 20] = COLOURS[0]
    if number // 10 % 2:
        rgb_HWC[24:44, 60:80] = COLOURS[2]
    return rgb_HWC


class HandSource:
    """A source that gives what the test gives it, when it does."""

    def __init__(self, is_live: bool = True, name: str = "hand") -> None:
        self._given: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._used = threading.Semaphore(0)
        self.source = StreamSource(name, is_live, self._items, 12.0)
        self.stream: Any = None

    def give(self, *items: int | Gap | SizedFrame | Exception, wait: bool = True, settle: bool = True) -> None:
        """Gives frames by their numbers, gaps, or an error.

        Unless `wait` is off, waits until the stream has them. With `settle`, each waits as well until a window that it
        made ready is taken: a camera's frames come slower than a thread wakes up.
        """
        for item in items:
            self._given.put(sized(item) if isinstance(item, int) else item)
            if wait:
                assert self._used.acquire(timeout=PATIENCE)
            while wait and settle and self.stream is not None and self.stream._buffer._cutter.is_ready:
                time.sleep(1e-4)

    def end(self) -> None:
        self._given.put(None)

    def _items(self, stopped: threading.Event, live: bool) -> Iterator[SizedFrame | Gap]:
        while (item := self._given.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item
            self._used.release()


def sized(number: int, size: tuple[int, int] = SIZE) -> SizedFrame:
    return SizedFrame(Frame(picture(number, size), time=number / 12), size)


class Collected:
    """The results of a stream, taken by a thread of their own."""

    def __init__(self, stream: Any) -> None:
        self.results: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._stream = stream
        self._thread = threading.Thread(target=self._take, daemon=True)
        self._thread.start()

    def _take(self) -> None:
        try:
            for result in self._stream:
                self.results.put(result)
            self.results.put(None)
        except Exception as error:
            self.results.put(error)

    def next(self, count: int) -> list[int]:
        """The numbers of the next frames, waited for."""
        return [result.frame for result in self.next_results(count)]

    def next_results(self, count: int) -> list[Any]:
        taken = [self.results.get(timeout=PATIENCE) for _ in range(count)]
        for result in taken:
            if isinstance(result, Exception):
                raise result
        assert None not in taken, "the stream ended"
        return taken

    def rest(self) -> list[Any]:
        """The results until the end."""
        found = []
        while (result := self.results.get(timeout=PATIENCE)) is not None:
            if isinstance(result, Exception):
                raise result
            found.append(result)
        return found
