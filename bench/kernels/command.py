"""`mssts bench kernels`: times of the two ops (see docs/benchmarks.md)."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mssts.bench.arguments import check_outputs
from mssts.bench.kernels import workloads
from mssts.bench.records import RecordFile
from mssts.errors import MsstsError
from mssts.machine import cpu_count, machine
from mssts.provenance import libraries

HELP = "time, memory and accuracy of the two ops: our kernels beside PyTorch, ONNX Runtime and the stock extensions"

_DTYPES = ("float32", "float16", "bfloat16")
# The names in `kernel_implementations`, which --help must not load.
_IMPLEMENTATIONS = (
    "mssts", "mssts_c", "grid_sample", "grid_sample_stacked", "grid_sample_points_first", "pytorch", "sdpa",
    "onnx_function", "onnx_kernel", "torch_ms_deform_attn", "torch_ms_deform_attn_core", "hugging_face",
    "deformable_detr", "deformable_detr_core", "mmcv", "mmcv_core", "copy",
)  # fmt: skip
# One-minute load average that a machine with nothing else to do stays below.
_QUIET_LOAD = 0.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's arguments."""
    parser.add_argument(
        "--workload", nargs="+", default=list(workloads.DEFAULT), metavar="NAME",
        help=f"{workloads.ALL}, or any of: {', '.join(workloads.WORKLOADS)} (default: {' '.join(workloads.DEFAULT)})",
    )  # fmt: skip
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: %(default)s")
    parser.add_argument("--dtype", nargs="+", choices=_DTYPES, default=["float32"], help="default: float32")
    parser.add_argument(
        "--direction", nargs="+", choices=("forward", "backward"), default=["forward"], help="default: forward"
    )
    parser.add_argument(
        "--impl", nargs="+", metavar="NAME", help=f"any of: {', '.join(_IMPLEMENTATIONS)} (default: all that are here)"
    )
    parser.add_argument("--threads", type=int, nargs="+", help="of the CPU (default: all that this process may use)")
    parser.add_argument(
        "--repeats", type=int, default=20, help="rounds over the implementations (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the inputs (default: %(default)s)")
    parser.add_argument(
        "--no-memory", action="store_true", help="leave out the memory of each call (CPU: saves seconds)"
    )
    parser.add_argument(
        "--warm", action="store_true", help="on a GPU: the same inputs at every call, so that they stay in its L2 cache"
    )
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="file or folder (default: into runs/bench)")


def run(arguments: argparse.Namespace) -> int:
    """Measures, writes the file after each case and prints the table.

    The exit code is 1 if an implementation computes wrongly."""
    chosen = workloads.chosen_workloads(arguments.workload)
    names = _chosen_implementations(arguments.impl, {workload.op for workload in chosen})
    threads = arguments.threads or [cpu_count()]
    for flag, number in (("--repeats", arguments.repeats), *(("--threads", count) for count in threads)):
        if number < 1:
            raise MsstsError(f"{flag} is {number}; expected at least 1")
    check_outputs(arguments)
    if arguments.device == "cuda":
        _check_gpu()
        threads = threads[:1]  # of the host; they do not matter
    cases = [
        (workload, dtype, direction, count)
        for workload in chosen
        for count in threads
        for dtype in arguments.dtype
        for direction in arguments.direction
    ]
    record = RecordFile("kernels", arguments.out)
    report = _measure(cases, arguments.device, names, arguments, record)
    record.close()
    _print(report)
    return 1 if any(row["wrong"] for row in report["rows"]) else 0


