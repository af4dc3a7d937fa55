"""The case that all implementations of an op compute, and their interface."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mssts.bench.kernels.workloads import DeformInputs, Inputs, Workload
from mssts.ops import ms_deform_attn, split_temporal_attn

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class Absent(Exception):
    """An implementation that cannot run here, with the reason."""


@dataclass(frozen=True)
class Case:
    """The inputs of one comparison. A call of index i uses input set i."""

    workload: Workload
    device: str
    dtype: str
    direction: str
    threads: int
    inputs: list[Any]  # of Inputs
    memory_only: bool = False  # measured for its memory, not its time

    @property
    def torch_dtype(self) -> torch.dtype:
        """Of value, offsets and logits, or of the tokens."""
        return DTYPES[self.dtype]


@dataclass(frozen=True)
class Prepared:
    """An implementation ready to be called.

    `outputs` is out, or the gradients of the inputs' `leaves`."""

    call: Callable[[int], tuple[Tensor, ...]]
    allocates: bool = True  # its outputs, at each call
    note: str = ""
    checked: bool = True  # whether its outputs are the op's, to be compared


# Raises `Absent` where the implementation cannot run.
Prepare = Callable[[Case], Prepared]


def by_autograd(function: Callable[[Any], Tensor], note: str = "") -> Callable[[Case], Prepared]:
    """A differentiable function, of which the forward or the backward pass is called."""

    def prepare(case: Case) -> Prepared:
        if case.direction == "forward":

            def forward(i: int) -> tuple[Tensor, ...]:
                with torch.no_grad():
                    return (function(case.inputs[i]),)

            return Prepared(forward, note=note)
        graphs = [graph(function, inputs) for inputs in case.inputs]

        def backward(i: int) -> tuple[Tensor, ...]:
            out, leaves, grad = graphs[i]
            return torch.autograd.grad(out, leaves, grad, retain_graph=True)

        return Prepared(backward, note=note)

    return prepare


def graph(function: Callable[[Any], Tensor], inputs: Inputs) -> tuple[Tensor, list[Tensor], Tensor]:
    """The output of a function, its leaves, and the gradient of the output."""
    leaves = [leaf.detach().requires_grad_() for leaf in inputs.leaves]
    if isinstance(inputs, DeformInputs):
        value, offsets, logits = leaves
        return (
            function(replace(inputs, value_NSMD=value, offsets_NQMLP2=offsets, logits_NQMLP=logits)),
            leaves,
            inputs.grad_out_NQC,
        )
    query, key, value = leaves
    return function(replace(inputs, query_BTSC=query, key_BUSC=key, value_BUSC=value)), leaves, inputs.grad_out_BTSC


def by_op(inputs: Inputs) -> Tensor:
    """The op as the model calls it: the kernel where there is one, else the reference."""
    if isinstance(inputs, DeformInputs):
        return ms_deform_attn(
            inputs.value_NSMD, inputs.shapes_L2, inputs.reference_NQLR, inputs.offsets_NQMLP2, inputs.logits_NQMLP,
            inputs.shapes,
        )  # fmt: skip
    return split_temporal_attn(inputs.query_BTSC, inputs.key_BUSC, inputs.value_BUSC, inputs.heads)
