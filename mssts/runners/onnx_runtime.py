"""Runs `model.onnx` in ONNX Runtime, with our kernels where they are built."""

from __future__ import annotations

import ctypes
import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from mssts import contract
from mssts import kernels as built
from mssts.artefact import Artefact
from mssts.errors import MsstsError, first_line
from mssts.machine import cpu_count, return_freed_memory
from mssts.runners.base import EngineOutput, NodeTime, Runner
from mssts.runners.contract_check import check_contract
from mssts.runners.device_buffers import DeviceBuffers

CPU = ("CPUExecutionProvider",)
CUDA = ("CUDAExecutionProvider", "CPUExecutionProvider")
_ERRORS_ONLY = 3  # of ONNX Runtime's log levels


@dataclass(frozen=True)
class _Kernels:
    """Our kernels in a session: `names` of their ops, or the `reason` for none."""

    names: tuple[str, ...] = ()
    instruction_set: str = ""
    reason: str = ""


class OnnxRuntimeRunner(Runner):
    """A loaded `model.onnx`, as `mssts.runners.base.Runner`. Threads may share it.

    Args:
        model: as `Artefact.open` takes it: unchanged, where a manifest names it.
        threads: cores one inference uses; all this process may use if None.
        providers: ONNX Runtime's execution providers, best first; the CPU alone if None. Where the first is CUDA, the
            inputs have buffers on the GPU that are kept for each shape.
        kernels: whether our ops run on our kernels (True), or as the function bodies that are in the file (False). If
            None, on the kernels where those can be used, and `describe` tells why where they cannot.
        profile: a folder for ONNX Runtime's trace, which `node_times` reads; no trace if None.

    Raises:
        MsstsError: the file is absent or broken, was changed after its export, or is not an engine of this project; a
            provider is not in this build of ONNX Runtime, or cannot be used here; `kernels` is True and they cannot be
            used.
    """

    def __init__(
        self,
        model: Artefact | Path | str,
        threads: int | None = None,
        providers: Sequence[str] | None = None,
        kernels: bool | None = None,
        profile: Path | None = None,
    ) -> None:
        artefact = Artefact.open(model)
        self._profile = profile
        self._path = artefact.path
        self._threads = threads or cpu_count()
        self._precision = artefact.manifest.precision if artefact.manifest else "unknown"
        wanted = list(providers or CPU)
        missing = set(wanted) - set(onnxruntime.get_available_providers())
        if missing:
            available = ", ".join(onnxruntime.get_available_providers())
            raise MsstsError(f"this ONNX Runtime has no {', '.join(sorted(missing))}; it has {available}")
        self._device = "cuda" if wanted[0] == CUDA[0] else "cpu"
        self._session, self._kernels = self._load(wanted, kernels)
        return_freed_memory()
        if self._session.get_providers()[0] != wanted[0]:
            raise MsstsError(
                f"{self._path}: ONNX Runtime cannot use {wanted[0]} here: there is no GPU, or not the CUDA and cuDNN "
                "that it was built for; --runner onnxruntime takes the CPU"
            )
        self._buffers = None if self._device == "cpu" else DeviceBuffers(self._session, self._device)
        check_contract(self._path, "input", map(_signature, self._session.get_inputs()), contract.ENGINE_INPUTS)
        check_contract(self._path, "output", map(_signature, self._session.get_outputs()), contract.ENGINE_OUTPUTS)

    def _load(self, providers: list[str], kernels: bool | None) -> tuple[onnxruntime.InferenceSession, _Kernels]:
        reason = "switched off"
        if kernels is not False:
            found = built.library("onnxruntime")
            reason = found.reason
            if found.path is not None and not reason:
                try:
                    return self._with_kernels(found.path, providers)
                except Exception as error:  # ONNX Runtime's exceptions share no base class
                    reason = f"{found.path}: {first_line(error)}"
            if kernels:
                raise MsstsError(f"{self._path}: cannot be loaded with our kernels: {reason}")
        try:
            session = onnxruntime.InferenceSession(str(self._path), self._options(), providers=_configured(providers))
        except Exception as error:  # as above
            raise MsstsError(
                f"{self._path}: ONNX Runtime cannot load it; export the model again ({first_line(error)})"
            ) from None
        return session, _Kernels(reason=reason)

    def _with_kernels(self, library: Path, providers: list[str]) -> tuple[onnxruntime.InferenceSession, _Kernels]:
        handle = _handle(library)
        options = self._options()
        options.register_custom_ops_library(str(library))
        handle.mssts_onnxruntime_created()  # forgets what this thread created before
        session = onnxruntime.InferenceSession(str(self._path), options, providers=_configured(providers))
        created = [line.split() for line in handle.mssts_onnxruntime_created().decode().splitlines()]
        names = tuple(sorted({name for name, _, _ in created}))
        isa = handle.mssts_cpu_isa().decode() if any(device == "cpu" for _, device, _ in created) else ""
        return session, _Kernels(names, isa, "" if names else "the file has none of our nodes")

    def _options(self) -> onnxruntime.SessionOptions:
        options = session_options(self._threads)
        if self._profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(self._profile / "onnxruntime")
        if self._precision == "fp8":  # ONNX Runtime 1.31 optimises such graphs into wrong ones
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        # On a processor neither saves time that could be measured, and both take memory: a plan is a block for each
        # shape that was seen, beside what its first inference took; a buffer that is reused is kept in between.
        options.enable_mem_pattern = options.enable_mem_reuse = self._device != "cpu"
        return options

    def infer(self, frames_BTHWC: np.ndarray, sizes_B2: np.ndarray) -> EngineOutput:
        """Runs the engine, see `Runner.infer`.

        Raises:
            MsstsError: ONNX Runtime failed; the message holds its reason.
        """
        feeds = {contract.FRAMES.name: np.ascontiguousarray(frames_BTHWC), contract.SIZES.name: sizes_B2}
        try:
            if self._buffers is None:
                outputs = self._session.run([spec.name for spec in contract.ENGINE_OUTPUTS], feeds)
            else:
                outputs = self._buffers.run(feeds)
        except Exception as error:  # as above
            shape = list(frames_BTHWC.shape)
            raise MsstsError(f"{self._path}: the engine failed on frames {shape}: {first_line(error)}") from None
        return EngineOutput(*outputs)

    def node_times(self) -> list[NodeTime]:
        """The time of each node in the last inference.

        The runner must have been made with `profile`; the trace ends here. Nodes are named as in the file, with what
        ONNX Runtime put in their place.
        """
        events = json.loads(Path(self._session.end_profiling()).read_text(encoding="utf-8"))
        last = [event for event in events if event["name"] == "model_run"][-1]
        return [
            NodeTime(name, event["args"].get("op_name", ""), event["dur"] / 1e3)
            for event in events
            if event["cat"] == "Node" and event["ts"] >= last["ts"]
            if (name := event["name"].removesuffix("_kernel_time")) != event["name"]
        ]

    def describe(self) -> dict[str, Any]:
        """Runtime, version, device, precision and active kernels.

        `kernels` are the ops for which the session has created our kernels. If it is empty, the function bodies run,
        and `kernels_reason` says why.
        """
        return {
            "name": "onnxruntime",
            "version": onnxruntime.__version__,
            "device": self._device,
            "precision": self._precision,
            "threads": self._threads,
            "kernels": list(self._kernels.names),
            "kernels_isa": self._kernels.instruction_set,
            "kernels_reason": self._kernels.reason,
        }

    def close(self) -> None:
        """Frees the session."""
        del self._session, self._buffers


