"""Implementations of one op taking turns in one process: times, errors, memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mssts.bench.kernels.accuracy import exact_outputs
from mssts.bench.kernels.cases import Absent, Case, Prepared
from mssts.bench.kernels.implementations import BASELINES, IMPLEMENTATIONS
from mssts.bench.kernels.workloads import Workload
from mssts.errors import first_line

# A turn of an implementation: calls that are not timed, until its own data are in the caches again and other runtimes'
# threads have stopped spinning, then timed ones. One that takes long has no use for the former.
_TURN_SECONDS = {False: 0.02, True: 0.005}  # on a CPU, on a GPU
_LONG_SECONDS = 0.25
_MOST_CALLS, _MOST_UNTIMED = 10, 1000
# What the queue of a GPU is filled with while the calls of a turn are enqueued, in clock cycles (some 10 ms).
_SLEEP_CYCLES = 20_000_000
_MOST_SETS = 64


def input_sets(workload: Workload, itemsize: int, device: str) -> int:
    """The number of input sets: on a GPU enough to leave none in its L2, else one."""
    if device == "cpu":
        return 1
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    return min(_MOST_SETS, 1 + -(-2 * cache // workload.bytes_moved(itemsize, "forward")))


def make_case(
    workload: Workload, device: str, dtype: str, direction: str, threads: int, seed: int, warm: bool = False
) -> Case:
    """The case with its inputs: one set of them if they are to stay in a GPU's cache."""
    case = Case(workload, device, dtype, direction, threads, [])
    sets = 1 if warm else input_sets(workload, case.torch_dtype.itemsize, device)
    case.inputs.extend(workload.make(case.torch_dtype, device, seed + i) for i in range(sets))
    return case


@contextmanager
def settings(case: Case) -> Iterator[None]:
    """PyTorch with the case's threads, on a stream that other runtimes can share."""
    before = torch.get_num_threads()
    torch.set_num_threads(case.threads)
    try:
        if case.device == "cuda":
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                yield
            torch.cuda.synchronize()
        else:
            yield
    finally:
        torch.set_num_threads(before)


