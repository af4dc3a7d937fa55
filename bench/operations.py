"""FLOPs and bytes of a model on one input shape, by module of the paper.

They are read from a forward pass over fake tensors, which have shapes and no values, so nothing is computed and no
memory is needed. A multiply-add counts as two FLOPs, as in the papers' tables of GFLOPs (which often count it as one).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.module_tracker import ModuleTracker

from mssts.model.config import Preset
from mssts.model.deployment import fold_batch_norms
from mssts.model.engine import Engine
from mssts.model.mssts_vis import MSSTSVIS
from mssts.ops import library  # noqa: F401  (registers the two ops)

MODULES = (
    "backbone",
    "input projections",
    "encoder: deformable attention",
    "encoder: intra-scale attention",
    "encoder: inter-scale attention",
    "encoder: feed-forward",
    "decoder",
    "mask features",
    "dynamic masks",
    "post-processing",
)
"""The parts of the model in the order of the paper's Figure 2. Post-processing is what is in none of the others:
normalisation, class scores and the choice of the best K."""

_VIEWS = frozenset(
    f"aten.{name}" for name in (
        "view", "_unsafe_view", "expand", "permute", "transpose", "t", "unsqueeze", "squeeze", "slice", "select",
        "split", "split_with_sizes", "unbind", "detach", "alias", "as_strided", "sym_size", "unfold", "narrow",
        "lift_fresh", "empty", "new_empty",
    )
)  # fmt: skip


@dataclass(frozen=True)
class Operation:
    """One operator call.

    Attributes:
        module: one of `MODULES`.
        kind: `gemm`, `convolution`, `attention` (among queries), `deformable attention`, `temporal attention`, or
            `other`.
        dims: of a gemm (batch, M, N, K); of a convolution (batch, in, height, width, out, kernel, stride, groups) of
            its input; else empty.
        flops: of the products; 0 of `other`, whose arithmetic is small beside its bytes.
        bytes: of the inputs and outputs, each once, in fp32.
    """

    module: str
    kind: str
    dims: tuple[int, ...]
    flops: int
    bytes: int


def count_operations(preset: Preset, shape_BTHW: Sequence[int]) -> list[Operation]:
    """The operations of one inference, in their order.

    Args:
        preset: its model.
        shape_BTHW: clips, frames, height and width in pixels.
    """
    B, T, H, W = shape_BTHW
    # Swin's initialisation looks at numbers, and fake tensors have none.
    unset = patch("torch.nn.init.trunc_normal_", lambda tensor, *_, **__: tensor)
    with unset, FakeTensorMode(), torch.no_grad():  # inference mode would keep linear layers whole
        engine = Engine(MSSTSVIS(preset.model), preset.top_k).eval()
        fold_batch_norms(engine)  # as every export does
        engine.requires_grad_(False)
        frames = torch.zeros(B, T, H, W, 3, dtype=torch.uint8)
        sizes = torch.full((B, 2), H, dtype=torch.int32)
        with _Counter() as counter:
            engine(frames, sizes)
    return counter.operations


class _Counter(TorchDispatchMode):
    """Notes each operator call."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self._tracker = ModuleTracker()

    def __enter__(self) -> _Counter:
        self._tracker.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._tracker.__exit__(*error)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        name = str(function.overloadpacket)
        if name not in _VIEWS and not name.startswith("prim."):  # which ask for a device or a dtype
            moved = sum(4 * tensor.numel() for tensor in _tensors((args, result)))
            kind, dims, flops = _product(name, args)
            self.operations.append(Operation(self._module(), kind, dims, flops, moved))
        return result

    def _module(self) -> str:
        innermost = max(self._tracker.parents - {"Global"}, key=len, default="")
        return module_of(innermost.partition(".")[2])  # without the class of the root


def _product(name: str, args: Sequence[Any]) -> tuple[str, tuple[int, ...], int]:
    """Kind, dims and FLOPs of an operator call."""
    if name in ("aten.mm", "aten.addmm", "aten.bmm", "aten.baddbmm"):
        a, b = args[-2:] if name in ("aten.mm", "aten.bmm") else args[1:3]
        batch = a.shape[0] if a.dim() == 3 else 1
        M, K, N = a.shape[-2], a.shape[-1], b.shape[-1]
        return "gemm", (batch, M, N, K), 2 * batch * M * N * K
    if name == "aten.convolution":
        x, weight, _, stride, padding, dilation, _, _, groups = args
        size = [
            (x.shape[2 + i] + 2 * padding[i] - dilation[i] * (weight.shape[2 + i] - 1) - 1) // stride[i] + 1
            for i in (0, 1)
        ]
        dims = (*x.shape, weight.shape[0], weight.shape[2], stride[0], groups)
        return "convolution", dims, 2 * x.shape[0] * math.prod(weight.shape) * size[0] * size[1]
    if name.startswith("aten._scaled_dot_product"):
        query, key = args[0], args[1]
        return "attention", (), 4 * query.numel() * key.shape[-2]
    if name == "mssts.ms_deform_attn":
        value, logits = args[0], args[4]
        return "deformable attention", (), 2 * 4 * value.shape[-1] * logits.numel()  # four corners of each point
    if name == "mssts.split_temporal_attn":
        query, key = args[0], args[1]
        return "temporal attention", (), 4 * query.numel() * key.shape[-3]
    return "other", (), 0


def module_of(path: str) -> str:
    """The paper's module that a dotted path inside `Engine` belongs to."""
    path = path.removeprefix("model.")
    if path.startswith("backbone"):
        return "backbone"
    if path.startswith("input_proj"):
        return "input projections"
    if path.startswith("encoder"):
        if ".split" in path:
            return "encoder: inter-scale attention" if ".inter" in path else "encoder: intra-scale attention"
        deformable = any(part in path for part in (".deformable", ".output_proj"))
        return "encoder: deformable attention" if deformable else "encoder: feed-forward"
    if path.startswith("mask_features"):
        return "mask features"
    if path.startswith("mask_head"):
        return "dynamic masks"
    return "decoder" if path.startswith("decoder") else "post-processing"


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
