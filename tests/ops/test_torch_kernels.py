"""The kernels as operators of PyTorch, against the ops' definitions: values, gradients, tracing, and what is refused.

What the kernels compute on hard inputs has tests of its own; here is what PyTorch does with them.
"""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.deformable import SHAPES, deformable_inputs
from support.model_inputs import build, geometry, images, sizes
from torch import Tensor

from mssts.kernels import library
from mssts.manifest import Category
from mssts.model.checkpoint import save_checkpoint
from mssts.model.config import BASELINE, Switches, tiny
from mssts.ops import definition, ms_deform_attn, split_temporal_attn
from mssts.ops.choice import has_kernel
from mssts.runners.torch_runner import TorchRunner

pytestmark = pytest.mark.skipif(bool(library("cpu").reason), reason=f"the CPU kernels: {library('cpu').reason}")

LEVELS = SHAPES["four levels"]


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def deformable(
    dtype: torch.dtype = torch.float64, R: int = 2, N: int = 2, Q: int = 7, D: int = 8, seed: int = 0
) -> tuple[list[Tensor], Callable[..., Tensor]]:
    """The op's floating inputs (value, reference, offsets, logits), the reference in fp32 at least, and the op."""
    value, shapes_L2, reference, offsets, logits, shapes = deformable_inputs(LEVELS, N=N, Q=Q, D=D, R=R, seed=seed)
    leaves = [value.to(dtype), reference.to(torch.promote_types(dtype, torch.float32)), offsets.to(dtype)]
    leaves.append(logits.to(dtype))
    return leaves, lambda v, r, o, a: ms_deform_attn(v, shapes_L2, r, o, a, shapes)


def temporal(
    dtype: torch.dtype = torch.float64, B: int = 2, T: int = 3, U: int = 6, S: int = 5, seed: int = 0
) -> tuple[list[Tensor], Callable[..., Tensor]]:
    gen = torch.Generator().manual_seed(seed)
    leaves = [torch.randn(B, t, S, 12, generator=gen, dtype=torch.float64).to(dtype) for t in (T, U, U)]
    return leaves, lambda q, k, v: split_temporal_attn(q, k, v, heads=3)


OPS = {"deformable": deformable, "temporal": temporal}
either_op = pytest.mark.parametrize("make", OPS.values(), ids=OPS.keys())


def gradients(op: Callable[..., Tensor], leaves: list[Tensor]) -> tuple[Tensor, ...]:
    """The output and its gradients, for a random gradient of the output that every dtype has exactly."""
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    out = op(*leaves)
    grad = torch.randint(-8, 9, out.shape, generator=torch.Generator().manual_seed(9)).to(out) / 4
    return out.detach(), *torch.autograd.grad(out, leaves, grad)


# ---------------------------------------------------------------------------------------------- values and gradients


@either_op
def test_the_kernel_is_what_runs(make):
    leaves, op = make()
    assert has_kernel(leaves[0])
    assert "mssts" in op(leaves[0].requires_grad_(), *leaves[1:]).grad_fn.name()
    with definition():
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
    with definition():
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
    with definition():
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
    with definition():
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
        with definition():
            expected = model(clip, size).encoded_BTSC
    assert attended[0].dtype == torch.bfloat16
    # The same storage and the same rounding: what differs is the order of sums, which may tip a rounding over.
    assert (found - expected).abs().max() <= 4 * torch.finfo(torch.bfloat16).eps * expected.abs().max()


def test_other_dtypes_and_devices_have_the_definition():
    meta = torch.empty(2, 3, 4, 8, device="meta")
    assert split_temporal_attn(meta, meta, meta, heads=2).shape == meta.shape
    assert not has_kernel(torch.zeros(1, dtype=torch.int64))


# ------------------------------------------------------------------------------------------------------- tracing


def deformable_arguments(grad: bool) -> tuple[Tensor, ...]:
    (value, reference, offsets, logits), _ = deformable(torch.float32)
    shapes_L2 = torch.tensor(LEVELS)
    return value.requires_grad_(grad), shapes_L2, reference, offsets.requires_grad_(grad), logits.requires_grad_(grad)


@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
def test_the_operators_keep_pytorchs_rules(grad):
    torch.library.opcheck(torch.ops.mssts.ms_deform_attn.default, deformable_arguments(grad))
    leaves, _ = temporal(torch.float32)
    leaves = [leaf.requires_grad_(grad) for leaf in leaves]
    torch.library.opcheck(torch.ops.mssts.split_temporal_attn.default, (*leaves, 3))
    part = torch.randn(2, 5, 6, 36).chunk(3, -1)
    torch.library.opcheck(torch.ops.mssts.split_temporal_attn.default, (*part, 3))


@pytest.mark.parametrize("wanted", [True, False], ids=["all", "some"])
def test_the_backward_operators_keep_pytorchs_rules(wanted):
    inputs = deformable_arguments(False)
    grad = torch.randn(2, 7, 24)
    mask = [True, wanted, True, wanted]
    torch.library.opcheck(torch.ops.mssts.ms_deform_attn_backward.default, (grad, *inputs, mask))
    leaves, _ = temporal(torch.float32)
    operator = torch.ops.mssts.split_temporal_attn_backward.default
    torch.library.opcheck(operator, (torch.randn_like(leaves[0]), *leaves, 3, [True, wanted, True]))


