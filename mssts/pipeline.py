"""Segments clips on a local engine: what the server's three stages do, in one process."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from mssts.instances import Instances
from mssts.manifest import Manifest
from mssts.postprocessing import instances
from mssts.preprocessing import decode_frames, engine_input
from mssts.runners import load_runner, model_path


class LocalSegmenter:
    """A `mssts.instances.Segmenter` without a server.

    `stage_seconds` holds the time spent so far in `decode` (JPEG decoding and resizing), `engine` and `postprocess`,
    the names of the server's stages.

    Args:
        model: an engine's file with a manifest beside it, or the folder of both.
        threads: cores the engine uses; all this process may use if None.

    Raises:
        MsstsError: the engine or its manifest is absent or broken.
    """

    def __init__(self, model: Path | str, threads: int | None = None) -> None:
        path = model_path(model)
        self._runner = load_runner(path, threads)
        self._manifest = Manifest.read(path)
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
            MsstsError: the clip was refused (too large, corrupt) or the engine failed.
        """
        with self._timed("decode"):
            if not isinstance(frames_THWC, np.ndarray):
                frames_THWC = decode_frames(frames_THWC)
            frames_BTHWC, sizes_B2 = engine_input(frames_THWC, self._manifest.input)
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
