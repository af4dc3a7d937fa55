"""This process's memory: what it holds, and what its allocator can give back."""

from __future__ import annotations

import contextlib
import ctypes
from pathlib import Path

STATUS = Path("/proc/self/status")  # Linux alone has it


def resident_bytes(field: str) -> int:
    """A field of `STATUS`: `VmRSS` is resident now, `VmHWM` was at most since this program began."""
    lines = STATUS.read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def return_freed_memory() -> None:
    """Gives back what the C library keeps of freed memory: of a file that was read, as much again as its weights."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # elsewhere than with glibc
        ctypes.CDLL(None).malloc_trim(0)