def _chosen_implementations(wanted: Sequence[str] | None, ops: set[str]) -> list[str]:
    from mssts.bench.kernels.implementations import IMPLEMENTATIONS

    known = {name: None for found in IMPLEMENTATIONS.values() for name in found}
    unknown = [name for name in wanted or () if name not in known]
    if unknown:
        raise MsstsError(f"--impl {' '.join(unknown)}: there is none; expected any of {', '.join(known)}")
    usable = {name for op in ops for name in IMPLEMENTATIONS[op]}
    if wanted and not usable & set(wanted):
        raise MsstsError(f"--impl {' '.join(wanted)}: none computes {', '.join(sorted(ops))}; expected any of "
                         f"{', '.join(name for name in known if name in usable)}")  # fmt: skip
    return [name for name in known if wanted is None or name in wanted]


def _check_gpu() -> None:
    import torch

    if not torch.cuda.is_available():
        build = f"its build is for CUDA {torch.version.cuda}" if torch.version.cuda else "its build is for CPUs alone"
        raise MsstsError(
            f"--device cuda: PyTorch {torch.__version__} finds no GPU ({build}); run this on a machine with an NVIDIA "
            "GPU, a driver and a CUDA build of PyTorch, or use --device cpu"
        )


def _measure(
    cases: list[tuple[Any, str, str, int]],
    device: str,
    names: list[str],
    arguments: argparse.Namespace,
    record: RecordFile,
) -> dict[str, Any]:
    from tqdm import tqdm

    from mssts.bench.kernels.bandwidth import measure_bandwidth
    from mssts.bench.kernels.memory import peak_extra_memory
    from mssts.bench.kernels.rounds import make_case, measure_case

    rows: list[dict[str, Any]] = []
    absent: list[dict[str, Any]] = []
    load = os.getloadavg()[0]
    cache = "cold" if device == "cuda" and not arguments.warm else "warm"
    bandwidths = {count: measure_bandwidth(device, count) for count in sorted({case[-1] for case in cases})}
    report = {
        "device": _device(device),
        "seed": arguments.seed,
        "repeats": arguments.repeats,
        "bandwidth": list(bandwidths.values()),
        "load_average": load,
        "notes": [],
        "rows": rows,
        "absent": absent,
        "libraries": libraries(),
    }
    with tqdm(cases, unit="case", disable=None) as bar:
        for workload, dtype, direction, count in bar:
            bar.set_description(f"{workload.name} {dtype} {direction}")
            case = make_case(workload, device, dtype, direction, count, arguments.seed, arguments.warm)
            found, missing = measure_case(case, names, arguments.repeats, bar.set_postfix_str)
            if device == "cpu" and not arguments.no_memory:
                bar.set_postfix_str("memory")
                timed = [row["impl"] for row in found if not row["wrong"]]
                memory = peak_extra_memory(workload.name, dtype, direction, count, timed, arguments.seed)
                for row in found:
                    row["peak_extra_memory_mb"] = memory.get(row["impl"])
            for row in found:
                bandwidth = bandwidths[count]["gb_per_s"]
                row["fraction_of_bandwidth"] = row["gb_per_s"] / bandwidth if row["gb_per_s"] else None
                row["cache"] = cache
            rows += found
            absent += missing
            report["notes"] = _notes(rows, device, bandwidths, load)
            record.write(report)
    return report


def _device(device: str) -> dict[str, Any]:
    """Versions, device and active kernels."""
    from mssts.kernels import library

    found = library(device)
    kernels: dict[str, Any] = {"library": None if found.path is None else found.path.name, "reason": found.reason}
    if device == "cpu":
        if not found.reason:
            kernels["isa"] = found.handle.mssts_cpu_isa().decode()
            kernels["threads_of"] = found.handle.mssts_cpu_threads().decode()
        return {"kind": "cpu", "kernels": kernels}
    import torch

    if not found.reason:
        kernels["build"] = found.handle.mssts_cuda_build().decode()
    properties = torch.cuda.get_device_properties(0)
    return {
        "kind": "cuda",
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "l2_mb": properties.L2_cache_size / 1e6,
        "cuda": torch.version.cuda,
        "kernels": kernels,
    }


