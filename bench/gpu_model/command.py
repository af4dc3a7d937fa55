"""`mssts bench gpu-model`: bounds of the CUDA kernels and of a clip.

It needs no GPU. See docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mssts.errors import MsstsError

if TYPE_CHECKING:
    from mssts.bench.gpu_model.l1_cache import Design
    from mssts.bench.kernels.workloads import DeformWorkload

HELP = "bounds of the CUDA kernels and of a clip on four GPUs, from the built library, without a GPU"

WORKLOAD = "encoder_r50_360x640_t5"
OFFSETS = (0.5, 2.0)  # pixels
GOAL_FRAMES_PER_SECOND, GOAL_OP_US = 1000, 45
# H200 SXM, as H100: a usual clock under load; bytes a second that its L2 delivers are reported by others, not measured.
MULTIPROCESSORS, ISSUES_PER_CYCLE, L1_BYTES_PER_CYCLE, CLOCK_HZ = 132, 4, 128, 1.75e9
L2_BYTES_PER_SECOND = 5.5e12
NOTE = (
    "No time was measured. issue_us: the instructions of all warps at 132 multiprocessors, 4 a cycle and 1.75 GHz. "
    "l2_us: what the L1 gets from L2 and sends to it, at 5.5 TB/s (reported by others). l1_us: what the L1 delivers, "
    "with what goes through shared memory, at 128 bytes a cycle. bound_us is the largest. The stock kernel leaves out "
    "softmax and locations, which ours include."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's arguments."""
    parser.add_argument("--library", type=Path, help="libmssts_cuda.so or a cubin (default: the built one)")
    parser.add_argument("--architecture", type=int, default=90, metavar="SM", help="of the library (default: 90)")
    parser.add_argument("--stock", type=Path, help="library or cubin of the released kernel (default: recorded)")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="file or folder (default: into runs/bench)")


def run(arguments: argparse.Namespace) -> None:
    """Counts and simulates, prints the tables and writes the record."""
    from mssts.bench.gpu_model.roofline import roofline_rows
    from mssts.bench.records import save_record

    library = arguments.library or _built_library()
    if not library.is_file():
        raise MsstsError(f"{library}: no such file; expected the CUDA library that `make plugins` builds")
    kernels = list(kernel_rows(library, arguments.architecture, arguments.stock))
    roofline = list(roofline_rows())
    report = {
        "note": NOTE, "workload": WORKLOAD, "architecture": arguments.architecture, "kernels": kernels,
        "designs": list(design_rows()), "reductions": list(backward_rows(kernels)), "roofline": roofline,
        "goals": goals(kernels, roofline),
    }  # fmt: skip
    _print(report)
    save_record("gpu_model", report, arguments.out)


def kernel_rows(library: Path, architecture: int, stock: Path | None = None) -> Iterator[dict[str, Any]]:
    """Rows of the encoder call's kernels, then of all other kernels.

    A forward has one for each offset, for which the L1 is simulated.

    Raises:
        MsstsError: the library has no kernel of the encoder call for this architecture, or cannot be read.
    """
    from mssts.bench.gpu_model.compiler import RECORDED_STOCK, kernels_of

    found = kernels_of(library, architecture) + (kernels_of(stock) if stock else [])
    if not any(kernel.launch for kernel in found):
        raise MsstsError(f"{library} has no kernel of the encoder call for sm_{architecture}; c++filt must be on PATH")
    others = []
    for kernel in sorted(found, key=lambda k: k.name):
        row: dict[str, Any] = {
            "kernel": kernel.name, "implementation": "stock" if kernel.launch and kernel.launch.stock else "mssts",
        }  # fmt: skip
        launch = kernel.launch
        direction = "backward" if "backward" in kernel.name else "forward"
        row |= {"direction": "backward" if launch and launch.backward else direction}
        row |= {"dtype": launch.dtype if launch else _dtype(kernel.name)}
        if launch and launch.deterministic:
            row["deterministic"] = True
        row |= {"instructions_per_point": kernel.instructions_per_point, "registers": kernel.registers}
        row |= {"spill_bytes": kernel.stack_bytes, "occupancy": kernel.occupancy}
        if kernel.note:
            row["note"] = kernel.note
        if launch is None:
            others.append(row)
        else:
            yield from _with_traffic(row)
    if stock is None and architecture == 90:
        for recorded in RECORDED_STOCK:
            row = {
                "kernel": f"ms_deformable, {recorded['direction']} (recorded)",
                "implementation": "stock",
                **recorded,
            }
            yield from _with_traffic(row | {"spill_bytes": 0, "occupancy": 0.5})
    yield from others


