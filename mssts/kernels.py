"""The built kernel libraries: where they are, or why one is missing.

No framework is imported. PyTorch's binding is `mssts.ops`. Those of ONNX Runtime, OpenVINO and TensorRT are
libraries of these names, which the runtimes load.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mssts.errors import first_line

ABI_VERSION = 1
# A folder that is looked in instead of the package's own; empty: no kernels at all.
FOLDER_VARIABLE = "MSSTS_LIBRARIES"
# mssts_status
OK, INVALID, UNSUPPORTED, NO_MEMORY, CUDA_ERROR = range(5)
# mssts_dtype, by the names that numpy and PyTorch share
DTYPES = {"float32": 0, "float16": 1, "bfloat16": 2, "float64": 3, "int32": 4, "int64": 5}
DETERMINISTIC = 1  # mssts_deform_attn.flags
FILES = {
    "cpu": "libmssts_cpu.so",
    "cuda": "libmssts_cuda.so",
    "onnxruntime": "libmssts_onnxruntime.so",
    "openvino": "libmssts_openvino.so",
    "tensorrt": "libmssts_tensorrt.so",
}
_BUILD = "`make plugins` in a checkout builds it"
_REBUILD = "`make plugins` in a checkout rebuilds it"


class DeformAttnCall(ctypes.Structure):
    """`mssts_deform_attn` of plugins/include/mssts/kernels.h."""

    _fields_ = [
        *[(name, ctypes.c_int64) for name in ("batch", "tokens", "queries")],
        *[
            (name, ctypes.c_int32)
            for name in ("heads", "channels", "levels", "points", "coordinates", "dtype", "shapes_dtype", "flags")
        ],
        *[(name, ctypes.c_void_p) for name in ("value", "shapes", "reference", "offsets", "logits", "out")],
        *[
            (name, ctypes.c_void_p)
            for name in ("grad_out", "grad_value", "grad_reference", "grad_offsets", "grad_logits", "workspace")
        ],
    ]  # fmt: skip


class TemporalAttnCall(ctypes.Structure):
    """`mssts_temporal_attn` of plugins/include/mssts/kernels.h."""

    _fields_ = [
        *[(name, ctypes.c_int64) for name in ("batch", "locations")],
        *[
            (name, ctypes.c_int32)
            for name in ("query_frames", "key_frames", "heads", "channels", "dtype", "reserved")
        ],
        *[(name, ctypes.c_int64 * 3) for name in ("query_strides", "key_strides", "value_strides")],
        *[(name, ctypes.c_void_p) for name in ("query", "key", "value", "out")],
        *[(name, ctypes.c_void_p) for name in ("grad_out", "grad_query", "grad_key", "grad_value")],
    ]  # fmt: skip


class MaskRleCall(ctypes.Structure):
    """`mssts_mask_rle` of plugins/include/mssts/kernels.h."""

    _fields_ = [
        *[(name, ctypes.c_int64) for name in ("instances", "frames")],
        *[(name, ctypes.c_int32) for name in ("rows", "columns")],
        ("strides", ctypes.c_int64 * 3),
        *[
            (name, ctypes.c_int32)
            for name in ("valid_height", "valid_width", "cell", "height", "width", "reserved")
        ],
        ("capacity", ctypes.c_int64),
        *[(name, ctypes.c_void_p) for name in ("logits", "ends", "text", "workspace")],
    ]  # fmt: skip


class Executor(ctypes.Structure):
    """`mssts_executor`. A NULL `run` uses the process's own threads."""

    _fields_ = [("threads", ctypes.c_int32), ("run", ctypes.c_void_p), ("context", ctypes.c_void_p)]


@dataclass(frozen=True)
class Library:
    """One library of `plugins/`.

    Attributes:
        name: cpu, cuda, onnxruntime, openvino or tensorrt.
        path: the file, where there is one.
        reason: why it cannot be used, and what to do; empty where it can.
        handle: the loaded library (cpu and cuda alone: the others are loaded by their runtimes). The CUDA library has
            one even where no GPU is found, to tell what it was built for.
    """

    name: str
    path: Path | None
    reason: str
    handle: Any = None


def folder() -> Path | None:
    """The folder of the libraries: MSSTS_LIBRARIES, else `lib` in this package."""
    named = os.environ.get(FOLDER_VARIABLE)
    if named == "":
        return None
    return Path(named).absolute() if named else Path(__file__).resolve().parent / "lib"


@functools.cache
def library(name: str) -> Library:
    """Finds one library, loads it for `cpu` and `cuda`, and never raises.

    The CUDA library asks the driver for GPUs here, so a process that forks does better to ask after it forked.
    """
    place = folder()
    if place is None:
        return Library(name, None, f"switched off by an empty {FOLDER_VARIABLE}")
    if FOLDER_VARIABLE in os.environ and not place.is_dir():
        return Library(name, None, f"{FOLDER_VARIABLE} names {place}, which is no folder; unset or correct it")
    path = place / FILES[name]
    if not path.is_file():
        return Library(name, None, f"no {path.name} in {place}; {_BUILD}")
    if name not in ("cpu", "cuda"):
        return Library(name, path, "")
    try:
        handle = ctypes.CDLL(str(path))
        found = handle.mssts_abi_version()
        if found != ABI_VERSION:
            return Library(name, path, f"has ABI {found}, this package wants {ABI_VERSION}; {_REBUILD}")
        for function, result, arguments in _declarations(name):
            getattr(handle, function).restype = result
            getattr(handle, function).argtypes = arguments
    except (OSError, AttributeError) as error:
        return Library(name, path, f"cannot be loaded ({first_line(error)}); {_REBUILD}")
    if name == "cuda" and handle.mssts_cuda_devices() == 0:
        return Library(name, path, "no GPU that it can run on, or no driver", handle)
    return Library(name, path, "", handle)


def _declarations(name: str) -> list[tuple[str, Any, Sequence[Any]]]:
    """Name, result and arguments of a library's functions."""
    last = ctypes.POINTER(Executor) if name == "cpu" else ctypes.c_void_p  # the executor, or the stream
    calls: dict[str, Any] = {
        "deform_attn": ctypes.POINTER(DeformAttnCall),
        "temporal_attn": ctypes.POINTER(TemporalAttnCall),
    }
    found: list[tuple[str, Any, Sequence[Any]]] = [("mssts_last_error", ctypes.c_char_p, [])]
    for op, call in calls.items():
        for direction in ("forward", "backward"):
            found.append((f"mssts_{name}_{op}_{direction}", ctypes.c_int, [call, last]))
    if name == "cpu":
        found += [("mssts_cpu_isa", ctypes.c_char_p, []), ("mssts_cpu_threads", ctypes.c_char_p, [])]
    else:
        found.append(("mssts_cuda_build", ctypes.c_char_p, []))
        found.append(("mssts_cuda_devices", ctypes.c_int32, []))
        found.append(("mssts_cuda_deform_attn_workspace", ctypes.c_int64, [calls["deform_attn"]]))
        masks = ctypes.POINTER(MaskRleCall)
        found.append(("mssts_cuda_mask_rle", ctypes.c_int, [masks, last]))
        found.append(("mssts_cuda_mask_rle_workspace", ctypes.c_int64, [masks]))
    return found