def _notes(rows: list[dict[str, Any]], device: str, bandwidths: dict[int, dict[str, Any]], load: float) -> list[str]:
    notes = []
    if load > _QUIET_LOAD:
        notes.append(f"The machine was not quiet: its load average was {load:.1f} before this began.")
    bandwidth = next(iter(bandwidths.values()))
    if device == "cuda":
        if any(row["cache"] == "warm" for row in rows):
            notes.append("Every call uses the same inputs, which the L2 cache may hold; times are the device's.")
        else:
            notes.append(
                "Calls go through several sets of inputs, so none is left in the L2 cache; times are the device's."
            )
        return notes
    largest = max((row["bytes"] for row in rows if row["bytes"]), default=0)
    if largest and largest / 1e6 < bandwidth["last_cache_mb"]:
        notes.append(
            f"Every call uses the same inputs. At most {largest / 1e6:.0f} MB are moved, and the last cache has "
            f"{bandwidth['last_cache_mb']:.0f} MB, so they stay there: fractions of the memory bandwidth may exceed 1, "
            "and times_of_one_read_and_write, whose copy is in the same caches, is the figure to judge by."
        )
    if not bandwidth["beyond_caches"]:
        notes.append("Memory was short: the bandwidth's buffers are not larger than the caches, so it is too high.")
    return notes


def _print(report: dict[str, Any]) -> None:
    here, device = machine(), report["device"]
    kernels = device["kernels"]
    what = kernels.get("isa") or kernels.get("build") or f"none: {kernels['reason']}"
    print(f"{device.get('name', here['cpu'])}, {here['cores']} cores; kernels of mssts: {what}")
    for bandwidth in report["bandwidth"]:
        threads = "" if bandwidth["threads"] is None else f" with {bandwidth['threads']} threads"
        print(f"memory bandwidth{threads}: {bandwidth['gb_per_s']:.1f} GB/s (read + written)")
    cases: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in report["rows"]:
        cases.setdefault(_case_of(row), []).append(row)
    for case, rows in cases.items():
        _print_case(case, rows)
        missing = [entry for entry in report["absent"] if _case_of(entry) == case]
        for entry in missing:
            print(f"  {entry['impl']:24} absent: {entry['reason']}")
    for note in report["notes"]:
        print(f"note: {note}")


def _case_of(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["workload"], row["dtype"], row["direction"], row["threads"]


def _print_case(case: tuple[Any, ...], rows: list[dict[str, Any]]) -> None:
    workload, dtype, direction, threads = case
    baseline = next(key for key in rows[0] if key.startswith("speedup_vs_")).removeprefix("speedup_vs_")
    print(f"\n{workload} {dtype} {direction}, {threads} threads (× = times as fast as {baseline})")
    print(
        f"  {'implementation':24} {'ms':>9} {'p5':>9} {'p95':>9} {'×':>7} {'GB/s':>7} {'of mem.':>7} {'of copy':>7} "
        f"{'max error':>9} {'extra MB':>8}"
    )
    for row in rows:
        if row["wrong"]:
            print(f"  {row['impl']:24} wrong: {row['wrong']}")
            continue
        figures = [
            f"{row['ms_median']:9.3f} {row['ms_p5']:9.3f} {row['ms_p95']:9.3f}",
            _cell(row[f"speedup_vs_{baseline}"], "7.2f"),
            _cell(row["gb_per_s"], "7.2f"),
            _cell(row["fraction_of_bandwidth"], "7.3f"),
            _cell(row["times_of_one_read_and_write"], "7.2f"),
            _cell(row["max_error"], "9.1e"),
            _cell(row["peak_extra_memory_mb"], "8.1f"),
        ]
        print(f"  {row['impl']:24} {' '.join(figures)}{'  ' + row['note'] if row['note'] else ''}")


def _cell(value: float | None, form: str) -> str:
    width = int(form.partition(".")[0])
    return "-".rjust(width) if value is None else format(value, form)
