"""Results of the TensorRT plugins when they are enqueued."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support.cuda_backends import build_emulation, missing_tool
from support.deformable import deformable_by_loops, deformable_inputs
from support.packing import PACKINGS, attributes, packed
from support.tensorrt_driver import Built, Driver, Reply, compile_for_gpu

from mssts import kernels
from mssts.ops import reference_ops, split_temporal_attn

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# Error of the 16-bit kernels beyond the rounding of the result: none, as arithmetic is in fp32.
ROUNDING = {torch.float32: 2e-6, torch.float16: 2**-11, torch.bfloat16: 2**-8}


def host_kernels(name: str) -> Path:
    """Kernels that work on host memory.

    They are those of the CPU library, or the CUDA kernels under emulation.
    """
    if name == "emulated":
        if tool := missing_tool():
            pytest.skip(f"the emulation is built with {tool}, which is not installed")
        return build_emulation() / "libmssts_cuda_emulated.so"
    cpu = kernels.library("cpu")
    if cpu.path is None or cpu.reason:
        pytest.skip(f"the CPU kernels: {cpu.reason}")
    return cpu.path


@pytest.fixture(params=["cpu", "emulated", pytest.param("gpu", marks=pytest.mark.gpu)])
def running(request, built: Built, start) -> Driver:
    """A process whose `enqueue` computes.

    On host memory, or with the real library on a GPU.
    """
    if request.param != "gpu":
        one = start(host_kernels(request.param))
        one("dlopen", built.library, "now", "local")
        one("logger")
        return one
    if reason := kernels.library("cuda").reason:
        pytest.skip(f"the CUDA kernels: {reason}")
    real = kernels.library("tensorrt")
    if real.path is None or real.reason:
        pytest.skip(f"the TensorRT plugins: {real.reason}")
    one = start(program=compile_for_gpu(built))
    one("dlopen", real.path, "now", "local")
    one("logger")
    return one


def stored(tensor: torch.Tensor, file: Path) -> str:
    """The tensor's bytes in a file, as a word of the driver."""
    bits = tensor.contiguous()
    bits = bits.view(torch.int16) if bits.dtype == torch.bfloat16 else bits
    bits.numpy().tofile(file)
    return f"{str(tensor.dtype).removeprefix('torch.')}:{','.join(map(str, tensor.shape))}@{file}"


def enqueue(driver: Driver, folder: Path, inputs: list[torch.Tensor], out_shape: tuple[int, ...]) -> torch.Tensor:
    """The output of the current plugin, in float64."""
    words = [stored(tensor, folder / f"{i}.bin") for i, tensor in enumerate(inputs)]
    words.append(stored(torch.zeros(out_shape, dtype=inputs[0].dtype), folder / "out.bin"))
    (folder / "out.bin").unlink()
    assert driver("change", *(word.split("@")[0] for word in words)) == Reply(0, [])
    assert driver("enqueue", *words) == Reply(0, [])
    bits = np.fromfile(folder / "out.bin", np.int16 if inputs[0].element_size() == 2 else np.int32)
    return torch.from_numpy(bits).view(inputs[0].dtype).reshape(out_shape).double()


@pytest.mark.parametrize("index", [torch.int32, torch.int64], ids=["int32", "int64"])
@pytest.mark.parametrize("coordinates", [2, 4])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_enqueue_computes_deformable_attention(running, tmp_path, dtype, coordinates, index):
    shapes = ((5, 4), (3, 3), (2, 1))
    exact = deformable_inputs(shapes, N=2, Q=5, M=3, D=8, P=2, R=coordinates, seed=3)
    value, shapes_L2, reference, offsets, logits, _ = exact
    inputs = [value.to(dtype), shapes_L2.to(index), reference.float(), offsets.to(dtype), logits.to(dtype)]
    running("create", "MSDeformAttn", "runtime")
    out = enqueue(running, tmp_path, inputs, (2, 5, 24))
    expected = torch.from_numpy(deformable_by_loops(inputs[0], None, *inputs[2:], shapes))
    # fp32 arithmetic on top of the rounding: a pixel's position is exact to about 1e-6 here.
    assert (out - expected).abs().max() <= ROUNDING[dtype] * expected.abs().max() + 2e-5


