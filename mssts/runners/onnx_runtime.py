"""Runs `model.onnx` in ONNX Runtime: the embedded default, on any CPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from mssts import contract
from mssts.errors import MsstsError
from mssts.files import sha256
from mssts.manifest import FILE_NAME, Manifest
from mssts.provenance import cpu_count
from mssts.runners.base import EngineOutput

_ERRORS_ONLY = 3  # ONNX Runtime's log levels; its warnings are about the graph, not for the user


class OnnxRuntimeRunner:
    """A loaded `model.onnx`, as `mssts.runners.base.Runner`. Threads may share it.

    Args:
        model_path: the file. If a manifest lies beside it and names it, its hash is checked.
        threads: cores one inference uses; all this process may use if None.
        providers: ONNX Runtime's execution providers, best first; the CPU alone if None.

    Raises:
        MsstsError: the file is absent or broken, was changed after its export, or is not an engine of this project; a
            provider is not in this build of ONNX Runtime.
    """

    def __init__(
        self, model_path: Path | str, threads: int | None = None, providers: Sequence[str] | None = None
    ) -> None:
        self._path = Path(model_path)
        self._threads = threads or cpu_count()
        self._precision = _check_unchanged(self._path)
        wanted = list(providers or ["CPUExecutionProvider"])
        missing = set(wanted) - set(onnxruntime.get_available_providers())
        if missing:
            available = ", ".join(onnxruntime.get_available_providers())
            raise MsstsError(f"this ONNX Runtime has no {', '.join(sorted(missing))}; it has {available}")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.log_severity_level = _ERRORS_ONLY
        try:
            self._session = onnxruntime.InferenceSession(str(self._path), options, providers=wanted)
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise MsstsError(
                f"{self._path}: ONNX Runtime cannot load it; export the model again ({_first_line(error)})"
            ) from None
        _check_contract(self._path, "input", self._session.get_inputs(), contract.ENGINE_INPUTS)
        _check_contract(self._path, "output", self._session.get_outputs(), contract.ENGINE_OUTPUTS)

    def infer(self, frames_BTHWC: np.ndarray, sizes_B2: np.ndarray) -> EngineOutput:
        """Runs uint8 RGB frames [B, T, H, W, 3] with the valid sizes int32 [B, 2] (height, width) of the clips.

        Raises:
            MsstsError: ONNX Runtime failed; the message holds its reason.
        """
        feeds = {contract.FRAMES.name: np.ascontiguousarray(frames_BTHWC), contract.SIZES.name: sizes_B2}
        try:
            outputs = self._session.run([spec.name for spec in contract.ENGINE_OUTPUTS], feeds)
        except Exception as error:  # as above
            shape = list(frames_BTHWC.shape)
            raise MsstsError(f"{self._path}: the engine failed on frames {shape}: {_first_line(error)}") from None
        return EngineOutput(*outputs)

    def describe(self) -> dict[str, Any]:
        """What runs. `kernels` are those of ours that are active: none here, the file's function bodies run."""
        return {
            "name": "onnxruntime",
            "version": onnxruntime.__version__,
            "device": self._session.get_providers()[0].removesuffix("ExecutionProvider").lower(),
            "precision": self._precision,
            "threads": self._threads,
            "kernels": [],
        }

    def close(self) -> None:
        """Frees the session; the runner cannot be used afterwards."""
        del self._session


def _check_unchanged(path: Path) -> str:
    """Compares the file with the manifest beside it; returns the precision that states, or `unknown` without one."""
    if not path.is_file():
        raise MsstsError(f"{path}: no such file; expected the model.onnx that `mssts export` writes")
    if not (path.parent / FILE_NAME).exists():
        return "unknown"
    manifest = Manifest.read(path)
    if manifest.artefact != path.name:
        return "unknown"
    if sha256(path) != manifest.artefact_sha256:
        raise MsstsError(
            f"{path}: not the file that {FILE_NAME} describes (its SHA-256 differs), "
            "so it is unverified; export the model again"
        )
    return manifest.precision


def _check_contract(path: Path, kind: str, found: Sequence[Any], expected: Sequence[contract.TensorSpec]) -> None:
    def described(name: str, dtype: str, rank: int) -> str:
        return f"{name} {dtype} of rank {rank}"

    found_set = {described(value.name, _numpy_name(value.type), len(value.shape)) for value in found}
    expected_set = {described(spec.name, spec.dtype, len(spec.shape)) for spec in expected}
    if found_set != expected_set:
        raise MsstsError(
            f"{path}: not an engine of this project: its {kind}s are {', '.join(sorted(found_set))}; expected "
            f"{', '.join(sorted(expected_set))}; export the model with `mssts export`"
        )


def _numpy_name(onnx_type: str) -> str:
    """numpy's name of what ONNX Runtime calls `tensor(float)`, `tensor(uint8)`, …"""
    name = onnx_type.removeprefix("tensor(").removesuffix(")")
    return {"float": "float32", "double": "float64"}.get(name, name)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
