"""The sorts of work that nodes of a graph do."""

from __future__ import annotations

WORK = ("products", "ops", "passes")
"""Products of matrices and convolutions, our two ops, and all else, which passes over memory and computes little."""

_PRODUCTS = frozenset(
    {
        # in OpenVINO
        "Convolution", "FullyConnected", "FullyConnectedQuantizedLegacy", "GroupConvolution", "MatMul",
        "ScaledDotProductAttention",
        # in ONNX Runtime
        "Conv", "FusedConv", "FusedGemm", "FusedMatMul", "Gemm",
    }
)  # fmt: skip
# OpenVINO knows nothing of our ops but that they have a reference.
_OURS = frozenset({"MSDeformAttn", "SplitTemporalAttn", "Reference"})


def work_of(kind: str) -> str:
    """One of `WORK`, of a node of that kind, as its runtime names it."""
    return "products" if kind in _PRODUCTS else "ops" if kind in _OURS else "passes"
