"""The two operators of the model.

Each is defined once in PyTorch, runs on our kernels where they are built, and becomes a node of the ONNX domain `mssts`
under export."""

import mssts.ops.library  # noqa: F401  (registers torch.ops.mssts)
from mssts.ops.choice import reference_ops, why_no_kernel
from mssts.ops.deformable_attention import ms_deform_attn
from mssts.ops.exporting import exporting
from mssts.ops.temporal_attention import split_temporal_attn

__all__ = ["exporting", "ms_deform_attn", "reference_ops", "split_temporal_attn", "why_no_kernel"]