@pytest.mark.parametrize(("frames", "key_frames"), [(5, 10), (1, 1)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_enqueue_computes_temporal_attention(running, tmp_path, dtype, frames, key_frames):
    gen = torch.Generator().manual_seed(1)
    query, key, value = (torch.randn(2, n, 6, 32, generator=gen).to(dtype) for n in (frames, key_frames, key_frames))
    running("create", "SplitTemporalAttn", "runtime", "heads:int32:2")
    running("clone")  # an engine runs clones
    out = enqueue(running, tmp_path, [query, key, value], (2, frames, 6, 32))
    with reference_ops():
        expected = split_temporal_attn(query.double(), key.double(), value.double(), 2)
    assert (out - expected).abs().max() <= ROUNDING[dtype] * expected.abs().max() + 2e-6


@pytest.mark.parametrize("parts", PACKINGS.values(), ids=PACKINGS.keys())
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_enqueue_reads_parts_of_one_tensor_where_they_are(running, tmp_path, dtype, parts):
    gen = torch.Generator().manual_seed(1)
    tokens = [torch.randn(2, 5, 6, 32, generator=gen).to(dtype) for _ in range(3)]
    fields = [f"{name}:int32:{','.join(map(str, x))}" for name, x in attributes(parts, 32).items()]
    running("create", "SplitTemporalAttn", "runtime", "heads:int32:2", *fields)
    running("clone")
    out = enqueue(running, tmp_path, packed(parts, *tokens), (2, 5, 6, 32))
    with reference_ops():
        expected = split_temporal_attn(*(x.double() for x in tokens), 2)
    assert (out - expected).abs().max() <= ROUNDING[dtype] * expected.abs().max() + 2e-6


def test_enqueue_of_nothing(running, tmp_path):
    running("create", "MSDeformAttn", "runtime")
    value, shapes_L2 = torch.zeros(0, 6, 2, 8), torch.tensor([[2, 3]])
    rest = [torch.zeros(0, 5, 1, 2), torch.zeros(0, 5, 2, 1, 4, 2), torch.zeros(0, 5, 2, 1, 4)]
    assert enqueue(running, tmp_path, [value, shapes_L2, *rest], (0, 5, 16)).numel() == 0


def test_the_library_that_make_plugins_builds_is_for_the_tensorrt_it_names():
    """The real one, where it is built: it loads, and says what for."""
    real = kernels.library("tensorrt")
    if real.path is None or real.reason:
        pytest.skip(f"the TensorRT plugins: {real.reason}")
    program = (
        "import ctypes, sys; build = ctypes.CDLL(sys.argv[1]).mssts_tensorrt_build\n"
        "build.restype = ctypes.c_char_p; print(build().decode())"
    )
    answer = subprocess.run([sys.executable, "-c", program, real.path], capture_output=True, text=True, check=True)
    assert answer.stdout.startswith("TensorRT 1")


@pytest.mark.parametrize("op", ["MSDeformAttn", "SplitTemporalAttn"])
def test_enqueue_costs_the_host_next_to_nothing(start, built: Built, op: str) -> None:
    """It allocates nothing, and takes under 2 µs beside what a launch takes."""
    driver = start(Path("nothing"))
    driver("dlopen", built.library, "now", "local")
    driver("logger")
    if op == "MSDeformAttn":
        sizes = ["5,4820,8,32", "4,2", "5,4820,4,2", "5,4820,8,4,4,2", "5,4820,8,4,4", "5,4820,256"]
        types = ["float16", "int64", "float32", "float16", "float16", "float16"]
        driver("create", op, "runtime")
    else:
        sizes, types = ["1,5,4820,64", "1,10,4820,64", "1,10,4820,64", "1,5,4820,64"], ["float16"] * 4
        driver("create", op, "runtime", "heads:int32:4")
    tensors = [f"{dtype}:{size}" for dtype, size in zip(types, sizes, strict=True)]
    assert driver("change", *tensors) == Reply(0, [])
    microseconds, allocations = driver("cost", *tensors).result
    assert allocations == 0
    assert microseconds <= 2
