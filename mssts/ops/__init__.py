"""The two operators of the model: defined once in PyTorch, written as nodes of the ONNX domain `mssts` under export."""

from mssts.ops.deformable_attention import ms_deform_attn
from mssts.ops.exporting import exporting
from mssts.ops.temporal_attention import split_temporal_attn

__all__ = ["exporting", "ms_deform_attn", "split_temporal_attn"]
