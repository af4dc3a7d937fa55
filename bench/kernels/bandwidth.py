"""Memory bandwidth, measured by copying a buffer far larger than the caches."""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path
from typing import Any

import torch

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}
_SMALLEST = 256 * 2**20
_ROUNDS = 7


def last_level_cache_bytes() -> int:
    """Size of the last cache as Linux says (of the host in a virtual machine), or 0."""
    sizes = [path.read_text().strip() for path in _CACHES.glob("index*/size")] if _CACHES.is_dir() else []
    return max((int(size[:-1]) * _UNITS[size[-1]] for size in sizes if size[-1:] in _UNITS), default=0)


def measure_bandwidth(device: str, threads: int, largest_bytes: int | None = None) -> dict[str, Any]:
    """Bytes read plus written a second by `Tensor.copy_`, the best of several runs.

    Each buffer has four times the bytes of the last cache, or less where memory is short, and then `beyond_caches` is
    false. On a CPU a copy also reads the lines that it writes to; as everywhere (STREAM), this is not counted.
    """
    if device == "cuda":
        caches = torch.cuda.get_device_properties(0).L2_cache_size
        free = torch.cuda.mem_get_info()[0]
    else:
        caches = last_level_cache_bytes()
        free = _available_bytes()
    wanted = max(_SMALLEST, 4 * caches)
    size = min(wanted, free // 6, largest_bytes or wanted) // 8 * 8
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        source = torch.ones(size // 4, dtype=torch.float32, device=device)
        target = torch.zeros_like(source)
        seconds = [_seconds_of_copy(source, target) for _ in range(_ROUNDS + 1)][1:]
    finally:
        torch.set_num_threads(before)
    return {
        "threads": threads if device == "cpu" else None,
        "gb_per_s": 2e-9 * size / min(seconds),
        "gb_per_s_median": 2e-9 * size / statistics.median(seconds),
        "buffer_mb": size / 1e6,
        "last_cache_mb": caches / 1e6,
        "beyond_caches": size >= 2 * caches,
    }


def _seconds_of_copy(source: torch.Tensor, target: torch.Tensor) -> float:
    if source.is_cuda:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        target.copy_(source)
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3
    begin = time.perf_counter()
    target.copy_(source)
    return time.perf_counter() - begin


def _available_bytes() -> int:
    """Memory that can be used without swapping, or half of all if unknown."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
