"""The model on kernels: equal to the references, and what its runner describes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.model_inputs import build, images, sizes
from support.torch_ops import LEVELS, deformable, deformable_arguments, either_op, gradients, temporal
from torch import Tensor

from mssts.kernels import library
from mssts.manifest import Category
from mssts.model.checkpoint import save_checkpoint
from mssts.model.config import BASELINE, Switches, tiny
from mssts.ops import ms_deform_attn, reference_ops, split_temporal_attn
from mssts.runners.torch_runner import TorchRunner

pytestmark = pytest.mark.skipif(bool(library("cpu").reason), reason=f"the CPU kernels: {library('cpu').reason}")


@pytest.mark.parametrize("frames", [1, 4])
def test_the_model_is_the_same_with_kernels(frames):
    model = build(tiny().model).double()
    clip, size = images(1, frames, 64, 96).double(), sizes((64, 80))

    def run() -> tuple[Tensor, ...]:
        model.zero_grad()
        prediction = model(clip, size)
        masks = model.masks(prediction, -1, torch.arange(3)[None])
        outputs = [prediction.logits[-1], prediction.layers[-1].boxes_BTQ4, masks]
        sum(out.square().mean() for out in outputs).backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        return *[out.detach() for out in outputs], *[g.clone() for g in grads]

    found = run()
    with reference_ops():
        expected = run()
    assert len(found) == len(expected)
    largest = max(float(g.abs().max()) for g in expected[3:])
    for i, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        scale = theirs.abs().max() if i < 3 else largest
        # fp64 through some 50 layers, each of which may amplify what the order of sums changed.
        assert (ours - theirs).abs().max() <= 1e6 * torch.finfo(torch.float64).eps * scale


def test_the_model_in_fp32_errs_no_more_than_with_definitions():
    model = build(tiny().model)
    clip, size = images(1, 3, 64, 96), sizes((64, 96))
    with torch.no_grad():
        found = model(clip, size)
        with reference_ops():
            plain = model(clip, size)
            exact = model.double()(clip.double(), size)
    for ours, theirs, truth in (
        (found.logits[-1], plain.logits[-1], exact.logits[-1]),
        (found.encoded_BTSC, plain.encoded_BTSC, exact.encoded_BTSC),
    ):
        error, allowed = (ours - truth).square().mean().sqrt(), (theirs - truth).square().mean().sqrt()
        # In the mean over thousands of values, both are the same rounding: of fp32 and the network around the ops.
        assert error <= 2 * allowed


@pytest.mark.parametrize("switches", [Switches(), BASELINE], ids=["all switches", "baseline"])
def test_the_runner_tells_its_kernels(tmp_path, monkeypatch, switches):
    preset = replace(tiny(), model=replace(tiny().model, switches=switches, classes=1))
    weights = build(preset.model).state_dict()
    kept = {name: tensor for name, tensor in weights.items() if not name.endswith("num_batches_tracked")}
    save_checkpoint(tmp_path / "model.safetensors", kept, preset, (Category(1, "thing"),))
    runner = TorchRunner(tmp_path / "model.safetensors", threads=1, device="cpu")
    described = runner.describe()
    assert described["kernels"] == ["MSDeformAttn", "SplitTemporalAttn"][: 2 if switches.intra_scale else 1]
    assert described["kernels_isa"] in ("avx512", "avx2", "portable")
    assert described["kernels_reason"] == ""
    monkeypatch.setattr("mssts.runners.torch_runner.why_no_kernel", lambda device: "not built")
    described = runner.describe()
    assert (described["kernels"], described["kernels_isa"], described["kernels_reason"]) == ([], "", "not built")


@pytest.mark.gpu
@pytest.mark.skipif(bool(library("cuda").reason), reason=f"the CUDA kernels: {library('cuda').reason}")
class TestOnAGpu:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    @either_op
    def test_values_and_gradients(self, make, dtype):
        leaves, op = self.on_gpu(make, dtype)
        found = [x.cpu() for x in gradients(op, leaves)]
        with reference_ops():
            theirs = [x.cpu() for x in gradients(op, leaves)]
            cpu_leaves, cpu_op = make(dtype)
            exact = gradients(cpu_op, [leaf.double() for leaf in cpu_leaves])
        for ours, plain, truth, leaf in zip(found, theirs, exact, [leaves[0], *leaves], strict=True):
            ulp = torch.finfo(leaf.dtype).eps * truth.abs().max()
            assert (ours.double() - truth).abs().max() <= 2 * (plain.double() - truth).abs().max() + 64 * ulp

    @either_op
    def test_deterministic_gradients_have_the_same_bits(self, make):
        leaves, op = self.on_gpu(make, torch.float32)
        torch.use_deterministic_algorithms(True)
        try:
            first, again = gradients(op, leaves), gradients(op, leaves)
        finally:
            torch.use_deterministic_algorithms(False)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))

    def test_a_graph_replays_the_kernels(self):
        leaves, op = self.on_gpu(deformable, torch.float32)
        expected = op(*leaves)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = op(*leaves)
        graph.replay()
        assert torch.equal(out, expected)

    def test_tensors_on_two_devices_are_refused(self):
        value, shapes_L2, *rest = deformable_arguments(False)
        with pytest.raises(RuntimeError, match="expected all tensors on one device"):
            torch.ops.mssts.ms_deform_attn(value.cuda(), shapes_L2, *(x.cuda() for x in rest))

    @staticmethod
    def on_gpu(make, dtype):
        leaves, _ = make(dtype)
        if make is temporal:
            return [leaf.cuda() for leaf in leaves], lambda q, k, v: split_temporal_attn(q, k, v, heads=3)
        shapes_L2 = torch.tensor(LEVELS).cuda()
        op = lambda v, r, o, a: ms_deform_attn(v, shapes_L2, r, o, a, list(LEVELS))  # noqa: E731
        return [leaf.cuda() for leaf in leaves], op
