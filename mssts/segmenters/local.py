"""Segmenter on a local engine: the server's three stages in one process."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mssts.contract import LIMITS, Limits
from mssts.errors import MsstsError
from mssts.manifest import Manifest
from mssts.runners import load_engine
from mssts.runners.base import DeviceOutput, EngineOutput
from mssts.segmenters.as_released import mask_extent, released_input
from mssts.segmenters.base import Instances, Segmenter
from mssts.segmenters.postprocessing import to_instances
from mssts.segmenters.preprocessing import decode_frames, engine_input

# How much one clip may hold is a matter of this machine's memory alone; a single frame is still refused as a server
# would, before anything is allocated for it.
_LIMITS = replace(
    LIMITS, frames=sys.maxsize, total_pixels=sys.maxsize, encoded_bytes=sys.maxsize, decode_seconds=math.inf
)


@dataclass(frozen=True)
class _Decoded:
    """An engine's input, and the size of the frames that were given."""

    frames_BTHWC: np.ndarray
    sizes_B2: np.ndarray
    size: tuple[int, int]


@dataclass(frozen=True)
class _Inferred:
    """An engine's output, and what its masks need to be brought to the frames."""

    output: EngineOutput
    sizes_B2: np.ndarray
    size: tuple[int, int]


def _after(before: Future[Any], stage: Callable[..., Any], *arguments: Any) -> Any:
    """Runs a stage on the result of the one before."""
    return stage(before.result(), *arguments)


class LocalSegmenter(Segmenter):
    """A segmenter in this process.

    Args:
        model: the folder or file of an export or plan, or a checkpoint, which needs torch.
        threads: cores the engine uses, all this process may use if None.
        runner: what runs the engine, one of `mssts.runners.RUNNERS`.
        as_released: resize frames and masks as the released `inference.py` does, see `mssts.segmenters.as_released`.

    Raises:
        MsstsError: the engine, its manifest or the checkpoint is absent or broken, or it takes only one shape, which
            `as_released` has no use for.
    """

    def __init__(
        self, model: Path | str, threads: int | None = None, runner: str = "auto", *, as_released: bool = False
    ) -> None:
        self._runner, self._manifest = load_engine(model, threads, runner)
        self._as_released = as_released
        if as_released and self._manifest.input.in_engine:
            self._runner.close()
            raise MsstsError(f"{model}: resizes frames itself; --as-released needs an export without --resize-inside")
        if as_released and self._manifest.shape is not None:
            self._runner.close()
            raise MsstsError(
                f"{model}: takes {self._manifest.shape} only, and --as-released needs any shape; export it without "
                "--shape, or pass the checkpoint"
            )
        self._seconds = {"decode": 0.0, "engine": 0.0, "postprocess": 0.0}
        self._adding = threading.Lock()

    @property
    def manifest(self) -> Manifest:
        """The manifest of the engine."""
        return self._manifest

    @property
    def limits(self) -> Limits:
        """A server's limits for a frame. A clip is bounded by memory alone."""
        return _LIMITS

    @property
    def in_flight(self) -> int:
        """Clips that the engine runs at once."""
        return self._runner.in_flight

    def describe(self) -> dict[str, Any]:
        """Runtime, version, device, precision and active kernels."""
        return {**self._runner.describe(), **({"as_released": True} if self._as_released else {})}

    def stage_seconds(self) -> dict[str, float]:
        """Seconds in `decode` (decoding and resizing), `engine` and `postprocess`.

        Those of clips that ran at once are added up.
        """
        return dict(self._seconds)

    def segment(self, frames_THWC: np.ndarray | Sequence[bytes], score_threshold: float = 0.0) -> Instances:
        """Finds the instances of a clip, see `Segmenter.segment`."""
        return self._encode(self._infer(self._decode(frames_THWC), score_threshold), score_threshold)

    def segment_many(
        self, clips: Iterable[np.ndarray | Sequence[bytes]], score_threshold: float = 0.0
    ) -> Iterator[Instances]:
        """Finds the instances of each clip, see `Segmenter.segment_many`.

        While the engine runs one clip, or two where it can, the next is decoded and the masks of the one before are
        encoded.
        """
        in_engine = self._runner.in_flight
        counts = {"decode": 1, "engine": in_engine, "encode": 1}
        stages = [ThreadPoolExecutor(count, name) for name, count in counts.items()]
        decode, engine, encode = stages
        in_flight: deque[Future[Instances]] = deque()
        try:
            for clip in clips:
                decoded = decode.submit(self._decode, clip)
                inferred = engine.submit(_after, decoded, self._infer, score_threshold)
                in_flight.append(encode.submit(_after, inferred, self._encode, score_threshold))
                if len(in_flight) > 1 + in_engine:  # beside the one that is awaited, one in each other place
                    yield in_flight.popleft().result()
            while in_flight:
                yield in_flight.popleft().result()
        finally:  # after an error too, or where the caller stops early: what was not begun is left
            for stage in stages:
                stage.shutdown(cancel_futures=True)

    def _decode(self, frames_THWC: np.ndarray | Sequence[bytes]) -> _Decoded:
        with self._timed("decode"):
            if not isinstance(frames_THWC, np.ndarray):
                frames_THWC = decode_frames(frames_THWC, _LIMITS)
            if self._as_released:
                frames_BTHWC, sizes_B2 = released_input(frames_THWC, self._manifest.input.short_edge, _LIMITS)
            else:
                frames_BTHWC, sizes_B2 = engine_input(frames_THWC, self._manifest.input, _LIMITS, self._manifest.shape)
            height, width = frames_THWC.shape[1:3]
            return _Decoded(frames_BTHWC, sizes_B2, (height, width))

    def _infer(self, decoded: _Decoded, score_threshold: float) -> _Inferred | Instances:
        """The engine's output, or the instances where it is on the GPU."""
        with ExitStack() as held:
            with self._timed("engine"):
                output = held.enter_context(self._runner.inference(decoded.frames_BTHWC, decoded.sizes_B2))
            if isinstance(output, DeviceOutput):
                return self._instances(output, decoded.sizes_B2, decoded.size, score_threshold)
            return _Inferred(output, decoded.sizes_B2, decoded.size)

    def _encode(self, inferred: _Inferred | Instances, score_threshold: float) -> Instances:
        if isinstance(inferred, Instances):
            return inferred
        return self._instances(inferred.output, inferred.sizes_B2, inferred.size, score_threshold)

    def _instances(
        self, output: EngineOutput | DeviceOutput, sizes_B2: np.ndarray, size: tuple[int, int], score_threshold: float
    ) -> Instances:
        with self._timed("postprocess"):
            masked_B2 = mask_extent(sizes_B2) if self._as_released else sizes_B2
            found = to_instances(output, masked_B2, size, score_threshold)
            return replace(found, categories=self._manifest.categories)

    def close(self) -> None:
        """Frees the engine."""
        self._runner.close()

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        with self._adding:
            self._seconds[stage] += time.perf_counter() - start
