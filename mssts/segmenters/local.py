"""Segmenter on a local engine: the server's three stages in one process."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mssts.contract import LIMITS, Limits
from mssts.errors import MsstsError
from mssts.manifest import Manifest
from mssts.runners import load_engine
from mssts.segmenters.as_released import mask_extent, released_input
from mssts.segmenters.base import Instances, Segmenter
from mssts.segmenters.postprocessing import to_instances
from mssts.segmenters.preprocessing import decode_frames, engine_input

# How much one clip may hold is a matter of this machine's memory alone; a single frame is still refused as a server
# would, before anything is allocated for it.
_LIMITS = replace(
    LIMITS, frames=sys.maxsize, total_pixels=sys.maxsize, encoded_bytes=sys.maxsize, decode_seconds=math.inf
)


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
        if as_released and self._manifest.shape is not None:
            self._runner.close()
            raise MsstsError(
                f"{model}: takes {self._manifest.shape} only, and --as-released needs any shape; export it without "
                "--shape, or pass the checkpoint"
            )
        self._seconds = {"decode": 0.0, "engine": 0.0, "postprocess": 0.0}

    @property
    def manifest(self) -> Manifest:
        """The manifest of the engine."""
        return self._manifest

    @property
    def limits(self) -> Limits:
        """A server's limits for a frame. A clip is bounded by memory alone."""
        return _LIMITS

    def describe(self) -> dict[str, Any]:
        """Runtime, version, device, precision and active kernels."""
        return {**self._runner.describe(), **({"as_released": True} if self._as_released else {})}

    def stage_seconds(self) -> dict[str, float]:
        """Seconds in `decode` (decoding and resizing), `engine` and `postprocess`."""
        return dict(self._seconds)

    def segment(self, frames_THWC: np.ndarray | Sequence[bytes], score_threshold: float = 0.0) -> Instances:
        """Finds the instances of a clip, see `Segmenter.segment`."""
        with self._timed("decode"):
            if not isinstance(frames_THWC, np.ndarray):
                frames_THWC = decode_frames(frames_THWC, _LIMITS)
            if self._as_released:
                frames_BTHWC, sizes_B2 = released_input(frames_THWC, self._manifest.input.short_edge, _LIMITS)
            else:
                frames_BTHWC, sizes_B2 = engine_input(frames_THWC, self._manifest.input, _LIMITS, self._manifest.shape)
        with self._timed("engine"):
            output = self._runner.infer(frames_BTHWC, sizes_B2)
        with self._timed("postprocess"):
            height, width = frames_THWC.shape[1:3]
            masked_B2 = mask_extent(sizes_B2) if self._as_released else sizes_B2
            found = to_instances(output, masked_B2, (height, width), score_threshold)
            return replace(found, categories=self._manifest.categories)

    def close(self) -> None:
        """Frees the engine."""
        self._runner.close()

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._seconds[stage] += time.perf_counter() - start
