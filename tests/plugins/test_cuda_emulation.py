"""The CUDA emulation itself: right kernels run, and errors in others are found."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.cuda_backends import (
    Backend,
    GuardedMemory,
)
from support.kernel_cases import TemporalCase

ORDERS = [0, -1, 7]  # of threads and blocks: ascending, descending, random


@pytest.fixture(scope="session")
def checks(emulation: Path) -> Any:
    handle = ctypes.CDLL(str(emulation / "libmssts_emulation_checks.so"))
    handle.mssts_emulation_check.restype = ctypes.c_char_p
    return handle


def run_check(checks: Any, which: int, seed: int = 0) -> tuple[str | None, np.ndarray]:
    numbers, out = np.arange(1, 65, dtype=np.float32), np.zeros(192, np.float32)
    checks.mssts_emulation_order(ctypes.c_int64(seed))
    pointers = (ctypes.c_void_p(x.ctypes.data) for x in (numbers, out))
    reason = checks.mssts_emulation_check(which, *pointers)
    return (None if reason is None else reason.decode()), out


@pytest.mark.parametrize("seed", ORDERS)
def test_the_emulation_runs_right_kernels(checks: Any, seed: int) -> None:
    numbers = np.arange(1, 65, dtype=np.float32)
    reason, out = run_check(checks, 0, seed)
    assert reason == "" and np.array_equal(out[:64], numbers[::-1])
    reason, out = run_check(checks, 3, seed)
    sums = numbers.reshape(8, 8).sum(1).repeat(8)
    assert reason == "" and np.array_equal(out.reshape(64, 3), np.stack([sums, sums, np.full(64, 16 + 31)], 1))
    reason, out = run_check(checks, 4, seed)
    lanes = np.arange(64)
    assert reason == "" and np.array_equal(out[:64], numbers[np.where(lanes % 2 == 0, lanes ^ 2, lanes ^ 4)])
    reason, out = run_check(checks, 13, seed)
    assert reason == "" and np.array_equal(out[:64], np.full(64, 6 * 1 + 4 * 30 + 6 * 100))
    assert run_check(checks, 15, seed)[0] == ""


def test_missing_barriers_show(checks: Any) -> None:
    for seed in ORDERS:
        assert np.isnan(run_check(checks, 1, seed)[1][:64]).any()  # shared memory that was not written yet
    results = [tuple(run_check(checks, 2, seed)[1][:64]) for seed in ORDERS]
    assert len(set(results)) == len(ORDERS)


@pytest.mark.parametrize("seed", ORDERS)
@pytest.mark.parametrize(
    ("which", "words"),
    [
        (5, ("barrier_of_some", "__syncthreads", "a shuffle")),
        (6, ("barriers_at_two_lines", "meets one at")),
        (7, ("shuffle_of_some", "0xffffffff")),
        (8, ("shuffle_with_the_exited", "exit")),
        (9, ("shuffle_beside_its_mask", "does not name the lane")),
        (10, ("shuffles_with_two_masks", "0xffff0001")),
        (11, ("past_a_static_array", "0 bytes past its end of 252")),
        (12, ("dynamic shared memory", "0 bytes past its end of 252")),
        (14, ("cudaErrorInvalidConfiguration",)),
        (16, ("cudaErrorInvalidConfiguration",)),
        (17, ("cudaErrorInvalidConfiguration",)),
        (18, ("far_away", "thread (9, 0, 0)", "an illegal memory access")),
    ],
)
def test_the_emulation_tells_what_a_kernel_does_wrong(
    checks: Any, which: int, words: tuple[str, ...], seed: int
) -> None:
    reason, _ = run_check(checks, which, seed)
    assert reason is not None
    assert all(word in reason for word in words), reason
    assert run_check(checks, 0)[0] == ""  # and goes on


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_the_emulation_multiplies_matrices_as_the_tensor_cores_do(checks: Any, dtype: torch.dtype) -> None:
    """mma.m16n8k8 with the fragments of the PTX ISA.

    Lane `4 group + member` holds row and column below.
    """
    gen = np.random.default_rng(0)
    a, b, c = (gen.integers(-8, 9, size).astype(np.float32) for size in ((16, 8), (8, 8), (16, 8)))
    group, member = np.arange(32)[:, None] // 4, np.arange(32)[:, None] % 4
    i = np.arange(4)[None]
    row_a, column_a = group + 8 * (i // 2), 2 * member + i % 2
    row_b, column_b = 2 * member + i[:, :2], group + 0 * i[:, :2]
    row_c, column_c = group + 8 * (i // 2), 2 * member + i % 2
    assert len(set(zip(row_a.flat, column_a.flat, strict=True))) == 128

    def words(x: np.ndarray) -> np.ndarray:
        return torch.from_numpy(x.copy()).to(dtype).view(torch.int16).numpy().view(np.uint32).copy()

    checks.mssts_emulation_multiply.restype = ctypes.c_char_p
    for seed in ORDERS:
        checks.mssts_emulation_order(ctypes.c_int64(seed))
        own_a, own_b = words(a[row_a, column_a]), words(b[row_b, column_b])
        sums = np.ascontiguousarray(c[row_c, column_c])
        pointers = [ctypes.c_void_p(x.ctypes.data) for x in (own_a, own_b, sums)]
        assert checks.mssts_emulation_multiply(int(dtype == torch.bfloat16), *pointers) == b""
        assert np.array_equal(sums, (a @ b + c)[row_c, column_c])


def test_the_emulation_rounds_as_cuda_does(checks: Any) -> None:
    every_half = np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float32)
    gen = np.random.default_rng(0)
    values = np.concatenate(
        [
            every_half[::7],
            gen.integers(0, 2**32, 10000, dtype=np.uint32).view(np.float32),
            (gen.standard_normal(10000) * np.logspace(-9, 10, 10000)).astype(np.float32),
            np.array([65519.996, 65520, -65520, 2.0**-25, 2.0**-25 * 1.0001, 2.0**31, -(2.0**31)], np.float32),
        ]
    )
    halves = torch.from_numpy(values).half().view(torch.int16).numpy().view(np.uint16)
    bfloats = torch.from_numpy(values).bfloat16()
    words, back, floor = (ctypes.c_uint16 * 2)(), (ctypes.c_float * 2)(), ctypes.c_int()
    for value, half, bfloat in zip(values, halves, bfloats.view(torch.int16).numpy().view(np.uint16), strict=True):
        checks.mssts_emulation_convert(ctypes.c_float(value), words, back, ctypes.byref(floor))
        if np.isnan(value):
            assert np.isnan(back[0]) and np.isnan(back[1]) and floor.value == 0
            continue
        assert (words[0], words[1]) == (half, bfloat)
        assert back[0] == np.uint16(half).view(np.float16)
        assert floor.value == int(np.clip(np.floor(np.float64(value)), -(2**31), 2**31 - 1))


def test_guard_pages_and_patterns_tell_of_what_is_outside() -> None:
    memory = GuardedMemory(torch.zeros(5), 4, copy=True)
    assert memory.pointer % 16 == 4 and torch.equal(memory.tensor(), torch.zeros(5))
    ctypes.c_float.from_address(memory.pointer - 4).value = 1.0
    with pytest.raises(AssertionError, match="outside"):
        memory.tensor()


def test_a_kernel_that_reads_past_a_guarded_tensor_is_told_of(checks: Any) -> None:
    numbers, out = GuardedMemory(torch.zeros(60), 0, copy=True), GuardedMemory(torch.zeros(64), 0, copy=False)
    checks.mssts_emulation_order(ctypes.c_int64(0))
    reason = checks.mssts_emulation_check(0, ctypes.c_void_p(numbers.pointer), ctypes.c_void_p(out.pointer))
    assert b"thread (60, 0, 0): an illegal memory access" in reason


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_too_many_locations_are_named(emulation: Path, direction: str) -> None:
    backend = Backend(ctypes.CDLL(str(emulation / "libmssts_cuda_emulated.so")), GuardedMemory)
    call, kept = backend._temporal_call(TemporalCase("", T=2).inputs(torch.float32), 0)
    kept["out"] = backend.room((64,), torch.float32)
    call.out = call.grad_out = call.grad_query = kept["out"].pointer
    call.locations = 2**45
    with pytest.raises(RuntimeError, match=r"35184372088832 locations of \d+ heads .*; split them"):
        backend.call(f"mssts_cuda_temporal_attn_{direction}", call)
