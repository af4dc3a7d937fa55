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
PLUGINS = ("MSDeformAttn", "SplitTemporalAttn")
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
    """Makes our plugins known to this process's TensorRT, and returns their file.

    The library registers them with TensorRT's global registry when it is opened, once a process. A builder and a
    runtime have a registry each that looks there too, so that one library serves all of them. What a registry's own
    `load_library` loads is known to that one registry alone.

    Args:
        registry: of the builder or the runtime that needs the plugins.

    Raises:
        MsstsError: the library is absent or made for another TensorRT, or the registry does not find the plugins.
    """
    found = kernels.library("tensorrt")
    if found.path is None or found.reason:
        raise MsstsError(f"the plugin library is missing: {found.reason}")
    try:
        opened = open_library(found.path)
    except OSError as error:
        raise MsstsError(f"{found.path}: cannot be loaded ({' '.join(str(error).split())})") from None
    known = opened.mssts_register_tensorrt_plugins(None)  # again: TensorRT may have come after the library
    missing = [op for op in PLUGINS if registry.get_creator(op, "1", "") is None]
    if not known or missing:
        built = opened.mssts_tensorrt_build()
        raise MsstsError(
            f"{found.path}: TensorRT does not find {', '.join(missing or PLUGINS)} of it, which was built for "
            f"{built.decode() if built else 'another TensorRT'}; `make plugins` builds it for the installed TensorRT"
        )
    return found.path


def open_library(path: Path) -> Any:
    """The plugin library, opened. Its plugins are registered by that."""
    opened = ctypes.CDLL(str(path))
    opened.mssts_register_tensorrt_plugins.argtypes = [ctypes.c_void_p]
    opened.mssts_tensorrt_build.restype = ctypes.c_char_p
    return opened


def deserialised(trt: Any, log: Any, plan: Any, *, plugins: bool, version_compatible: bool) -> tuple[Any, Any]:
    """A runtime and the engine of a plan in it, None where TensorRT cannot load it.

    Args:
        trt: TensorRT's module.
        log: of `message_log`, which has the reason then.
        plan: its bytes.
        plugins: whether it has nodes of our ops as plugins.
        version_compatible: whether it carries its own runtime, which is code of the host.

    Raises:
        MsstsError: as `load_plugins`.
    """
    runtime = trt.Runtime(log)
    if plugins:
        load_plugins(runtime.get_plugin_registry())
    if version_compatible:
        runtime.engine_host_code_allowed = True
    return runtime, runtime.deserialize_cuda_engine(plan)


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