def _with_traffic(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The rows of one kernel.

    A forward's is there once for each offset, with traffic and bounds.
    """
    from mssts.bench.gpu_model.l1_cache import OURS, STOCK

    workload = encoder()
    issue_us = None
    if row["instructions_per_point"] is not None:
        issues = MULTIPROCESSORS * ISSUES_PER_CYCLE * CLOCK_HZ
        issue_us = row["instructions_per_point"] * workload.samples / issues * 1e6
    if row["direction"] == "backward":
        yield row | {"issue_us": issue_us}
        return
    itemsize = 4 if row["dtype"] == "float32" else 2
    design = STOCK if row["implementation"] == "stock" else OURS
    if row["implementation"] == "mssts" and itemsize == 4:  # the vector kernel: 32 queries a block, 8 KB of staging
        design = replace(OURS, block_items=32, warp_items=4, items_of_load=4, blocks=5, cache_bytes=192 * 1024)
    for offset in OFFSETS:
        yield (
            row
            | {"offset_pixels": offset, "issue_us": issue_us}
            | _bounds(replace(workload, offset_pixels=offset), replace(design, itemsize=itemsize), issue_us)
        )


def encoder() -> DeformWorkload:
    """The call that the rows are of."""
    from mssts.bench.kernels.workloads import WORKLOADS, DeformWorkload

    workload = WORKLOADS[WORKLOAD]
    assert isinstance(workload, DeformWorkload)
    return workload


def _bounds(workload: DeformWorkload, design: Design, issue_us: float | None) -> dict[str, float]:
    from mssts.bench.gpu_model.l1_cache import simulate

    traffic = simulate(workload, design)
    # Tokens and weights of each corner are written to shared memory and read from it: 8 bytes, twice.
    staged = 2 * 8 * 4 * workload.samples if design.takes_inputs else 0
    l1_bytes = traffic.corners + traffic.inputs + traffic.out + staged
    l1_us = l1_bytes / (MULTIPROCESSORS * L1_BYTES_PER_CYCLE * CLOCK_HZ) * 1e6
    l2_us = (traffic.l2_to_l1 + traffic.out) / L2_BYTES_PER_SECOND * 1e6
    return {
        "l2_to_l1_mb": traffic.l2_to_l1 / 1e6, "l2_to_l1_value_mb": traffic.value / 1e6, "l2_us": l2_us,
        "l1_us": l1_us, "bound_us": max(l2_us, l1_us, issue_us or 0.0),
    }  # fmt: skip


def design_rows() -> Iterator[dict[str, Any]]:
    """Traffic and bounds of the kernel's design beside others.

    Instructions are not among the bounds: the others have no code.
    """
    from mssts.bench.gpu_model.l1_cache import BEFORE, OURS, PERSISTENT

    for design in (BEFORE, OURS, PERSISTENT):
        for offset in OFFSETS:
            bounds = _bounds(replace(encoder(), offset_pixels=offset), design, None)
            yield {"design": design.name, "offset_pixels": offset} | bounds


def backward_rows(kernels: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The fp16 backward's reductions.

    With and without sums of coarse levels in shared memory.
    """
    from mssts.bench.gpu_model.reductions import reduction_rows

    built = next(
        row["instructions_per_point"]
        for row in kernels
        if (row["implementation"], row["direction"], row["dtype"]) == ("mssts", "backward", "float16")
        and not row.get("deterministic")
    )
    if built is None:
        return
    issues = MULTIPROCESSORS * ISSUES_PER_CYCLE * CLOCK_HZ
    l1 = MULTIPROCESSORS * L1_BYTES_PER_CYCLE * CLOCK_HZ
    for offset in OFFSETS:
        workload = replace(encoder(), offset_pixels=offset)
        yield from reduction_rows(workload, built, issues, L2_BYTES_PER_SECOND, l1)


def goals(kernels: list[dict[str, Any]], roofline: list[dict[str, Any]]) -> dict[str, Any]:
    """Whether the bounds allow 1,000 frames/s of R50, and 45 µs for the op.

    For frames: the least batch whose bound allows it, by GPU, or None. For the op: by offset, in fp16.
    """
    clips = [row for row in roofline if row["module"] == "clip" and row["preset"].endswith("r50")]
    frames = {
        gpu: min((r["batch"] for r in clips if r["gpu"] == gpu and r["most_frames_per_s"] >= GOAL_FRAMES_PER_SECOND),
                 default=None)
        for gpu in dict.fromkeys(row["gpu"] for row in clips)
    }  # fmt: skip
    op = {
        str(row["offset_pixels"]): row["bound_us"] <= GOAL_OP_US
        for row in kernels
        if row["implementation"] == "mssts" and row["dtype"] == "float16" and "bound_us" in row
    }
    return {"r50_1000_frames_per_s_at_batch": frames, "op_45_us_allowed": op}


def _built_library() -> Path:
    from mssts.kernels import folder

    return (folder() or Path("mssts/lib")) / "libmssts_cuda.so"


def _dtype(name: str) -> str | None:
    names = {"__half": "float16", "__nv_bfloat16": "bfloat16", "float": "float32"}
    return next((dtype for word, dtype in names.items() if f"<{word}" in name), None)


def _print(report: dict[str, Any]) -> None:
    def cell(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    print(f"{'kernel':52}{'dtype':>9}{'px':>5}{'regs':>6}{'spill':>6}{'occup.':>8}{'instr./pt':>11}"
          f"{'L2 MB':>8}{'issue':>8}{'L2':>8}{'L1 µs':>8}{'bound':>8}")  # fmt: skip
    for row in report["kernels"]:
        if row["instructions_per_point"] is None and not row["spill_bytes"]:
            continue
        print(f"{row['kernel'][:51]:52}{row['dtype'] or '–':>9}{cell(row.get('offset_pixels'), 'g'):>5}"
              f"{row['registers']:>6}{row['spill_bytes']:>6}{cell(row['occupancy'], '.0%'):>8}"
              f"{cell(row['instructions_per_point'], '.1f'):>11}{cell(row.get('l2_to_l1_mb'), '.0f'):>8}"
              f"{cell(row.get('issue_us'), '.1f'):>8}{cell(row.get('l2_us'), '.1f'):>8}"
              f"{cell(row.get('l1_us'), '.1f'):>8}{cell(row.get('bound_us'), '.1f'):>8}")  # fmt: skip
    print(f"\n{'backward, levels on chip':26}{'px':>5}{'L2 reductions MB':>18}{'turns':>7}{'instr./pt':>11}"
          f"{'issue':>8}{'L2':>8}{'shared':>8}{'bound µs':>10}")  # fmt: skip
    for row in report["reductions"]:
        print(f"{', '.join(map(str, row['levels_on_chip'])) or 'none':26}{row['offset_pixels']:>5g}"
              f"{row['l2_reductions_mb']:>18.0f}{row['turns']:>7.2f}{row['instructions_per_point']:>11.1f}"
              f"{row['issue_us']:>8.0f}{row['l2_us']:>8.0f}{row['shared_us']:>8.0f}"
              f"{row['bound_us']:>10.0f}")  # fmt: skip
    print(f"\n{'whole clip':14}{'batch':>6}{'GPU':>6}{'GFLOP':>9}{'GB':>7}", end="")
    print(f"{'launches':>10}{'least ms':>10}{'frames/s':>10}")
    for row in report["roofline"]:
        if row["module"] == "clip":
            print(f"{row['preset']:14}{row['batch']:>6}{row['gpu']:>6}{row['gflop']:>9.0f}{row['gbytes']:>7.2f}"
                  f"{row['launches']:>10}{row['least_ms']:>10.2f}{row['most_frames_per_s']:>10.0f}")  # fmt: skip
    print(report["note"])
