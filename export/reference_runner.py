"""Runs a graph in onnx's reference implementation.

It is slow, and the only runtime here that knows bf16 on a processor without special instructions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from mssts import contract
from mssts.runners.base import EngineOutput, Runner


class GatherElements(OpRun):
    """GatherElements for any size.

    onnx's own (seen in 1.23) gathers among 32 elements at most, and takes no shorter other axes."""

    def _run(self, data: np.ndarray, indices: np.ndarray, axis: int = 0) -> tuple[np.ndarray]:
        wrapped = np.where(indices < 0, indices + data.shape[axis], indices)
        places = list(np.indices(wrapped.shape, sparse=True))
        places[axis] = wrapped
        return (data[tuple(places)],)


class ReferenceRunner(Runner):
    """A `model.onnx` as `mssts.runners.base.Runner`, for checks alone."""

    def __init__(self, model_path: Path | str) -> None:
        self._session = ReferenceEvaluator(onnx.load(model_path), new_ops=[GatherElements])

    def infer(self, frames_BTHWC: np.ndarray, sizes_B2: np.ndarray) -> EngineOutput:
        """Runs the graph, see `Runner.infer`."""
        feeds = {contract.FRAMES.name: frames_BTHWC, contract.SIZES.name: sizes_B2}
        with np.errstate(all="ignore"):  # a sigmoid saturates, a padded token divides by zero: so they do elsewhere
            outputs = self._session.run([spec.name for spec in contract.ENGINE_OUTPUTS], feeds)
        return EngineOutput(*outputs)

    def describe(self) -> dict[str, Any]:
        """Runtime, version, device, precision and active kernels."""
        return {
            "name": "onnx reference evaluator",
            "version": onnx.__version__,
            "device": "cpu",
            "precision": "as the graph says",
            "threads": 1,
            "kernels": [],
        }

    def close(self) -> None:
        """Frees the graph."""
        del self._session
