"""TensorRT's Python module, its messages and the GPU."""

from __future__ import annotations

import ctypes
import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mssts import kernels
from mssts.errors import MsstsError

PLAN = "model.plan"
# Target → the modules that may offer it, and how to get one. Both have one API.
_MODULES = {
    "tensorrt": (("tensorrt",), "pip install 'mssts[gpu]'"),
    "tensorrt-rtx": (("tensorrt_rtx", "tensorrt_rtx_bindings"), "pip install tensorrt-rtx-cu13-bindings"),
}
TARGETS = tuple(_MODULES)
_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR = 75, 76  # of CUdevice_attribute


@dataclass(frozen=True)
class Gpu:
    """The first GPU of this process (`capability` as in "9.0")."""

    name: str
    capability: str


def tensorrt_module(target: str) -> Any:
    """TensorRT's module for a target of `TARGETS`.

    Raises:
        MsstsError: there is no such target, or it is not installed.
    """
    if target not in _MODULES:
        raise MsstsError(f"unknown target {target!r}; expected one of: {', '.join(TARGETS)}")
    names, install = _MODULES[target]
    for name in names:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise MsstsError(f"{target} is not installed; `{install}`")


def message_log(trt: Any) -> Any:
    """A silent logger for TensorRT that keeps its errors, oldest first."""

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(" ".join(message.split()))

        def last(self) -> str:
            return self.errors[-1] if self.errors else "TensorRT gave no reason"

    return Log()


def load_plugins(registry: Any) -> Path:
    """Loads our plugin library into a plugin registry and returns its file.

    Raises:
        MsstsError: the library is absent, or TensorRT does not take it.
    """
    found = kernels.library("tensorrt")
    if found.path is None or found.reason:
        raise MsstsError(f"the plugin library is missing: {found.reason}")
    # TensorRT answers with None, or with an exception, where the library was built for another major.
    try:
        handle = registry.load_library(str(found.path))
    except Exception as error:
        raise MsstsError(f"{found.path}: TensorRT cannot load it ({' '.join(str(error).split())})") from None
    if handle is None:
        raise MsstsError(f"{found.path}: TensorRT cannot load it; `make plugins` builds it for the installed TensorRT")
    return found.path


def first_gpu() -> Gpu | None:
    """The GPU that TensorRT would use, None without a GPU or a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    major, minor = ctypes.c_int(), ctypes.c_int()
    calls = (
        lambda: driver.cuInit(0),
        lambda: driver.cuDeviceGet(ctypes.byref(device), 0),
        lambda: driver.cuDeviceGetName(name, len(name), device),
        lambda: driver.cuDeviceGetAttribute(ctypes.byref(major), _COMPUTE_CAPABILITY_MAJOR, device),
        lambda: driver.cuDeviceGetAttribute(ctypes.byref(minor), _COMPUTE_CAPABILITY_MINOR, device),
    )
    if any(call() != 0 for call in calls):
        return None
    return Gpu(name.value.decode(), f"{major.value}.{minor.value}")
