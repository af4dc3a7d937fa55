"""Processes that call kernels, and calls that are refused."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from support.torch_ops import deformable, deformable_arguments, temporal
from torch import Tensor

from mssts.kernels import library
from mssts.ops import ms_deform_attn, reference_ops

pytestmark = pytest.mark.skipif(bool(library("cpu").reason), reason=f"the CPU kernels: {library('cpu').reason}")


def _in_a_child(leaves: list[Tensor], queue) -> None:
    op = temporal()[1]
    torch.set_num_threads(2)
    queue.put(op(*leaves).numpy())


def test_a_forked_process_computes(two_threads):
    leaves, op = temporal(S=4000)
    expected = op(*leaves).numpy()  # the parent's threads are running by now
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=_in_a_child, args=(leaves, queue))
    child.start()
    try:
        assert np.array_equal(queue.get(), expected)
        child.join(30)
        assert child.exitcode == 0
    finally:
        child.kill()


class Clips(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Tensor:
        leaves, op = temporal(seed=index)
        return op(*leaves)


def test_a_data_loaders_worker_computes(two_threads):
    expected = torch.stack([Clips()[i] for i in range(3)])
    loader = torch.utils.data.DataLoader(Clips(), batch_size=3, num_workers=1, timeout=60)
    assert torch.equal(next(iter(loader)), expected)


def test_second_derivatives_are_refused_by_name():
    for make, name in ((deformable, "ms_deform_attn"), (temporal, "split_temporal_attn")):
        leaves, op = make()
        leaves = [leaf.requires_grad_() for leaf in leaves]
        (grad,) = torch.autograd.grad(op(*leaves).square().sum(), leaves[:1], create_graph=True)
        with pytest.raises(RuntimeError, match=rf"mssts::{name} has no second derivative.*reference_ops\(\)"):
            grad.sum().backward()
        with reference_ops():
            (grad,) = torch.autograd.grad(op(*leaves).square().sum(), leaves[:1], create_graph=True)
            grad.sum().backward()


def deformable_with(**changes: Callable[[Tensor], Tensor]) -> list[Tensor]:
    names = ("value", "shapes", "reference", "offsets", "logits")
    return [
        changes.get(name, lambda x: x)(tensor) for name, tensor in zip(names, deformable_arguments(False), strict=True)
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"value": lambda x: x[0]}, r"expected value \[N, S, M, D\]"),
        ({"offsets": lambda x: x[:, :-1]}, r"offsets has shape \[2, 6, 3, 4, 4, 2\], expected \[2, 7, 3, 4, 4, 2\]"),
        ({"logits": lambda x: x[:1]}, r"logits has shape \[1, 7, 3, 4, 4\], expected \[2, "),
        ({"reference": lambda x: x[..., :1]}, "a reference has 1 coordinates, expected 2"),
        ({"reference": lambda x: x.double()}, "reference is torch.float64, expected float32"),
        ({"logits": lambda x: x.half()}, "expected one floating dtype"),
        ({"shapes": lambda x: x.float()}, "shapes are torch.float32, expected int64 or int32"),
        ({"shapes": lambda x: x[:2]}, r"shapes has shape \[2, 2\], expected \[4, 2\]"),
        ({"shapes": lambda x: x + 1}, "tokens in all, expected 151"),  # the kernel's own words
    ],
)
def test_calls_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(RuntimeError, match=message):
        torch.ops.mssts.ms_deform_attn(*deformable_with(**changes))


def test_scales_that_are_not_the_values_are_refused():
    value, shapes_L2, reference, offsets, logits = deformable_arguments(False)
    with pytest.raises(RuntimeError, match="do not have the 151 tokens of value"):
        ms_deform_attn(value, shapes_L2, reference, offsets, logits, [(2, 2)] * 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q, k, v: (q, k, v[:, :2]), r"value has shape \[2, 2, 5, 12\], expected \[2, 6, 5, 12\]"),
        (lambda q, k, v: (q, k.half(), v), "expected one floating dtype"),
        (lambda q, k, v: (q[..., :11], k[..., :11], v[..., :11]), "11 channels cannot be split into 3 heads"),
    ],
)
def test_temporal_calls_that_do_not_fit_are_refused(change, message):
    leaves, _ = temporal(torch.float32)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.mssts.split_temporal_attn(*change(*leaves), 3)


def test_without_libraries_everything_is_computed_by_definitions(monkeypatch):
    program = """
import torch
from mssts.ops import split_temporal_attn, why_no_kernel
tokens = torch.ones(1, 2, 3, 4, requires_grad=True)
split_temporal_attn(tokens, tokens, tokens, 2).sum().backward()
print(why_no_kernel("cpu"))
try:
    torch.ops.mssts.split_temporal_attn(tokens, tokens, tokens, 2)
except RuntimeError as error:
    print(error)
"""
    monkeypatch.setenv("MSSTS_LIBRARIES", "")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    reason = "switched off by an empty MSSTS_LIBRARIES"
    assert done.stdout.splitlines() == [reason, f"mssts: no kernels for cpu: {reason}"]
