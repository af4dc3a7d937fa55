"""Hard inputs for kernels of the two ops, and the ops in float64 with gradients.

The ops are written independently.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mssts import kernels

DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.float64: 3, torch.int32: 4, torch.int64: 5}
FLOATS = [torch.float32, torch.float16, torch.bfloat16, torch.float64]

Shapes = tuple[tuple[int, int], ...]
PYRAMID: Shapes = ((9, 12), (5, 6), (3, 3), (2, 2))


@dataclass
class DeformInputs:
    """The inputs of `ms_deform_attn`.

    The reference points are in float32 (float64 with float64).
    """

    value_NSMD: Tensor
    shapes_L2: Tensor
    reference_NQLR: Tensor
    offsets_NQMLP2: Tensor
    logits_NQMLP: Tensor
    grad_NQC: Tensor
    shapes: Shapes

    def args(self) -> tuple[Any, ...]:
        """In the order of `ms_deform_attn`."""
        return (
            self.value_NSMD,
            self.shapes_L2,
            self.reference_NQLR,
            self.offsets_NQMLP2,
            self.logits_NQMLP,
            list(self.shapes),
        )

    def double(self) -> DeformInputs:
        """The inputs in float64."""
        tensors = (self.value_NSMD, self.shapes_L2, self.reference_NQLR, self.offsets_NQMLP2, self.logits_NQMLP)
        return DeformInputs(
            *(x.double() if x.is_floating_point() else x for x in (*tensors, self.grad_NQC)), self.shapes
        )


@dataclass(frozen=True)
class DeformCase:
    """A named kind of input of MSDeformAttn.

    `spread` scales the offsets, in pixels (or fractions of a box).
    """

    name: str
    shapes: Shapes = PYRAMID
    N: int = 2
    Q: int = 7
    M: int = 3
    D: int = 8
    P: int = 4
    R: int = 2
    spread: float = 3.0
    # Offsets of zero and references at pixel centres (or edges) of every level.
    exact: str = ""

    def inputs(self, dtype: torch.dtype, seed: int = 0) -> DeformInputs:
        """Random numbers that are the same for every dtype, up to its rounding."""
        gen = torch.Generator().manual_seed(seed)

        def rand(*size: int) -> Tensor:
            return torch.randn(*size, generator=gen, dtype=torch.float64)

        S, L = sum(h * w for h, w in self.shapes), len(self.shapes)
        N, Q, M, D, P, R = self.N, self.Q, self.M, self.D, self.P, self.R
        reference = torch.rand(N, Q, L, R, generator=gen, dtype=torch.float64)
        value, offsets, logits = rand(N, S, M, D), rand(N, Q, M, L, P, 2) * self.spread, rand(N, Q, M, L, P)
        if self.exact:
            offsets = offsets.round() if R == 2 else offsets * 0
            shift = 0.5 if self.exact == "centres" else 0.0
            for level, (h, w) in enumerate(self.shapes):
                for axis, size in enumerate((w, h)):
                    cell = torch.randint(0, size + 1, (N, Q), generator=gen)
                    reference[:, :, level, axis] = (cell + shift) / size
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        return DeformInputs(
            value.to(dtype),
            torch.tensor(self.shapes, dtype=torch.int64).view(L, 2),
            reference.to(wide),
            offsets.to(dtype),
            logits.to(dtype),
            rand(N, Q, M * D).to(dtype),
            self.shapes,
        )


DEFORM_CASES = [
    DeformCase("four levels"),
    DeformCase("four levels, boxes", R=4, spread=1.0),
    DeformCase("mostly outside", spread=50.0),
    DeformCase("absurdly far", spread=1e4),
    DeformCase("pixel centres", exact="centres", shapes=((8, 16), (4, 8), (2, 4), (1, 2))),
    DeformCase("borders", exact="borders", shapes=((8, 16), (4, 8), (2, 4), (1, 2))),
    DeformCase("single pixels", shapes=((1, 1), (1, 3), (4, 1))),
    DeformCase("an empty level", shapes=((0, 5), (3, 4))),
    DeformCase("no frames", N=0),
    DeformCase("no queries", Q=0),
    DeformCase("one query", N=1, Q=1, M=1),
    DeformCase("many queries", Q=150, D=32, M=2),
    DeformCase("many queries, boxes", Q=150, D=32, M=2, R=4, spread=1.0),
    DeformCase("one frame, many queries", N=1, Q=300, M=1, D=16),
    *[DeformCase(f"D={d}", D=d, Q=5) for d in (1, 5, 16, 20, 32, 64, 72, 128)],
    *[DeformCase(f"D={d}, many queries", D=d, Q=120, M=2, N=1) for d in (1, 5, 20, 32, 64, 72, 128)],
    *[DeformCase(f"L={n}", shapes=(*PYRAMID, (6, 7))[:n], R=2 + 2 * (n % 2), spread=1.0) for n in (1, 2, 3, 5)],
    *[DeformCase(f"P={p}", P=p, Q=5 + 60 * (p % 2)) for p in (1, 2, 3, 5, 6, 7, 8)],
]


def deform_reference(inputs: DeformInputs) -> Tensor:
    """MSDeformAttn in the dtype of its inputs, differentiable.

    Points outside are zero, whatever they are, and a NaN location gives NaN.
    """
    value, _, reference, offsets, logits, shapes = inputs.args()
    N, _, M, D = value.shape
    Q, L, P = offsets.shape[1], offsets.shape[3], offsets.shape[4]
    weights = logits.flatten(3).softmax(-1).view(N, Q, M, L, P)
    out = torch.zeros(N, Q, M, D, dtype=value.dtype)
    start = 0
    frames, heads = torch.arange(N).view(N, 1, 1, 1), torch.arange(M).view(1, 1, M, 1)
    for level, (h, w) in enumerate(shapes):
        size = torch.tensor([w, h], dtype=value.dtype)
        base = reference[:, :, None, level, None]
        move = offsets[:, :, :, level]
        if reference.shape[-1] == 4:
            move = move / P * base[..., 2:] * 0.5 * size
        pixel = base[..., :2] * size + move - 0.5  # [N, Q, M, P, 2]
        broken = pixel.isnan().any(-1)
        inside = ((pixel > -1) & (pixel < size)).all(-1)
        safe = torch.where(inside[..., None], pixel, torch.zeros_like(pixel))
        corner = safe.detach().floor()
        fraction = safe - corner
        sample = torch.zeros(N, Q, M, P, D, dtype=value.dtype)
        for dy in (0, 1):
            for dx in (0, 1):
                x, y = corner[..., 0].long() + dx, corner[..., 1].long() + dy
                there = inside & (x >= 0) & (x < w) & (y >= 0) & (y < h)
                if not there.any():
                    continue
                token = torch.where(there, start + y * w + x, 0)
                share = (fraction[..., 0] if dx else 1 - fraction[..., 0]) * (
                    fraction[..., 1] if dy else 1 - fraction[..., 1]
                )
                part = share[..., None] * value[frames, token, heads]
                sample = sample + torch.where(there[..., None], part, torch.zeros_like(part))
        sample = torch.where(broken[..., None], torch.full_like(sample, torch.nan), sample)
        out = out + (sample * weights[:, :, :, level, :, None]).sum(3)
        start += h * w
    return out.flatten(2)


def deform_gradients(inputs: DeformInputs) -> tuple[Tensor, dict[str, Tensor]]:
    """The output in float64 and the gradients by autograd.

    They are those of value, reference, offsets and logits.
    """
    exact = inputs.double()
    leaves = {
        "value": exact.value_NSMD.requires_grad_(),
        "reference": exact.reference_NQLR.requires_grad_(),
        "offsets": exact.offsets_NQMLP2.requires_grad_(),
        "logits": exact.logits_NQMLP.requires_grad_(),
    }
    out = deform_reference(exact)
    found = torch.autograd.grad(out, list(leaves.values()), exact.grad_NQC, allow_unused=True)
    gradients = {
        name: torch.zeros_like(leaf) if grad is None else grad
        for (name, leaf), grad in zip(leaves.items(), found, strict=True)
    }
    return out.detach(), gradients


def pointer(tensor: Tensor | None) -> int | None:
    """The address of a dense tensor."""
    if tensor is None:
        return None
    assert tensor.is_contiguous()
    return tensor.data_ptr()


def deform_call(inputs: DeformInputs, **more: Tensor | None) -> kernels.DeformAttnCall:
    """The struct of a call on these tensors.

    `more` are outputs and gradients by the struct's names.
    """
    N, S, M, D = inputs.value_NSMD.shape
    _, Q, _, L, P, _ = inputs.offsets_NQMLP2.shape
    return kernels.DeformAttnCall(
        batch=N, tokens=S, queries=Q, heads=M, channels=D, levels=L, points=P,
        coordinates=inputs.reference_NQLR.shape[-1], dtype=DTYPES[inputs.value_NSMD.dtype],
        shapes_dtype=DTYPES[inputs.shapes_L2.dtype], value=pointer(inputs.value_NSMD),
        shapes=pointer(inputs.shapes_L2), reference=pointer(inputs.reference_NQLR),
        offsets=pointer(inputs.offsets_NQMLP2), logits=pointer(inputs.logits_NQMLP),
        **{name: pointer(tensor) for name, tensor in more.items()},
    )  # fmt: skip


@dataclass
class TemporalInputs:
    """The inputs of `split_temporal_attn`: [B, T, S, C] and [B, U, S, C].

    The channels of a token are contiguous.
    """

    query_BTSC: Tensor
    key_BUSC: Tensor
    value_BUSC: Tensor
    heads: int
    grad_BTSC: Tensor

    def double(self) -> TemporalInputs:
        """The inputs in float64."""
        q, k, v, g = (x.double() for x in (self.query_BTSC, self.key_BUSC, self.value_BUSC, self.grad_BTSC))
        return TemporalInputs(q, k, v, self.heads, g)


@dataclass(frozen=True)
class TemporalCase:
    """A named kind of input of SplitTemporalAttn.

    `layout` is chunked (q, k, v of one tensor), dense or spaced.
    """

    name: str
    B: int = 2
    S: int = 21
    T: int = 5
    U: int = 5
    M: int = 2
    D: int = 16
    scale: float = 1.0
    layout: str = "dense"

    def inputs(self, dtype: torch.dtype, seed: int = 0) -> TemporalInputs:
        """Random numbers that are the same for every dtype, up to its rounding."""
        gen = torch.Generator().manual_seed(seed)
        B, S, T, U, C = self.B, self.S, self.T, self.U, self.M * self.D

        def rand(*size: int) -> Tensor:
            return (torch.randn(*size, generator=gen, dtype=torch.float64) * self.scale).to(dtype)

        grad = torch.randn(B, T, S, C, generator=gen, dtype=torch.float64).to(dtype)
        if self.layout == "chunked":
            q, k, v = rand(B, T, S, 3 * C).chunk(3, -1)
        elif self.layout == "spaced":  # a slice in every dimension but the channels'
            q = rand(B, 2 * T, S + 3, C + 5)[:, ::2, 1 : S + 1, 2 : C + 2]
            k = rand(B, U, 2 * S, C + 1)[:, :, ::2, 1:]
            v = rand(S, B, U, C).permute(1, 2, 0, 3)
        else:
            q, k, v = rand(B, T, S, C), rand(B, U, S, C), rand(B, U, S, C)
        return TemporalInputs(q, k, v, self.M, grad)


TEMPORAL_CASES = [
    TemporalCase("intra-scale", layout="chunked", M=4),
    TemporalCase("inter-scale", U=10, M=4),
    TemporalCase("spaced", layout="spaced", U=7),
    TemporalCase("eight heads", M=8, T=3, U=11, S=150, B=1),
    TemporalCase("heads of 32 channels", M=4, D=32, S=7, layout="chunked"),
    TemporalCase("heads of 32 channels, spaced", M=4, D=32, T=6, layout="spaced"),
    TemporalCase("one frame", T=1, U=1),
    TemporalCase("one location", S=1, B=1),
    TemporalCase("no locations", S=0),
    TemporalCase("no clips", B=0),
    TemporalCase("no query frames", T=0),
    TemporalCase("large scores", scale=30.0),
    TemporalCase("many frames", T=16, U=32, S=17),
    TemporalCase("more frames than are fast", T=19, U=41, S=3, B=1),
    *[TemporalCase(f"D={d}", D=d, U=6, S=35) for d in (1, 5, 8, 20, 32, 40, 64)],
]


def temporal_reference(inputs: TemporalInputs) -> Tensor:
    """SplitTemporalAttn in the dtype of its inputs, by an einsum over each head."""
    M = inputs.heads
    q, k, v = (x.unflatten(-1, (M, -1)) for x in (inputs.query_BTSC, inputs.key_BUSC, inputs.value_BUSC))
    weights = (torch.einsum("btsmd,busmd->bsmtu", q, k) / q.shape[-1] ** 0.5).softmax(-1)
    return torch.einsum("bsmtu,busmd->btsmd", weights, v).flatten(-2)


def temporal_gradients(inputs: TemporalInputs) -> tuple[Tensor, dict[str, Tensor]]:
    """The output in float64 and the gradients by autograd: query, key, value."""
    exact = inputs.double()
    leaves = {"query": exact.query_BTSC, "key": exact.key_BUSC, "value": exact.value_BUSC}
    leaves = {name: leaf.detach().requires_grad_() for name, leaf in leaves.items()}
    out = temporal_reference(TemporalInputs(*leaves.values(), exact.heads, exact.grad_BTSC))
    found = torch.autograd.grad(out, list(leaves.values()), exact.grad_BTSC)
    return out.detach(), dict(zip(leaves, found, strict=True))


def temporal_call(inputs: TemporalInputs, **more: Tensor | None) -> kernels.TemporalAttnCall:
    """The struct of a call on these tensors.

    `more` are outputs and gradients by the struct's names.
    """
    B, T, S, C = inputs.query_BTSC.shape
    strides = {
        f"{name}_strides": (ctypes.c_int64 * 3)(*tensor.stride()[:3])
        for name, tensor in (("query", inputs.query_BTSC), ("key", inputs.key_BUSC), ("value", inputs.value_BUSC))
    }
    for tensor in (inputs.query_BTSC, inputs.key_BUSC, inputs.value_BUSC):
        assert tensor.stride(-1) == 1 or C == 1 or tensor.numel() == 0
    return kernels.TemporalAttnCall(
        batch=B, locations=S, query_frames=T, key_frames=inputs.key_BUSC.shape[1], heads=inputs.heads,
        channels=C // inputs.heads, dtype=DTYPES[inputs.query_BTSC.dtype], reserved=0, **strides,
        query=inputs.query_BTSC.data_ptr(), key=inputs.key_BUSC.data_ptr(), value=inputs.value_BUSC.data_ptr(),
        **{name: pointer(tensor) for name, tensor in more.items()},
    )  # fmt: skip


def misplaced(tensor: Tensor) -> Tensor:
    """A copy whose address is a multiple of its element's size and of no more."""
    space = torch.empty(tensor.numel() + 64, dtype=tensor.dtype)
    shift = next(i for i in range(1, 64) if (space.data_ptr() // tensor.element_size() + i) % 2 == 1)
    return space[shift : shift + tensor.numel()].view(tensor.shape).copy_(tensor)


def guarded(tensor: Tensor, fill: float = 0.0) -> tuple[Tensor, np.ndarray]:
    """A copy of the tensor with 256 bytes before and after it, and those bytes.

    They are unchanged if nothing overruns.
    """
    size = tensor.numel() * tensor.element_size()
    space = torch.full((size + 512,), 0xA5, dtype=torch.uint8)
    inner = space[256 : 256 + size].view(tensor.dtype).view(tensor.shape).fill_(fill)
    return inner, space.numpy()
