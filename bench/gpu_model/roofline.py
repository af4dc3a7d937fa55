"""The least time that a clip needs on a GPU, by module of the paper: a roofline.

FLOPs are those of the products. Bytes are the inputs and outputs of each product and of the two ops, in 16 bits, each
once: what lies between them (activations, norms, softmax) is taken as fused. A launch is one of them. No machine
reaches all of this at once; the figures say what is possible, not what is measured.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mssts.model.config import preset

PRESETS = ("mssts_r50", "mssts_swin_l")
FRAMES, HEIGHT, WIDTH = 5, 360, 640
BATCHES = (1, 8)
LAUNCH_SECONDS = 1e-6  # of a kernel inside a CUDA graph, about


@dataclass(frozen=True)
class Gpu:
    """Figures of a data sheet.

    Attributes:
        name: of the GPU.
        flops: a second, in dense 16-bit products on the tensor cores.
        bytes: a second, of its memory.
    """

    name: str
    flops: float
    bytes: float


# NVIDIA's data sheets: H100 SXM5 80 GB, H200 SXM 141 GB, L4 24 GB, Jetson AGX Orin 64 GB.
GPUS = (
    Gpu("H100", 989e12, 3.35e12),
    Gpu("H200", 989e12, 4.8e12),
    Gpu("L4", 121e12, 0.3e12),
    Gpu("Orin", 42.5e12, 0.2048e12),
)


@dataclass(frozen=True)
class Work:
    """Of one module in one inference."""

    module: str
    flops: int
    bytes: int
    launches: int
    seconds: dict[str, float]  # by GPU, each product at least as long as its FLOPs and its bytes take


def count_work(name: str, batch: int) -> list[Work]:
    """The work of a preset's modules on a batch of clips."""
    from mssts.bench.operations import MODULES, count_operations

    flops: defaultdict[str, int] = defaultdict(int)
    moved: defaultdict[str, int] = defaultdict(int)
    launches: defaultdict[str, int] = defaultdict(int)
    seconds: defaultdict[str, dict[str, float]] = defaultdict(lambda: {gpu.name: 0.0 for gpu in GPUS})
    for operation in count_operations(preset(name), (batch, FRAMES, HEIGHT, WIDTH)):
        if operation.kind == "other":
            continue
        size = operation.bytes // 2  # they are counted in fp32
        flops[operation.module] += operation.flops
        moved[operation.module] += size
        launches[operation.module] += 1
        for gpu in GPUS:
            seconds[operation.module][gpu.name] += max(operation.flops / gpu.flops, size / gpu.bytes)
    return [Work(m, flops[m], moved[m], launches[m], seconds[m]) for m in MODULES if launches[m]]


def roofline_rows(names: Sequence[str] = PRESETS, batches: Sequence[int] = BATCHES) -> Iterator[dict[str, Any]]:
    """Rows by preset, batch, GPU and module, the last of each the whole clip.

    `least_ms` and `launch_ms` are of the whole batch.
    """
    for name in names:
        for batch in batches:
            work = count_work(name, batch)
            for gpu in GPUS:
                common = {"preset": name, "frames": FRAMES, "size": [HEIGHT, WIDTH], "batch": batch, "gpu": gpu.name}
                for module in work:
                    yield {
                        **common, "module": module.module, "gbytes": module.bytes / 1e9, "gflop": module.flops / 1e9,
                        "launches": module.launches, "least_ms": 1e3 * module.seconds[gpu.name],
                        "launch_ms": 1e3 * LAUNCH_SECONDS * module.launches,
                    }  # fmt: skip
                least = sum(module.seconds[gpu.name] for module in work)
                launches = sum(module.launches for module in work)
                # Launches overlap with work that is under way: the longer of the two binds.
                bound = max(least, LAUNCH_SECONDS * launches)
                yield {
                    **common, "module": "clip", "gbytes": sum(m.bytes for m in work) / 1e9,
                    "gflop": sum(m.flops for m in work) / 1e9, "launches": launches, "least_ms": 1e3 * least,
                    "launch_ms": 1e3 * LAUNCH_SECONDS * launches, "most_frames_per_s": FRAMES * batch / bound,
                }  # fmt: skip