@either_op
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compiled_functions_have_no_breaks(make, dynamic):
    torch._dynamo.reset()
    _, op = make()

    def function(*leaves: Tensor) -> Tensor:
        return op(*(leaf * 2 for leaf in leaves)) + 1

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for seed in range(2):
        size = {"N": 2 + seed} if make is deformable else {"S": 5 + seed}
        leaves, _ = make(seed=seed, **(size if dynamic else {}))
        for found, expected in zip(gradients(compiled, leaves), gradients(function, leaves), strict=True):
            assert torch.equal(found, expected)


def test_a_compiled_function_follows_the_choice():
    torch._dynamo.reset()
    leaves, op = temporal(torch.float32)
    graphs: list[str] = []

    def backend(module: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Tensor]:
        graphs.append(module.code)
        return module.forward

    compiled = torch.compile(op, backend=backend, fullgraph=True)
    compiled(*leaves)
    with definition():
        compiled(*leaves)
    assert ["mssts" in graph for graph in graphs] == [True, False]


@pytest.mark.slow
@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
def test_inductor_compiles_a_layer(grad):
    """In a process of its own: Inductor forks, which the runtimes that other tests have loaded do not bear."""
    program = f"import test_torch_kernels; test_torch_kernels.compile_a_layer({grad})"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parents[1], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]


def compile_a_layer(grad):
    model = build(replace(tiny().model, width=32, heads=2, split_width=8))
    layer = model.encoder.layers[0].split
    tokens = torch.randn(1, 3, 21, 32, requires_grad=grad)
    where = geometry([(4, 4), (2, 2), (1, 1)], (32, 32))
    compiled = torch.compile(layer, fullgraph=True)
    with torch.set_grad_enabled(grad):
        found, expected = compiled(tokens, where), layer(tokens, where)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)  # of order 1, some 100 terms, in fp32
    if grad:
        ours, theirs = (torch.autograd.grad(out.square().sum(), tokens)[0] for out in (found, expected))
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


class Deformable(torch.nn.Module):
    def forward(self, value: Tensor, shapes_L2: Tensor, reference: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
        return ms_deform_attn(value, shapes_L2, reference, offsets, logits, list(LEVELS))


@pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])
def test_exported_programs_hold_the_operator(strict):
    N, Q = torch.export.Dim("N", min=1, max=8), torch.export.Dim("Q", min=1, max=99)
    free = {0: N, 1: Q}
    example = deformable_arguments(False)
    program = torch.export.export(Deformable(), example, dynamic_shapes=({0: N}, None, free, free, free), strict=strict)
    assert "mssts.ms_deform_attn" in program.graph_module.code
    assert program.run_decompositions({}).graph_module.code.count("mssts.ms_deform_attn") == 1
    (value, reference, offsets, logits), op = deformable(torch.float32, N=3, Q=5, seed=4)
    found = program.module()(value, example[1], reference, offsets, logits)
    assert torch.equal(found, op(value, reference, offsets, logits))


def test_onnx_export_never_meets_a_kernel(tmp_path):
    class Temporal(torch.nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return split_temporal_attn(q, k, v, heads=3)

    leaves, _ = temporal(torch.float32)
    program = torch.onnx.export(Temporal().eval(), tuple(leaves), dynamo=True, verbose=False)
    assert program is not None
    assert {node.domain for node in program.model.graph} <= {"", "ai.onnx", "pkg.onnxscript.torch_lib.common"}


# ------------------------------------------------------------------------------------------------------ the model


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
    with definition():
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
        with definition():
            plain = model(clip, size)
            exact = model.double()(clip.double(), size)
    for ours, theirs, truth in (
        (found.logits[-1], plain.logits[-1], exact.logits[-1]),
        (found.encoded_BTSC, plain.encoded_BTSC, exact.encoded_BTSC),
    ):
        error, allowed = (ours - truth).square().mean().sqrt(), (theirs - truth).square().mean().sqrt()
        # In the mean over thousands of values, both are the same rounding: of fp32 and the network around the ops.
        assert error <= 2 * allowed


@pytest.mark.parametrize("switches", [Switches(), BASELINE], ids=["all additions", "baseline"])
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


# ---------------------------------------------------------------------------------------- processes and what is refused


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
        with pytest.raises(RuntimeError, match=rf"mssts::{name} has no second derivative.*definition\(\)"):
            grad.sum().backward()
        with definition():
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


# ------------------------------------------------------------------------------------------------------ on a GPU


@pytest.mark.gpu
@pytest.mark.skipif(bool(library("cuda").reason), reason=f"the CUDA kernels: {library('cuda').reason}")
class TestOnAGpu:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    @either_op
    def test_values_and_gradients(self, make, dtype):
        leaves, op = self.on_gpu(make, dtype)
        found = [x.cpu() for x in gradients(op, leaves)]
        with definition():
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
