"""Calls of our kernels on PyTorch tensors through the C interface.

Letters as in `deformable_attention.py` and `temporal_attention.py`. Everything that a kernel cannot see behind its
pointers is checked here: shapes, dtypes, devices. Gradients that are not wanted come as empty tensors.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mssts import kernels
from mssts.kernels import DeformAttnCall, Executor, TemporalAttnCall

_FLOATS = {getattr(torch, name): code for name, code in kernels.DTYPES.items() if "float" in name}
_INTEGERS = {getattr(torch, name): code for name, code in kernels.DTYPES.items() if "int" in name}
_ALIGNMENT = 256  # of the workspace, in bytes
_Strides = ctypes.c_int64 * 3
_functions: dict[tuple[str, str], tuple[Any, Any]] = {}  # (device, function) → function, last error


class KernelError(RuntimeError):
    """A call that a kernel refused or failed in, with its reason."""


def _function(device: str, name: str) -> tuple[Any, Any]:
    found = _functions.get((device, name))
    if found is None:
        library = kernels.library(device)
        if library.reason:
            raise KernelError(f"mssts: no kernels for {device}: {library.reason}")
        found = getattr(library.handle, f"mssts_{device}_{name}"), library.handle.mssts_last_error
        _functions[device, name] = found
    return found


def _run(device: torch.device, name: str, call: ctypes.Structure) -> None:
    function, last_error = _function(device.type, name)
    pointer = ctypes.byref(call)
    if device.type == "cpu":
        status = function(pointer, ctypes.byref(Executor(torch.get_num_threads(), None, None)))
    else:
        with torch.cuda.device(device):
            status = function(pointer, torch.cuda.current_stream(device).cuda_stream)
    if status != kernels.OK:
        reason = last_error().decode(errors="replace") or f"status {status}"
        if status == kernels.NO_MEMORY:
            raise torch.OutOfMemoryError(f"mssts: {name} on {device}: {reason}")
        if status == kernels.UNSUPPORTED:
            reason += "; within `mssts.ops.reference_ops()` PyTorch computes it without kernels"
        raise KernelError(f"mssts: {name} on {device}: {reason}")


def _invalid(op: str, what: str) -> KernelError:
    return KernelError(f"mssts::{op}: {what}")


def _check_devices(op: str, tensors: Sequence[Tensor]) -> None:
    device = tensors[0].device
    if any(tensor.device != device for tensor in tensors):
        devices = ", ".join(str(tensor.device) for tensor in tensors)
        raise _invalid(op, f"expected all tensors on one device, found {devices}")


def _check_shape(op: str, name: str, tensor: Tensor, expected: tuple[int, ...]) -> None:
    if tensor.shape != expected:
        raise _invalid(op, f"{name} has shape {list(tensor.shape)}, expected {list(expected)}")


def deform_attn_call(
    value_NSMD: Tensor, shapes_L2: Tensor, reference_NQLR: Tensor, offsets_NQMLP2: Tensor, logits_NQMLP: Tensor
) -> DeformAttnCall:
    """The call, less its outputs. The tensors must be contiguous and outlive it."""
    op = "ms_deform_attn"
    if value_NSMD.dim() != 4 or reference_NQLR.dim() != 4 or logits_NQMLP.dim() != 5:
        raise _invalid(op, "expected value [N, S, M, D], reference [N, Q, L, R] and logits [N, Q, M, L, P]")
    N, S, M, D = value_NSMD.shape
    _, Q, L, R = reference_NQLR.shape
    P = logits_NQMLP.shape[4]
    _check_shape(op, "shapes", shapes_L2, (L, 2))
    _check_shape(op, "reference", reference_NQLR, (N, Q, L, R))
    _check_shape(op, "offsets", offsets_NQMLP2, (N, Q, M, L, P, 2))
    _check_shape(op, "logits", logits_NQMLP, (N, Q, M, L, P))
    if R not in (2, 4):
        raise _invalid(op, f"a reference has {R} coordinates, expected 2 (x, y) or 4 (x, y, w, h)")
    dtype = value_NSMD.dtype
    if dtype not in _FLOATS or offsets_NQMLP2.dtype != dtype or logits_NQMLP.dtype != dtype:
        found = f"{dtype}, {offsets_NQMLP2.dtype} and {logits_NQMLP.dtype}"
        raise _invalid(op, f"value, offsets and logits are {found}, expected one floating dtype")
    if reference_NQLR.dtype != (torch.float64 if dtype == torch.float64 else torch.float32):
        raise _invalid(op, f"reference is {reference_NQLR.dtype}, expected float32 (float64 if value is)")
    if shapes_L2.dtype not in _INTEGERS:
        raise _invalid(op, f"shapes are {shapes_L2.dtype}, expected int64 or int32")
    return DeformAttnCall(
        N, S, Q, M, D, L, P, R, _FLOATS[dtype], _INTEGERS[shapes_L2.dtype], 0,
        value_NSMD.data_ptr(), shapes_L2.data_ptr(), reference_NQLR.data_ptr(), offsets_NQMLP2.data_ptr(),
        logits_NQMLP.data_ptr(),
    )  # fmt: skip


def deform_attn_forward(
    value_NSMD: Tensor, shapes_L2: Tensor, reference_NQLR: Tensor, offsets_NQMLP2: Tensor, logits_NQMLP: Tensor
) -> Tensor:
    """→ [N, Q, M·D], of the dtype of `value`.

    Raises:
        KernelError: shapes, dtypes or devices do not fit together; the kernel failed.
    """
    value, shapes, reference = value_NSMD.contiguous(), shapes_L2.contiguous(), reference_NQLR.contiguous()
    offsets, logits = offsets_NQMLP2.contiguous(), logits_NQMLP.contiguous()
    _check_devices("ms_deform_attn", (value, shapes, reference, offsets, logits))
    call = deform_attn_call(value, shapes, reference, offsets, logits)
    out = value.new_empty((call.batch, call.queries, call.heads * call.channels))
    if out.numel():
        call.out = out.data_ptr()
        _run(value.device, "deform_attn_forward", call)
    return out


def deform_attn_backward(
    grad_NQC: Tensor,
    value_NSMD: Tensor,
    shapes_L2: Tensor,
    reference_NQLR: Tensor,
    offsets_NQMLP2: Tensor,
    logits_NQMLP: Tensor,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of value, reference, offsets and logits.

    On CUDA they have the same bits on every run if torch.use_deterministic_algorithms is on; on a CPU always.
    """
    value, shapes, reference = value_NSMD.contiguous(), shapes_L2.contiguous(), reference_NQLR.contiguous()
    offsets, logits, grad = offsets_NQMLP2.contiguous(), logits_NQMLP.contiguous(), grad_NQC.contiguous()
    _check_devices("ms_deform_attn_backward", (grad, value, shapes, reference, offsets, logits))
    call = deform_attn_call(value, shapes, reference, offsets, logits)
    _check_gradient("ms_deform_attn_backward", grad, (call.batch, call.queries, call.heads * call.channels), value)
    inputs = (value, reference, offsets, logits)
    if not grad.numel():
        return _zero_gradients(inputs, wanted)
    gradients = _new_gradients(inputs, wanted)
    call.grad_out = grad.data_ptr()
    for name, gradient in zip(("value", "reference", "offsets", "logits"), gradients, strict=True):
        setattr(call, f"grad_{name}", gradient.data_ptr() or None)
    if value.device.type == "cuda":
        if torch.are_deterministic_algorithms_enabled():
            call.flags = kernels.DETERMINISTIC
        # PyTorch's allocator aligns to 512 bytes, but it can be replaced.
        workspace = value.new_empty((workspace_bytes(value.device, call) + _ALIGNMENT,), dtype=torch.uint8)
        call.workspace = -(-workspace.data_ptr() // _ALIGNMENT) * _ALIGNMENT
    _run(value.device, "deform_attn_backward", call)
    return gradients


def workspace_bytes(device: torch.device, call: DeformAttnCall) -> int:
    function, last_error = _function("cuda", "deform_attn_workspace")
    with torch.cuda.device(device):
        size = int(function(ctypes.byref(call)))
    if size < 0:
        raise KernelError(f"mssts: deform_attn_backward on {device}: {last_error().decode(errors='replace')}")
    return size


def temporal_attn_call(query_BTSC: Tensor, key_BUSC: Tensor, value_BUSC: Tensor, heads: int) -> TemporalAttnCall:
    """The call without its outputs.

    Channels of a token are contiguous, and the tensors must outlive it."""
    op = "split_temporal_attn"
    if query_BTSC.dim() != 4 or key_BUSC.dim() != 4:
        raise _invalid(op, "expected query [B, T, S, C], key and value [B, U, S, C]")
    B, T, S, C = query_BTSC.shape
    U = key_BUSC.shape[1]
    _check_shape(op, "key", key_BUSC, (B, U, S, C))
    _check_shape(op, "value", value_BUSC, (B, U, S, C))
    if heads < 1 or C % heads:
        raise _invalid(op, f"{C} channels cannot be split into {heads} heads")
    dtype = query_BTSC.dtype
    if dtype not in _FLOATS or key_BUSC.dtype != dtype or value_BUSC.dtype != dtype:
        found = f"{dtype}, {key_BUSC.dtype} and {value_BUSC.dtype}"
        raise _invalid(op, f"query, key and value are {found}, expected one floating dtype")
    return TemporalAttnCall(
        B, S, T, U, heads, C // heads, _FLOATS[dtype], 0,
        _Strides(*query_BTSC.stride()[:3]), _Strides(*key_BUSC.stride()[:3]), _Strides(*value_BUSC.stride()[:3]),
        query_BTSC.data_ptr(), key_BUSC.data_ptr(), value_BUSC.data_ptr(),
    )  # fmt: skip


def _dense_channels(tokens: Tensor) -> Tensor:
    return tokens if tokens.dim() > 0 and tokens.stride(-1) == 1 else tokens.contiguous()


def temporal_attn_forward(query_BTSC: Tensor, key_BUSC: Tensor, value_BUSC: Tensor, heads: int) -> Tensor:
    """The attention's output [B, T, S, C], dense.

    The inputs may be parts of larger tensors, as chunks of one projection are.

    Raises:
        KernelError: shapes, dtypes or devices do not fit together; the kernel failed.
    """
    query, key, value = _dense_channels(query_BTSC), _dense_channels(key_BUSC), _dense_channels(value_BUSC)
    _check_devices("split_temporal_attn", (query, key, value))
    call = temporal_attn_call(query, key, value, heads)
    out = query.new_empty(query.shape)
    if out.numel():
        call.out = out.data_ptr()
        _run(query.device, "temporal_attn_forward", call)
    return out


def temporal_attn_backward(
    grad_BTSC: Tensor, query_BTSC: Tensor, key_BUSC: Tensor, value_BUSC: Tensor, heads: int, wanted: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """→ the gradients of query, key and value, dense."""
    query, key, value = _dense_channels(query_BTSC), _dense_channels(key_BUSC), _dense_channels(value_BUSC)
    grad = grad_BTSC.contiguous()
    _check_devices("split_temporal_attn_backward", (grad, query, key, value))
    call = temporal_attn_call(query, key, value, heads)
    _check_gradient("split_temporal_attn_backward", grad, tuple(query.shape), query)
    inputs = (query, key, value)
    if not grad.numel():
        return _zero_gradients(inputs, wanted)
    gradients = _new_gradients(inputs, wanted)
    call.grad_out = grad.data_ptr()
    for name, gradient in zip(("query", "key", "value"), gradients, strict=True):
        setattr(call, f"grad_{name}", gradient.data_ptr() or None)
    _run(query.device, "temporal_attn_backward", call)
    return gradients


def _check_gradient(op: str, grad: Tensor, shape: tuple[int, ...], like: Tensor) -> None:
    _check_shape(op, "the gradient", grad, shape)
    if grad.dtype != like.dtype:
        raise _invalid(op, f"the gradient is {grad.dtype}, expected {like.dtype}")


def _new_gradients(inputs: Sequence[Tensor], wanted: Sequence[bool]) -> Any:
    return tuple(x.new_empty(x.shape if want else (0,)) for x, want in zip(inputs, wanted, strict=True))


def _zero_gradients(inputs: Sequence[Tensor], wanted: Sequence[bool]) -> Any:
    return tuple(x.new_zeros(x.shape if want else (0,)) for x, want in zip(inputs, wanted, strict=True))
