"""Choice of how an op runs: native kernel if available, else PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from mssts.kernels import library

_KERNEL_DTYPES = {
    "cpu": (torch.float32, torch.float16, torch.bfloat16, torch.float64),
    "cuda": (torch.float32, torch.float16, torch.bfloat16),
}

_definition_only = False


@contextmanager
def reference_ops() -> Iterator[None]:
    """Runs the ops by their PyTorch references inside the block.

    It holds for the whole process. An op that ran outside keeps its kernel in the backward pass.
    """
    global _definition_only
    before, _definition_only = _definition_only, True
    try:
        yield
    finally:
        _definition_only = before


def has_kernel(tensor: Tensor) -> bool:
    """Whether a kernel runs an op on tokens of this device and dtype.

    Never while torch.onnx.export runs: a kernel's op means nothing to ONNX.
    """
    device = tensor.device.type
    return (
        not _definition_only
        and device in _KERNEL_DTYPES
        and tensor.dtype in _KERNEL_DTYPES[device]
        and not torch.onnx.is_in_onnx_export()
        and _is_built(device)
    )


def as_dtype(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """`tensor.to(dtype)` where needed: a call that does nothing costs a microsecond."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def why_no_kernel(device: str) -> str:
    """The reason why no kernel runs on a device ("cpu", "cuda"), empty if one does."""
    return library(device).reason if device in _KERNEL_DTYPES else f"there are no kernels for the device {device!r}"


def _is_built(device: str) -> bool:
    return not library(device).reason


# torch.compile takes the answer for a constant instead of tracing how a library is loaded. This is what
# torch.compiler.assume_constant_result does, less its import of torch._dynamo, which takes over a second.
_is_built._dynamo_marked_constant = True  # type: ignore[attr-defined]