def measure_case(
    case: Case, names: Sequence[str], repeats: int, progress: Callable[[str], None]
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Rows of those that ran or went wrong, and the absent ones with their reasons.

    Each is checked against float64 first; one that computes wrongly gets a row with `wrong` and is not timed.
    """
    op = case.workload.op
    rows: dict[str, dict[str, Any]] = {}
    absent: list[dict[str, str]] = []
    ready: dict[str, Prepared] = {}
    with settings(case):
        progress("float64")
        exact = exact_outputs(case.inputs[0], case.direction)
        for name, prepare in IMPLEMENTATIONS[op].items():
            if name not in names:
                continue
            progress(name)
            row = {**_key(case), "impl": name, "note": "", "wrong": "", **_EMPTY}
            try:
                prepared = prepare(case)
                row["note"] = prepared.note
                outputs = prepared.call(0)
                if prepared.checked:
                    errors = exact.errors(outputs)
                    row["wrong"] = exact.complaint(errors)
                    row["max_error"] = _finite(max(error.max for error in errors))
                    row["rms_error"] = _finite(max(error.rms for error in errors))
                del outputs
            except Absent as reason:
                absent.append({**_key(case), "impl": name, "reason": str(reason)})
                continue
            except Exception as error:  # whatever an implementation does, the others are still measured
                row["wrong"] = f"fails: {first_line(error)}"
            rows[name] = row
            if not row["wrong"]:
                ready[name] = prepared
        del exact
        if case.device == "cuda":
            for name, prepared in ready.items():
                rows[name]["peak_extra_memory_mb"] = _cuda_memory(case, prepared, name)
        times = _rounds(case, ready, repeats, progress)
    for name, milliseconds in times.items():
        rows[name].update(_figures(case, milliseconds))
    _relate(rows, op)
    return list(rows.values()), absent


_EMPTY: dict[str, Any] = dict.fromkeys(
    (
        "ms_median", "ms_p5", "ms_p95", "samples", "bytes", "flops", "gb_per_s", "gflop_per_s", "max_error",
        "rms_error", "output_mb", "peak_extra_memory_mb",
    )
)  # fmt: skip


def _key(case: Case) -> dict[str, Any]:
    return {
        "workload": case.workload.name,
        "op": case.workload.op,
        "device": case.device,
        "dtype": case.dtype,
        "direction": case.direction,
        "threads": case.threads,
    }


def _rounds(
    case: Case, ready: dict[str, Prepared], repeats: int, progress: Callable[[str], None]
) -> dict[str, list[float]]:
    on_gpu = case.device == "cuda"
    take_turn = _Turns(len(case.inputs), on_gpu)
    times: dict[str, list[float]] = {name: [] for name in ready}
    expected: dict[str, float] = {}
    for name, prepared in ready.items():  # the first of a kind allocates and compiles
        progress(name)
        expected[name] = min(take_turn(prepared, 0, 1) + take_turn(prepared, 0, 1))
    for round_ in range(repeats):
        for name, prepared in ready.items():
            progress(f"{name} {round_ + 1}/{repeats}")
            seconds = expected[name]
            calls = max(1, int(_TURN_SECONDS[on_gpu] / max(seconds, 1e-7)))
            untimed = 0 if seconds > _LONG_SECONDS else min(calls, _MOST_UNTIMED)
            found = take_turn(prepared, untimed, min(calls, _MOST_CALLS))
            expected[name] = min(seconds, *found)
            times[name] += [1e3 * second for second in found]
    return times


class _Turns:
    """Seconds of calls after `untimed` others: of each, or their mean on a GPU."""

    def __init__(self, sets: int, on_gpu: bool) -> None:
        self._sets, self._on_gpu, self._next = sets, on_gpu, 0

    def __call__(self, prepared: Prepared, untimed: int, timed: int) -> list[float]:
        for _ in range(untimed):
            self._call(prepared)
        return self._events(prepared, timed) if self._on_gpu else self._clock(prepared, timed)

    def _call(self, prepared: Prepared) -> None:
        self._next = (self._next + 1) % self._sets
        prepared.call(self._next)

    def _clock(self, prepared: Prepared, timed: int) -> list[float]:
        seconds = []
        for _ in range(timed):
            start = time.perf_counter()
            self._call(prepared)
            seconds.append(time.perf_counter() - start)
        return seconds

    def _events(self, prepared: Prepared, timed: int) -> list[float]:
        """The mean time of a call on the device.

        It is kept busy until all calls are enqueued. One pair of events is around all of them, for an event of its own
        would add 1 to 2 µs to each."""
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        torch.cuda._sleep(_SLEEP_CYCLES)
        before.record()
        for _ in range(timed):
            self._call(prepared)
        after.record()
        torch.cuda.synchronize()
        return [1e-3 * before.elapsed_time(after) / timed]


def _cuda_memory(case: Case, prepared: Prepared, name: str) -> float | None:
    """Peak of PyTorch's allocator in a call beyond its outputs, None with another."""
    if name.startswith("onnx"):
        return None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    outputs = prepared.call(0)
    torch.cuda.synchronize()
    extra = torch.cuda.max_memory_allocated() - before
    return round((extra - allocated_bytes(outputs, prepared)) / 1e6, 3)


def allocated_bytes(outputs: Sequence[Tensor], prepared: Prepared) -> int:
    """Of the outputs that a call allocated."""
    return sum(out.numel() * out.element_size() for out in outputs) if prepared.allocates else 0


def _figures(case: Case, milliseconds: list[float]) -> dict[str, Any]:
    itemsize = case.torch_dtype.itemsize
    moved = case.workload.bytes_moved(itemsize, case.direction)
    flops = case.workload.flops(case.direction)
    p5, median, p95 = np.percentile(milliseconds, (5, 50, 95)).tolist()
    return {
        "ms_median": median,
        "ms_p5": p5,
        "ms_p95": p95,
        "samples": len(milliseconds),
        "bytes": moved,
        "flops": flops,
        "gb_per_s": moved / median / 1e6,
        "gflop_per_s": flops / median / 1e6,
        "output_mb": case.workload.output_bytes(itemsize, case.direction) / 1e6,
    }


def _relate(rows: dict[str, dict[str, Any]], op: str) -> None:
    """Adds each time's ratios to the op's baseline and to the copy."""
    baseline = BASELINES[op]

    def median(name: str) -> float | None:
        return rows[name]["ms_median"] if name in rows else None

    for row in rows.values():
        mine, theirs, copy = row["ms_median"], median(baseline), median("copy")
        is_op = row["impl"] != "copy"
        row[f"speedup_vs_{baseline}"] = theirs / mine if is_op and mine and theirs else None
        row["times_of_one_read_and_write"] = mine / copy if mine and copy else None
    if "copy" in rows:
        rows["copy"].update(flops=0, gflop_per_s=0.0)


def _finite(value: float) -> float | None:
    """JSON has no NaN."""
    return value if np.isfinite(value) else None
