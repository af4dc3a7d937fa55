"""Errors of an implementation against float64, beside PyTorch's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mssts.bench.kernels.baselines import temporal_by_matmul
from mssts.bench.kernels.cases import by_op, graph
from mssts.bench.kernels.workloads import DeformInputs, Inputs, TemporalInputs
from mssts.ops import reference_ops

# How many times PyTorch's own error an implementation may have. Two orders of summation differ by less than this; a
# corner, a level or a border done wrongly is orders of magnitude beyond.
_TIMES = 8.0
# Gradients of offsets jump where a point crosses a pixel centre. Nearer to one than this, in pixels, they are not
# compared: which side a point is on is then a matter of rounding.
_NEAR_CENTRE = 1e-3


@dataclass(frozen=True)
class Errors:
    """The largest error of all outputs, and the largest rms error of one output."""

    max: float
    rms: float


@dataclass(frozen=True)
class Exact:
    """The exact answer, and the error of the reference in the storage's dtype.

    Outputs in float64 from the stored (already rounded) inputs, and what of them can be compared."""

    outputs: list[Tensor]
    comparable: list[Tensor | None]
    own: list[Errors]

    def errors(self, outputs: Sequence[Tensor]) -> list[Errors]:
        """Of each output. NaN where an output has one.

        Raises:
            ValueError: the outputs are not as many or not of the shapes that they should be.
        """
        if [tuple(out.shape) for out in outputs] != [tuple(exact.shape) for exact in self.outputs]:
            found = ", ".join(str(list(out.shape)) for out in outputs)
            raise ValueError(
                f"gives {found or 'nothing'}, expected {', '.join(str(list(o.shape)) for o in self.outputs)}"
            )
        return [_errors(*three) for three in zip(outputs, self.outputs, self.comparable, strict=True)]

    def complaint(self, errors: Sequence[Errors]) -> str:
        """The errors beyond their bounds in one line, empty if there is none."""
        for index, (found, own) in enumerate(zip(errors, self.own, strict=True)):
            for kind in ("max", "rms"):
                error, bound = getattr(found, kind), _TIMES * getattr(own, kind)
                if not error <= bound:
                    return f"output {index}: {kind} error {error:.2e}, expected at most {bound:.2e}"
        return ""


def exact_outputs(inputs: Inputs, direction: str) -> Exact:
    """By the op's definition in PyTorch, in float64, frame by frame to save memory."""
    parts = [_outputs(part, direction, torch.float64) for part in _frames(inputs)]
    outputs = [torch.cat(tensors) for tensors in zip(*parts, strict=True)]
    comparable: list[Tensor | None] = [None] * len(outputs)
    if isinstance(inputs, DeformInputs) and direction == "backward":
        comparable[1] = _off_centre(inputs)
    exact = Exact(outputs, comparable, [])
    own_parts = [_outputs(part, direction, None) for part in _frames(inputs)]
    own = exact.errors([torch.cat(tensors) for tensors in zip(*own_parts, strict=True)])
    if isinstance(inputs, TemporalInputs):
        # On a GPU the definition is a fused attention; written out, logits are rounded to the storage's dtype.
        by_matmul = exact.errors(_outputs(inputs, direction, None, temporal_by_matmul))
        own = [Errors(max(a.max, b.max), max(a.rms, b.rms)) for a, b in zip(own, by_matmul, strict=True)]
    return replace(exact, own=own)


def _frames(inputs: Inputs) -> list[Any]:
    """The calls: one a frame, or one of temporal attention."""
    if not isinstance(inputs, DeformInputs):
        return [inputs]
    names = ("value_NSMD", "reference_NQLR", "offsets_NQMLP2", "logits_NQMLP", "grad_out_NQC")
    return [
        replace(inputs, **{name: getattr(inputs, name)[n : n + 1] for name in names})
        for n in range(len(inputs.value_NSMD))
    ]


def _outputs(
    inputs: Inputs, direction: str, dtype: torch.dtype | None, function: Callable[[Any], Tensor] = by_op
) -> tuple[Tensor, ...]:
    """Outputs of a function (the op's reference), in `dtype` or as inputs are stored."""
    if dtype is not None:
        inputs = inputs.to(dtype)
    with reference_ops():
        if direction == "forward":
            with torch.no_grad():
                return (function(inputs),)
        out, leaves, grad = graph(function, inputs)
        return torch.autograd.grad(out, leaves, grad)


def _off_centre(inputs: DeformInputs) -> Tensor:
    """Offsets whose point lies beside a pixel centre on their axis [N, Q, M, L, P, 2]."""
    reference = inputs.reference_NQLR.double()[:, :, None, :, None]
    offsets = inputs.offsets_NQMLP2.double()
    sizes = inputs.shapes_L2.flip(1).double()[:, None]
    if reference.shape[-1] == 2:
        pixels = reference * sizes + offsets
    else:
        pixels = (reference[..., :2] + offsets * reference[..., 2:] * (0.5 / offsets.shape[4])) * sizes
    pixels = pixels - 0.5
    return (pixels - pixels.round()).abs() > _NEAR_CENTRE


def _errors(out: Tensor, exact: Tensor, comparable: Tensor | None) -> Errors:
    difference = (out.double() - exact).abs()
    if comparable is not None:
        difference = difference[comparable]
    if not difference.numel():
        return Errors(0.0, 0.0)
    return Errors(float(difference.max()), float(difference.square().mean().sqrt()))
