"""The implementations that `mssts bench kernels` compares, by name."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from mssts import kernels
from mssts.bench.kernels import baselines, onnx_nodes
from mssts.bench.kernels.cases import Absent, Case, Prepare, Prepared, by_autograd, by_op
from mssts.bench.kernels.workloads import DeformInputs, TemporalInputs
from mssts.ops.choice import has_kernel, why_no_kernel
from mssts.ops.kernel_calls import deform_attn_call, temporal_attn_call, workspace_bytes

# Ours.


def _mssts(case: Case) -> Prepared:
    _needs_kernel(case)
    return by_autograd(by_op)(case)


def _needs_kernel(case: Case) -> None:
    if not has_kernel(case.inputs[0].leaves[0]):
        raise Absent(why_no_kernel(case.device) or f"there is no kernel for {case.dtype}")


def _mssts_c(case: Case) -> Prepared:
    """The kernel by its C function, with outputs allocated once."""
    _needs_kernel(case)
    handle = kernels.library(case.device).handle
    family = "deform_attn" if case.workload.op == "MSDeformAttn" else "temporal_attn"
    function = getattr(handle, f"mssts_{case.device}_{family}_{case.direction}")
    backward = case.direction == "backward"
    calls, kept = [], []
    for inputs in case.inputs:
        fill = _deform_struct if isinstance(inputs, DeformInputs) else _temporal_struct
        call, outputs, workspace = fill(inputs, backward)
        calls.append(ctypes.byref(call))
        kept.append((outputs, call, workspace))

    def run(i: int) -> tuple[Tensor, ...]:
        if case.device == "cuda":
            status = function(calls[i], ctypes.c_void_p(torch.cuda.current_stream().cuda_stream))
        else:
            status = function(calls[i], ctypes.byref(kernels.Executor(case.threads, None, None)))
        if status:
            raise RuntimeError(handle.mssts_last_error().decode(errors="replace"))
        outputs: tuple[Tensor, ...] = kept[i][0]
        return outputs

    return Prepared(run, allocates=False)


def _deform_struct(inputs: DeformInputs, backward: bool) -> tuple[Any, tuple[Tensor, ...], Tensor | None]:
    value, offsets, logits = inputs.leaves
    call = deform_attn_call(value, inputs.shapes_L2, inputs.reference_NQLR, offsets, logits)
    if not backward:
        out = torch.empty_like(inputs.grad_out_NQC)
        call.out = out.data_ptr()
        return call, (out,), None
    gradients = tuple(torch.empty_like(leaf) for leaf in inputs.leaves)
    call.grad_out = inputs.grad_out_NQC.data_ptr()
    call.grad_value, call.grad_offsets, call.grad_logits = (gradient.data_ptr() for gradient in gradients)
    workspace = None
    if value.is_cuda:
        workspace = value.new_empty(max(workspace_bytes(value.device, call), 1), dtype=torch.uint8)
        call.workspace = workspace.data_ptr()
    return call, gradients, workspace


def _temporal_struct(inputs: TemporalInputs, backward: bool) -> tuple[Any, tuple[Tensor, ...], None]:
    query, key, value = inputs.leaves
    call = temporal_attn_call(query, key, value, inputs.heads)
    if not backward:
        out = torch.empty_like(inputs.grad_out_BTSC)
        call.out = out.data_ptr()
        return call, (out,), None
    gradients = tuple(leaf.new_empty(leaf.shape) for leaf in inputs.leaves)
    call.grad_out = inputs.grad_out_BTSC.data_ptr()
    call.grad_query, call.grad_key, call.grad_value = (gradient.data_ptr() for gradient in gradients)
    return call, gradients, None


# ONNX Runtime's.


def _onnx_function(case: Case) -> Prepared:
    return _in_onnx_runtime(case, None)


def _onnx_kernel(case: Case) -> Prepared:
    library = kernels.library("onnxruntime")
    if library.reason:
        raise Absent(library.reason)
    return _in_onnx_runtime(case, str(library.path))


def _in_onnx_runtime(case: Case, library: str | None) -> Prepared:
    if case.direction == "backward":
        raise Absent("ONNX Runtime runs no backward pass here")
    op = case.workload.op
    attributes = {} if op == "MSDeformAttn" else {"heads": case.inputs[0].heads}
    missing = onnx_nodes.why_no_provider(case.device)
    if missing:
        raise Absent(missing)
    # The file has the body where it is to run, and only then: a kernel that is passed over would be noticed.
    model = onnx_nodes.one_node_model(op, case.torch_dtype, attributes, with_body=library is None)
    session = onnx_nodes.session(model, case.device, case.threads, library, arena=not case.memory_only)
    calls, outs = [], []
    for inputs in case.inputs:
        out = torch.empty_like(inputs.grad_out_NQC if isinstance(inputs, DeformInputs) else inputs.grad_out_BTSC)
        if isinstance(inputs, DeformInputs):
            value, offsets, logits = inputs.leaves
            tensors: tuple[Tensor, ...] = (value, inputs.shapes_L2, inputs.reference_NQLR, offsets, logits)
        else:
            tensors = tuple(leaf.contiguous() for leaf in inputs.leaves)
        calls.append((onnx_nodes.bound_call(session, op, tensors, out), tensors))
        outs.append(out)

    def run(i: int) -> tuple[Tensor, ...]:
        calls[i][0]()
        return (outs[i],)

    return Prepared(run, allocates=False)


# The floor.


def _copy(case: Case) -> Prepared:
    """A copy that moves as many bytes as the op must."""
    size = case.workload.bytes_moved(case.torch_dtype.itemsize, case.direction) // 2
    sources = [torch.zeros(size, dtype=torch.uint8, device=case.device) for _ in case.inputs]
    targets = [torch.zeros_like(source) for source in sources]

    def run(i: int) -> tuple[Tensor, ...]:
        targets[i].copy_(sources[i])
        return ()

    return Prepared(run, allocates=False, checked=False)


IMPLEMENTATIONS: dict[str, dict[str, Prepare]] = {
    "MSDeformAttn": {
        "mssts": _mssts,
        "mssts_c": _mssts_c,
        "grid_sample": by_autograd(baselines.grid_sample),
        "grid_sample_stacked": by_autograd(baselines.grid_sample_stacked),
        "grid_sample_points_first": by_autograd(baselines.grid_sample_points_first),
        "onnx_function": _onnx_function,
        "onnx_kernel": _onnx_kernel,
        "torch_ms_deform_attn": baselines.torch_ms_deform_attn,
        "torch_ms_deform_attn_core": baselines.torch_ms_deform_attn_core,
        "hugging_face": baselines.hugging_face,
        "deformable_detr": baselines.deformable_detr,
        "deformable_detr_core": baselines.deformable_detr_core,
        "mmcv": baselines.mmcv,
        "mmcv_core": baselines.mmcv_core,
        "copy": _copy,
    },
    "SplitTemporalAttn": {
        "mssts": _mssts,
        "mssts_c": _mssts_c,
        "pytorch": by_autograd(baselines.temporal_by_matmul),
        "sdpa": by_autograd(baselines.temporal_by_sdpa),
        "onnx_function": _onnx_function,
        "onnx_kernel": _onnx_kernel,
        "copy": _copy,
    },
}
# What a user without our kernels has. Speeds are multiples of it.
BASELINES = {"MSDeformAttn": "grid_sample", "SplitTemporalAttn": "pytorch"}
