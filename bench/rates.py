"""The machine's best rate at the products of a model.

No engine here can pass it for long.

A chain of layers of one of the model's own shapes, there and back, is timed in PyTorch (oneDNN) and in OpenVINO. The
best sustained rate of all shapes and both libraries is the machine's; a model's FLOPs divided by it are its floor.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mssts.bench.operations import Operation
from mssts.errors import MsstsError

DTYPES = ("fp32", "bf16", "int8")
_SHAPES = 16  # those with the most FLOPs
_LAYERS = 4  # of a chain, so that activations may stay in caches as they do in an engine
_SECONDS = 0.4  # of a measurement, in at least three runs


@dataclass(frozen=True)
class Rate:
    """A sustained rate.

    Attributes:
        dtype: of the products: fp32, bf16 or int8.
        library: `pytorch` or `openvino`.
        kind: `gemm` or `convolution`.
        dims: as in `Operation`.
        gflop_per_s: 10⁹ FLOPs a second; int8's are operations.
    """

    dtype: str
    library: str
    kind: str
    dims: tuple[int, ...]
    gflop_per_s: float


def measure_rates(operations: Sequence[Operation], dtypes: Sequence[str], threads: int) -> list[Rate]:
    """The rates at the shapes of the most FLOPs, in each dtype and library.

    A library without a dtype has no row.

    Raises:
        MsstsError: a dtype is none of `DTYPES`, or nothing here computes in it.
    """
    from tqdm import tqdm

    unknown = set(dtypes) - set(DTYPES)
    if unknown:
        raise MsstsError(f"no rate of {', '.join(sorted(unknown))}; expected one of: {', '.join(DTYPES)}")
    shapes = heaviest(operations, _SHAPES)
    rates = []
    for dtype, (kind, dims) in tqdm([(d, s) for d in dtypes for s in shapes], desc="rates", unit="shape", disable=None):
        for library, chain in (("pytorch", _pytorch_chain), ("openvino", _openvino_chain)):
            run = chain(kind, dims, dtype, threads)
            if run is not None:
                flops = _LAYERS * flops_of(kind, dims)
                rates.append(Rate(dtype, library, kind, dims, flops / _seconds(run) / 1e9))
    for dtype in dtypes:
        if not any(rate.dtype == dtype for rate in rates):
            raise MsstsError(f"neither PyTorch nor OpenVINO computes in {dtype} here, so it has no floor")
    return rates


def best_rate(rates: Sequence[Rate], dtype: str) -> Rate:
    """The best rate of a dtype."""
    return max((rate for rate in rates if rate.dtype == dtype), key=lambda rate: rate.gflop_per_s)


def own_rate_seconds(operations: Iterable[Operation], rates: Sequence[Rate], dtype: str) -> float:
    """The least that products need if each has the best rate of its own shape.

    A product whose shape was not measured has the machine's best.
    """
    best: dict[tuple[str, tuple[int, ...]], float] = {}
    for rate in rates:
        if rate.dtype == dtype:
            shape = rate.kind, rate.dims
            best[shape] = max(best.get(shape, 0.0), rate.gflop_per_s)
    most = best_rate(rates, dtype).gflop_per_s
    return sum(each.flops / best.get((each.kind, each.dims), most) for each in operations) / 1e9


def heaviest(operations: Sequence[Operation], most: int) -> list[tuple[str, tuple[int, ...]]]:
    """The products with the most FLOPs of the model, each shape once.

    Convolutions with a stride or groups are left out: they do not chain.
    """
    flops: Counter[tuple[str, tuple[int, ...]]] = Counter()
    for operation in operations:
        kind, dims = operation.kind, operation.dims
        if (kind == "gemm" and dims[0] == 1) or (kind == "convolution" and dims[6:] == (1, 1)):
            flops[kind, dims] += operation.flops
    return [shape for shape, _ in flops.most_common(most)]


def flops_of(kind: str, dims: tuple[int, ...]) -> int:
    """FLOPs of a product of `heaviest`."""
    if kind == "gemm":
        batch, M, N, K = dims
        return 2 * batch * M * N * K
    images, channels, height, width, out, kernel, _, _ = dims
    return 2 * images * channels * height * width * out * kernel**2


def _seconds(run: Callable[[], object]) -> float:
    run()  # compiles and packs
    times: list[float] = []
    while sum(times) < _SECONDS or len(times) < 3:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _pytorch_chain(kind: str, dims: tuple[int, ...], dtype: str, threads: int) -> Callable[[], object] | None:
    import torch
    from torch.nn import functional as F

    if dtype == "int8":
        return None
    torch.set_num_threads(threads)
    type_ = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    x, *weights = (torch.from_numpy(array).to(type_) for array in _arrays(kind, dims))
    if kind == "convolution":
        x, *weights = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (x, *weights))

    def run() -> object:
        y = x
        with torch.inference_mode():
            for layer in range(_LAYERS):
                weight = weights[layer % 2]
                y = F.linear(y, weight) if kind == "gemm" else F.conv2d(y, weight, padding=dims[5] // 2)
        return y

    return run


def _openvino_chain(kind: str, dims: tuple[int, ...], dtype: str, threads: int) -> Callable[[], object] | None:
    try:
        import openvino
        from openvino import opset13 as ops
    except ImportError:
        return None
    core = openvino.Core()
    if dtype == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        return None
    x, *weights = _arrays(kind, dims)
    parameter = ops.parameter(list(x.shape), np.float32)

    def quantised(node: openvino.Node, least: float, most: float, levels: int) -> openvino.Node:
        if dtype != "int8":
            return node
        ends = [np.float32(least), np.float32(most)]
        return ops.fake_quantize(node, *ends, *ends, levels)

    y = parameter
    for layer in range(_LAYERS):
        weight = quantised(ops.constant(weights[layer % 2]), -0.1, 0.1, 255)
        y = quantised(y, 0.0, 2.55, 256)
        if kind == "gemm":
            y = ops.relu(ops.matmul(y, weight, False, True))
        else:
            pad = [dims[5] // 2] * 2
            y = ops.relu(ops.convolution(y, weight, [1, 1], pad, pad, [1, 1]))
    options = {
        "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "bf16" if dtype == "bf16" else "f32",
    }  # fmt: skip
    request = core.compile_model(openvino.Model([y], [parameter]), "CPU", options).create_infer_request()
    return lambda: request.infer({0: x}, share_inputs=True, share_outputs=True)


def _arrays(kind: str, dims: tuple[int, ...]) -> Iterator[np.ndarray]:
    """The input of a chain and the weights of its odd and even layers."""
    random = np.random.default_rng(0)
    if kind == "gemm":
        _, M, N, K = dims
        shapes: list[tuple[int, ...]] = [(M, K), (N, K), (K, N)]
    else:
        images, channels, height, width, out, kernel, _, _ = dims
        shapes = [(images, channels, height, width), (out, channels, kernel, kernel), (channels, out, kernel, kernel)]
    yield random.random(shapes[0], np.float32)
    for shape in shapes[1:]:
        yield 0.02 * random.standard_normal(shape, np.float32)
