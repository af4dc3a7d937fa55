"""Kernels as PyTorch operators against the references: values, gradients, dtypes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.model_inputs import build, images, sizes
from support.torch_ops import deformable, either_op, gradients, temporal
from torch import Tensor

from mssts.kernels import library
from mssts.model.config import tiny
from mssts.ops import reference_ops, split_temporal_attn
from mssts.ops.choice import has_kernel

pytestmark = pytest.mark.skipif(bool(library("cpu").reason), reason=f"the CPU kernels: {library('cpu').reason}")


@either_op
def test_the_kernel_is_what_runs(make):
    leaves, op = make()
    assert has_kernel(leaves[0])
    assert "mssts" in op(leaves[0].requires_grad_(), *leaves[1:]).grad_fn.name()
    with reference_ops():
        assert not has_kernel(leaves[0])
        assert "mssts" not in op(*leaves).grad_fn.name()


@pytest.mark.parametrize("R", [2, 4])
def test_gradients_of_deformable_attention_are_the_derivatives(R):
    leaves, op = deformable(N=1, Q=2, D=2, R=R)
    assert torch.autograd.gradcheck(op, [leaf.requires_grad_() for leaf in leaves])


def test_gradients_of_temporal_attention_are_the_derivatives():
    leaves, op = temporal(B=1, S=2)
    assert torch.autograd.gradcheck(op, [leaf.requires_grad_() for leaf in leaves])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("make", [deformable, lambda d: deformable(d, R=4), temporal], ids=["R2", "R4", "temporal"])
def test_kernels_err_no_more_than_definitions(make, dtype):
    leaves, op = make(dtype)
    found = gradients(op, leaves)
    with reference_ops():
        by_definition = gradients(op, leaves)
        exact = gradients(op, [leaf.double() for leaf in leaves])
    for ours, theirs, truth, leaf in zip(found, by_definition, exact, [leaves[0], *leaves], strict=True):
        assert ours.dtype == theirs.dtype == leaf.dtype
        ulp = torch.finfo(leaf.dtype).eps * truth.abs().max()
        # Twice PyTorch's own error in that dtype, and where that happens to be small: in 16 bits a unit in the last
        # place; else the rounding of locations some 12 pixels from the origin, as in test_ops.py.
        allowed = 2 * (theirs.double() - truth).abs().max() + (1 if leaf.dtype.itemsize == 2 else 64) * ulp
        assert (ours.double() - truth).abs().max() <= allowed


@either_op
def test_only_wanted_gradients_are_computed(make):
    leaves, op = make()
    everything = gradients(op, leaves)
    for which in range(len(leaves)):
        alone = [leaf.detach().requires_grad_(i == which) for i, leaf in enumerate(leaves)]
        out = op(*alone)
        out.backward(torch.randint(-8, 9, out.shape, generator=torch.Generator().manual_seed(9)).to(out) / 4)
        assert torch.equal(alone[which].grad, everything[1 + which])
        assert all(leaf.grad is None for leaf in alone if leaf is not alone[which])


@either_op
def test_layout_in_memory_does_not_matter(make):
    leaves, op = make()
    expected = gradients(op, leaves)
    strided = [leaf.transpose(0, 2).contiguous().transpose(0, 2) for leaf in leaves]
    reversed_channels = [torch.stack((leaf, leaf), -1)[..., 0] for leaf in leaves]
    for others in (strided, reversed_channels):
        assert not others[0].is_contiguous()
        for found, wanted in zip(gradients(op, others), expected, strict=True):
            assert torch.equal(found, wanted)


def test_chunks_of_one_projection_are_read_in_place():
    tokens = torch.randn(2, 5, 6, 36, dtype=torch.float64, requires_grad=True)
    query, key, value = tokens.chunk(3, -1)
    out = split_temporal_attn(query, key, value, heads=3)
    (grad,) = torch.autograd.grad(out.square().sum(), tokens)
    with reference_ops():
        expected = split_temporal_attn(query, key, value, heads=3)
        (expected_grad,) = torch.autograd.grad(expected.square().sum(), tokens)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-13)
    torch.testing.assert_close(grad, expected_grad, rtol=0, atol=1e-12)


@either_op
def test_expanded_inputs(make):
    leaves, op = make()
    expanded = [leaf[:1].expand_as(leaf) for leaf in leaves]
    for found, wanted in zip(gradients(op, expanded), gradients(op, [x.clone() for x in expanded]), strict=True):
        assert torch.equal(found, wanted)
    one = leaves[0][:1].clone().requires_grad_()
    op(one.expand_as(leaves[0]), *leaves[1:]).sum().backward()  # and an expanded gradient
    whole = leaves[0][:1].expand_as(leaves[0]).clone().requires_grad_()
    op(whole, *leaves[1:]).sum().backward()
    torch.testing.assert_close(one.grad, whole.grad.sum(0, keepdim=True), rtol=0, atol=1e-12)


@pytest.mark.parametrize("empty", [{"N": 0}, {"Q": 0}])
def test_no_queries_give_nothing_and_zero_gradients(empty):
    leaves, op = deformable(**empty)
    out, *grads = gradients(op, leaves)
    assert out.numel() == 0
    assert [g.shape for g in grads] == [x.shape for x in leaves]
    assert not any(g.any() for g in grads)


def test_no_locations_give_nothing():
    leaves, op = temporal(S=0)
    out, *grads = gradients(op, leaves)
    assert out.shape == leaves[0].shape
    assert [g.shape for g in grads] == [x.shape for x in leaves]


def test_long_sequences():
    leaves, op = temporal(T=40, U=80)
    found = gradients(op, leaves)
    with reference_ops():
        for ours, theirs in zip(found, gradients(op, leaves), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@either_op
def test_every_run_gives_the_same_bits(make, two_threads):
    leaves, op = make(torch.float32)
    torch.use_deterministic_algorithms(True)
    try:
        first = gradients(op, leaves)
        torch.set_num_threads(1)
        again = gradients(op, leaves)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


# ------------------------------------------------------------------------------------------------- dtypes, autocast


def test_offsets_and_logits_are_stored_as_the_value_is():
    (value, reference, offsets, logits), op = deformable(torch.float32)
    mixed = op(value.bfloat16(), reference, offsets, logits)
    assert mixed.dtype == torch.bfloat16
    assert torch.equal(mixed, op(value.bfloat16(), reference, offsets.bfloat16(), logits.bfloat16()))
    assert torch.equal(op(value, reference.double(), offsets, logits), op(value, reference, offsets, logits))


def test_autocast_runs_the_kernels_in_sixteen_bits():
    model = build(replace(tiny().model, encoder_layers=1, decoder_layers=1))
    clip, size = images(1, 2, 64, 64), sizes((64, 64))
    attended: list[Tensor] = []
    model.encoder.layers[0].deformable.register_forward_hook(lambda *args: attended.append(args[-1]))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = model(clip, size).encoded_BTSC
        with reference_ops():
            expected = model(clip, size).encoded_BTSC
    assert attended[0].dtype == torch.bfloat16
    # The same storage and the same rounding: what differs is the order of sums, which may tip a rounding over.
    assert (found - expected).abs().max() <= 4 * torch.finfo(torch.bfloat16).eps * expected.abs().max()


def test_other_dtypes_and_devices_have_the_definition():
    meta = torch.empty(2, 3, 4, 8, device="meta")
    assert split_temporal_attn(meta, meta, meta, heads=2).shape == meta.shape
    assert not has_kernel(torch.zeros(1, dtype=torch.int64))
