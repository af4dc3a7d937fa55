"""Processor, cores and memory, of the machine and of this process."""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
import os
import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mssts.errors import first_line

STATUS = Path("/proc/self/status")  # on Linux only
_MAPS = Path("/proc/self/maps")
_GROUPS_OF_THIS_PROCESS = Path("/proc/self/cgroup")
_CONTROL_GROUPS = Path("/sys/fs/cgroup")


def cpu_model() -> str:
    """The processor's marketing name where the system tells it, else its architecture."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def cpu_count() -> int:
    """The number of cores this process may use (a container's share, not the host's).

    A limit of time, as by `docker run --cpus` or Kubernetes, counts as that many cores, rounded up.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *map(math.ceil, _cpu_limits())]))


def _cpu_limits() -> Iterator[float]:
    """The processor time a second that each control group around this process allows.

    In a container the path of the group may be the host's, so folders that are not there are passed over.
    """
    with contextlib.suppress(OSError, ValueError):
        for line in _GROUPS_OF_THIS_PROCESS.read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            root = _CONTROL_GROUPS / "cpu" if controllers else _CONTROL_GROUPS
            group = Path(path.lstrip("/"))
            for folder in (root / group, *(root / parent for parent in group.parents)):
                if limit := _cpu_limit(folder, version=1 if controllers else 2):
                    yield limit


def _cpu_limit(folder: Path, version: int) -> float | None:
    names = ("cpu.max",) if version == 2 else ("cpu.cfs_quota_us", "cpu.cfs_period_us")
    try:
        quota, period = (word for name in names for word in (folder / name).read_text(encoding="utf-8").split())
        return None if quota in ("max", "-1") else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def machine() -> dict[str, Any]:
    """Processor, cores, memory (GiB) and operating system of this machine."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30 if hasattr(os, "sysconf") else None
    return {
        "cpu": cpu_model(),
        "cores": cpu_count(),
        "memory_gib": None if memory is None else round(memory, 1),
        "os": platform.platform(),
        "python": platform.python_version(),
    }


def gpus() -> tuple[list[dict[str, str]], str]:
    """The NVIDIA GPUs by the driver's own tool, and the reason if there are none."""
    keys = ("name", "memory.total", "driver_version", "compute_cap")
    command = ["nvidia-smi", f"--query-gpu={','.join(keys)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except FileNotFoundError:
        return [], "none found (no nvidia-smi, which NVIDIA's driver brings)"
    except (OSError, subprocess.SubprocessError) as error:
        return [], f"none found (nvidia-smi: {first_line(error)})"
    if done.returncode:
        lines = (done.stdout + done.stderr).strip().splitlines() or [f"exit code {done.returncode}"]
        return [], f"none found (nvidia-smi: {lines[0]})"
    rows = [[part.strip() for part in line.split(",")] for line in done.stdout.splitlines() if line.strip()]
    names = ("name", "memory", "driver", "compute_capability")
    return [dict(zip(names, row, strict=False)) for row in rows], "none found"


def resident_bytes(field: str) -> int:
    """A memory field of `STATUS` in bytes: `VmRSS`, or its peak `VmHWM`."""
    lines = STATUS.read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def return_freed_memory() -> None:
    """Returns freed memory to the system.

    The C library keeps it otherwise: of a file that was read, as much again as its weights.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):  # elsewhere than with glibc
        ctypes.CDLL(None).malloc_trim(0)


def return_mapped_pages(file: Path) -> None:
    """Returns the memory of a file that this process has mapped for reading.

    What is read again comes from the file.
    """
    if not _MAPS.exists():
        return
    libc = ctypes.CDLL(None)
    libc.madvise.argtypes = [ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int]
    for line in _MAPS.read_text().splitlines():
        addresses, rights, *_, name = line.split(maxsplit=5)
        if name == str(file.resolve()) and "w" not in rights:
            start, end = (int(address, 16) for address in addresses.split("-"))
            libc.madvise(start, end - start, mmap.MADV_DONTNEED)
