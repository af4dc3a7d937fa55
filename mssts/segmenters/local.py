"""Segments clips on a local engine: what the server's three stages do, in one process."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from mssts.contract import LIMITS
from mssts.manifest import Manifest
from mssts.runners import load_engine
from mssts.segmenters.base import Instances
from mssts.segmenters.postprocessing import instances
from mssts.segmenters.preprocessing import decode_frames, engine_input

# How much one clip may hold is a matter of this machine's memory alone; a single frame is still refused as a server
# would, before anything is allocated for it.
_LIMITS = replace(LIMITS, frames=sys.maxsize, total_pixels=sys.maxsize, encoded_bytes=sys.maxsize)


class LocalSegmenter:
    """A `mssts.segmenters.base.Segmenter` without a server.

    `stage_seconds` holds the time spent so far in `decode` (JPEG decoding and resizing), `engine` and `postprocess`,
    the names of the server's stages.

    Args:
        model: an engine's file with a manifest beside it, the folder of both, or a checkpoint, which needs torch.
        threads: cores the engine uses; all this process may use if None.
        runner: who runs an ONNX file, one of `mssts.runners.RUNNERS`.

    Raises:
        MsstsError: the engine, its manifest or the checkpoint is absent or broken.
    """

    def __init__(self, model: Path | str, threads: int | None = None, runner: str = "auto") -> None:
        self._runner, self._manifest = load_engine(model, threads, runner)
        self.stage_seconds = {"decode": 0.0, "engine": 0.0, "postprocess": 0.0}

    @property
    def manifest(self) -> Manifest:
        """The manifest of the engine."""
        return self._manifest

    def describe(self) -> dict[str, object]:
        """What runs the engine, as `mssts.runners.base.Runner.describe`."""
        return self._runner.describe()

    def segment(self, frames_THWC: np.ndarray | Sequence[bytes], score_threshold: float = 0.0) -> Instances:
        """The instances of a clip of RGB uint8 frames, or of T encoded JPEGs.

        Raises:
            MsstsError: the clip was refused (corrupt, frames too large) or the engine failed.
        """
        with self._timed("decode"):
            if not isinstance(frames_THWC, np.ndarray):
                frames_THWC = decode_frames(frames_THWC, _LIMITS)
            frames_BTHWC, sizes_B2 = engine_input(frames_THWC, self._manifest.input, _LIMITS, self._manifest.shape)
        with self._timed("engine"):
            output = self._runner.infer(frames_BTHWC, sizes_B2)
        with self._timed("postprocess"):
            height, width = frames_THWC.shape[1:3]
            return instances(output, sizes_B2, (height, width), score_threshold)

    def close(self) -> None:
        """Frees the engine."""
        self._runner.close()

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.stage_seconds[stage] += time.perf_counter() - start