def session_options(threads: int) -> onnxruntime.SessionOptions:
    """Options of a session that logs errors only.

    Warnings are about the graph and not for the user."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = _ERRORS_ONLY
    return options


def _configured(providers: Sequence[str]) -> list[tuple[str, dict[str, str]]]:
    """The providers with their options, TF32 off: fp32 means fp32."""
    options = {CUDA[0]: {"use_tf32": "0", "cudnn_conv_algo_search": "EXHAUSTIVE"}}
    return [(name, options.get(name, {})) for name in providers]


@functools.cache
def _handle(library: Path) -> ctypes.CDLL:
    """The custom-op library, to be asked which kernels were created.

    ONNX Runtime opens the same file again, and gets the same instance.

    `mssts_onnxruntime_created` tells which kernels sessions created on this thread since its last call: a line for each
    node, of op, device and dtype. A session creates its kernels on the thread that makes it.
    """
    handle = ctypes.CDLL(str(library))
    found = handle.mssts_abi_version()
    if found != built.ABI_VERSION:
        raise OSError(f"has ABI {found}, this package wants {built.ABI_VERSION}; `make plugins` rebuilds it")
    handle.mssts_onnxruntime_created.restype = ctypes.c_char_p
    handle.mssts_cpu_isa.restype = ctypes.c_char_p
    return handle


def _signature(value: Any) -> tuple[str, str, int]:
    return value.name, _numpy_name(value.type), len(value.shape)


def _numpy_name(onnx_type: str) -> str:
    """numpy's name of what ONNX Runtime calls `tensor(float)`, `tensor(uint8)`, …"""
    name = onnx_type.removeprefix("tensor(").removesuffix(")")
    return {"float": "float32", "double": "float64"}.get(name, name)
