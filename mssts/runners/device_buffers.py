"""Input buffers on a GPU for ONNX Runtime (IOBinding), kept for each shape."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime

from mssts import contract

_KEPT_SHAPES = 4


@dataclass(frozen=True)
class _Bound:
    binding: Any
    inputs: dict[str, Any]  # OrtValue of each


class DeviceBuffers:
    """Runs a session on buffers of its device. Threads may share it and take turns.

    Args:
        session: of ONNX Runtime, with the engine's inputs and outputs.
        device: as ONNX Runtime names it: cuda, or cpu.
    """

    def __init__(self, session: onnxruntime.InferenceSession, device: str) -> None:
        self._session, self._device = session, device
        self._bound: OrderedDict[tuple[tuple[int, ...], ...], _Bound] = OrderedDict()
        self._lock = threading.Lock()

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The outputs in the order of the contract, in memory of the host."""
        key = tuple(feeds[spec.name].shape for spec in contract.ENGINE_INPUTS)
        with self._lock:
            bound = self._bound.get(key)
            if bound is None:
                while len(self._bound) >= _KEPT_SHAPES:
                    self._bound.popitem(last=False)
                bound = self._bound[key] = self._bind(feeds)
            else:
                for name, value in bound.inputs.items():
                    value.update_inplace(feeds[name])
            self._bound.move_to_end(key)
            self._session.run_with_iobinding(bound.binding)
            found: list[np.ndarray] = bound.binding.copy_outputs_to_cpu()
            return found

    def _bind(self, feeds: Mapping[str, np.ndarray]) -> _Bound:
        binding = self._session.io_binding()
        inputs = {}
        for spec in contract.ENGINE_INPUTS:
            inputs[spec.name] = onnxruntime.OrtValue.ortvalue_from_numpy(feeds[spec.name], self._device, 0)
            binding.bind_ortvalue_input(spec.name, inputs[spec.name])
        for spec in contract.ENGINE_OUTPUTS:
            binding.bind_output(spec.name, self._device)
        return _Bound(binding, inputs)
