"""Clips of any size for an engine of one shape: padded before, cut after."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mssts import contract
from mssts.errors import MsstsError
from mssts.manifest import FixedShape
from mssts.runners.base import DeviceOutput, EngineOutput, Runner


class FixedShapeRunner(Runner):
    """A runner of one shape, for every input that fits into that shape.

    Frames are padded below and right, which an engine leaves out of account; a clip that is too short is filled up with
    its last frame, which the frames before see as they would see a scene that stands still. More clips than the engine
    takes at once go one batch after another.

    Args:
        runner: whose engine it is. It is closed with this one.
        shape: what the engine takes.
        path: the engine's file, for messages.
    """

    def __init__(self, runner: Runner, shape: FixedShape, path: Path) -> None:
        self._runner, self._shape, self._path = runner, shape, path

    def infer(self, frames_BTHWC: np.ndarray, sizes_B2: np.ndarray) -> EngineOutput:
        """Runs the engine, see `Runner.infer`.

        Raises:
            MsstsError: they do not fit into the engine's shape; or as the runner itself.
        """
        self._check(frames_BTHWC)
        shape, parts = self._shape, []
        for first in range(0, len(frames_BTHWC), shape.clips):
            part = slice(first, min(first + shape.clips, len(frames_BTHWC)))
            padded = pad_to_shape(frames_BTHWC[part], sizes_B2[part], shape)
            parts.append(_cut(self._runner.infer(*padded), frames_BTHWC[part]))
        return EngineOutput(
            *(np.concatenate([getattr(output, spec.name) for output in parts]) for spec in contract.ENGINE_OUTPUTS)
        )

    @contextmanager
    def inference(self, frames_BTHWC: np.ndarray, sizes_B2: np.ndarray) -> Iterator[EngineOutput | DeviceOutput]:
        """Runs the engine, see `Runner.inference`."""
        if len(frames_BTHWC) > self._shape.clips:
            yield self.infer(frames_BTHWC, sizes_B2)
            return
        self._check(frames_BTHWC)
        with self._runner.inference(*pad_to_shape(frames_BTHWC, sizes_B2, self._shape)) as output:
            yield _cut(output, frames_BTHWC)

    def warm(self, shape: FixedShape) -> float:
        """Runs black frames of the engine's own shape, see `Runner.warm`."""
        self._check(np.broadcast_to(np.uint8(0), (shape.clips, shape.frames, shape.height, shape.width, 3)))
        return self._runner.warm(self._shape)

    @property
    def in_flight(self) -> int:
        """Clips that the runner works on at once."""
        return self._runner.in_flight

    def _check(self, frames_BTHWC: np.ndarray) -> None:
        _, frames, height, width, _ = frames_BTHWC.shape
        shape = self._shape
        if frames > shape.frames or height > shape.height or width > shape.width or not frames:
            raise MsstsError(
                f"{self._path}: takes clips of 1 to {shape.frames} frames of at most {shape.height}x{shape.width}, got "
                f"{frames} frames of {height}x{width}; export with another --shape, or without"
            )

    def describe(self) -> dict[str, Any]:
        """The runner's own description, and `shape`."""
        return {**self._runner.describe(), "shape": str(self._shape)}

    def close(self) -> None:
        """Closes the runner."""
        self._runner.close()


_Output = TypeVar("_Output", bound=EngineOutput | DeviceOutput)


def _cut(output: _Output, frames_BTHWC: np.ndarray) -> _Output:
    """What belongs to the frames as they came, whose masks have h = ⌈H/8⌉·2."""
    clips, frames, height, width, _ = frames_BTHWC.shape
    rows, columns = (-(-side // 8) * 2 for side in (height, width))
    logits: Any = output.mask_logits
    if isinstance(output, DeviceOutput):
        logits = logits.cut(clips, frames, rows, columns)
    else:
        logits = logits[:clips, :, :frames, :rows, :columns]
    return replace(
        output,
        scores=output.scores[:clips],
        labels=output.labels[:clips],
        boxes=output.boxes[:clips, :, :frames],
        mask_logits=logits,
    )


def pad_to_shape(frames_BTHWC: np.ndarray, sizes_B2: np.ndarray, shape: FixedShape) -> tuple[np.ndarray, np.ndarray]:
    """Pads clips to `shape`.

    Black below and right, the last frame and the last clip repeated where there are too few. The valid sizes are those
    of the clips.
    """
    clips, frames, height, width, _ = frames_BTHWC.shape
    short = (shape.clips - clips, shape.frames - frames)
    if not any(short) and (height, width) == (shape.height, shape.width):
        return frames_BTHWC, sizes_B2
    repeated = np.pad(frames_BTHWC, ((0, short[0]), (0, short[1]), (0, 0), (0, 0), (0, 0)), "edge")
    padding = ((0, 0), (0, 0), (0, shape.height - height), (0, shape.width - width), (0, 0))
    return np.pad(repeated, padding), np.pad(sizes_B2, ((0, short[0]), (0, 0)), "edge")
