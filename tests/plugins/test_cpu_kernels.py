"""The CPU kernels through their C ABI, against the ops in float64.

Inputs are random and hard ones.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from support.kernel_cases import (
    DEFORM_CASES,
    FLOATS,
    TEMPORAL_CASES,
    DeformCase,
    TemporalCase,
    deform_call,
    deform_gradients,
    deform_reference,
    guarded,
    misplaced,
    temporal_call,
    temporal_gradients,
)

from mssts import kernels

LIBRARY = kernels.library("cpu")
pytestmark = pytest.mark.skipif(bool(LIBRARY.reason), reason=f"no CPU kernels: {LIBRARY.reason}")
ISAS = ("avx512", "avx2", "portable")
INVALID = 1


def run(function, call, threads=1):
    """Calls one function of the library.

    A failure is an AssertionError with its reason.
    """
    executor = kernels.Executor(threads=threads)
    status = getattr(LIBRARY.handle, f"mssts_cpu_{function}")(ctypes.byref(call), ctypes.byref(executor))
    assert status == 0, LIBRARY.handle.mssts_last_error().decode()


def assert_guards(space):
    """Nothing was written before or after a `guarded` tensor."""
    assert (space[:256] == 0xA5).all() and (space[len(space) - 256 :] == 0xA5).all()


def deform_forward(inputs, threads=1):
    out, space = guarded(inputs.grad_NQC, np.nan)
    run("deform_attn_forward", deform_call(inputs, out=out), threads)
    assert_guards(space)
    return out


def deform_backward(inputs, wanted=("value", "reference", "offsets", "logits"), threads=1):
    like = {
        "value": inputs.value_NSMD,
        "reference": inputs.reference_NQLR,
        "offsets": inputs.offsets_NQMLP2,
        "logits": inputs.logits_NQMLP,
    }
    grads = {name: guarded(like[name], np.nan) for name in wanted}
    tensors = {f"grad_{name}": grad for name, (grad, _) in grads.items()}
    run("deform_attn_backward", deform_call(inputs, grad_out=inputs.grad_NQC, **tensors), threads)
    for _, space in grads.values():
        assert_guards(space)
    return {name: grad for name, (grad, _) in grads.items()}


def temporal_forward(inputs, threads=1):
    out, space = guarded(inputs.grad_BTSC, np.nan)
    run("temporal_attn_forward", temporal_call(inputs, out=out), threads)
    assert_guards(space)
    return out


def temporal_backward(inputs, wanted=("query", "key", "value"), threads=1):
    like = {"query": inputs.query_BTSC, "key": inputs.key_BUSC, "value": inputs.value_BUSC}
    grads = {name: guarded(like[name], np.nan) for name in wanted}
    tensors = {f"grad_{name}": grad for name, (grad, _) in grads.items()}
    run("temporal_attn_backward", temporal_call(inputs, grad_out=inputs.grad_BTSC, **tensors), threads)
    for _, space in grads.values():
        assert_guards(space)
    return {name: grad for name, (grad, _) in grads.items()}


def assert_close(found, exact, dtype, factor=64.0):
    """A tolerance of `factor` roundings of the largest value.

    What is stored in 16 bits is rounded once, from float32.
    """
    if not exact.numel():
        return
    bound = factor if dtype in (torch.float32, torch.float64) else 1.0
    most = bound * torch.finfo(dtype).eps * exact.abs().max().clamp_min(1e-4)
    assert (found.double() - exact).abs().max() <= most


@functools.cache
def exact_deform(case, dtype):
    return deform_gradients(case.inputs(dtype))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("case", DEFORM_CASES, ids=lambda case: case.name)
def test_deformable_attention(case, dtype):
    inputs = case.inputs(dtype)
    exact, exact_grads = exact_deform(case, dtype)
    assert_close(deform_forward(inputs), exact, dtype)
    for name, grad in deform_backward(inputs).items():
        stored = torch.promote_types(dtype, torch.float32) if name == "reference" else dtype
        assert_close(grad, exact_grads[name], stored)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("case", TEMPORAL_CASES, ids=lambda case: case.name)
def test_temporal_attention(case, dtype):
    inputs = case.inputs(dtype)
    exact, exact_grads = temporal_gradients(inputs)
    # The scores' own rounding grows with them, and the exponential passes it on.
    factor = 64 * max(1.0, case.scale**2)
    assert_close(temporal_forward(inputs), exact, dtype, factor)
    for name, grad in temporal_backward(inputs).items():
        assert_close(grad, exact_grads[name], dtype, factor)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_errs_at_most_twice_as_much_as_the_definition_in_float32(dtype):
    inputs = DeformCase("", Q=60, D=32, M=4).inputs(dtype)
    exact = deform_reference(inputs.double())
    upcast = [x.float() if torch.is_tensor(x) and x.is_floating_point() else x for x in inputs.args()]
    theirs = deform_reference(type(inputs)(*upcast[:5], inputs.grad_NQC, inputs.shapes)).to(dtype)
    ours = deform_forward(inputs)
    assert (ours.double() - exact).abs().max() <= 2 * (theirs.double() - exact).abs().max()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("R", [2, 4])
@pytest.mark.parametrize("huge", [1e4, 6e4, 1e30, np.inf, -np.inf])
@pytest.mark.parametrize("Q", [5, 90])
def test_a_point_however_far_away_is_zero(dtype, R, huge, Q):
    inputs = DeformCase("", Q=Q, D=16, R=R).inputs(dtype)
    inputs.offsets_NQMLP2[:, :, :, :, 1] = huge
    assert_close(deform_forward(inputs), deform_reference(inputs.double()), dtype)
    for grad in deform_backward(inputs).values():
        assert grad.isfinite().all()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(("Q", "D"), [(5, 16), (90, 16), (90, 32)])
@pytest.mark.parametrize("where", ["value", "reference", "offsets", "logits"])
def test_a_nan_goes_where_it_belongs_and_nowhere_else(dtype, Q, D, where):
    inputs = DeformCase("", Q=Q, D=D).inputs(dtype)
    if where == "value":
        inputs.value_NSMD[1, -4:, 2, 5] = torch.nan
    elif where == "reference":
        inputs.reference_NQLR[1, 3, 2, 0] = torch.nan
    elif where == "offsets":
        inputs.offsets_NQMLP2[1, 3, 2, 1, 3, 0] = torch.nan
    else:
        inputs.logits_NQMLP[1, 3, 2, 1, 3] = torch.nan
    expected = deform_reference(inputs.double())
    assert expected.isnan().any()
    assert torch.equal(deform_forward(inputs).isnan(), expected.isnan())
    deform_backward(inputs)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_addresses_may_be_of_any_alignment(dtype):
    for case in (DeformCase("", D=32), DeformCase("", D=20, Q=90, P=3)):
        inputs = case.inputs(dtype)
        tensors = [inputs.value_NSMD, inputs.shapes_L2, inputs.reference_NQLR, inputs.offsets_NQMLP2]
        moved = type(inputs)(
            *(misplaced(x) for x in (*tensors, inputs.logits_NQMLP, inputs.grad_NQC)), shapes=inputs.shapes
        )
        assert torch.equal(deform_forward(moved), deform_forward(inputs))
        for name, grad in deform_backward(moved).items():
            assert torch.equal(grad, deform_backward(inputs)[name])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_results_are_the_same_bits_for_any_number_of_threads(dtype):
    inputs = DeformCase("", N=3, Q=200, D=32, M=4, R=4).inputs(dtype)
    frames = TemporalCase("", S=700, U=10).inputs(dtype)
    once = [deform_forward(inputs), *deform_backward(inputs).values(), temporal_forward(frames)]
    once += temporal_backward(frames).values()
    for threads in (2, 5):
        again = [deform_forward(inputs, threads), *deform_backward(inputs, threads=threads).values()]
        again += [temporal_forward(frames, threads), *temporal_backward(frames, threads=threads).values()]
        assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


@pytest.mark.parametrize("wanted", [(), ("value",), ("offsets",), ("logits", "reference"), ("value", "logits")])
def test_only_the_wanted_gradients_are_computed(wanted):
    inputs = DeformCase("", Q=20, D=16).inputs(torch.float32)
    everything = deform_backward(inputs)
    for name, grad in deform_backward(inputs, wanted).items():
        assert torch.equal(grad, everything[name])


def test_shapes_may_be_of_32_bits():
    inputs = DeformCase("").inputs(torch.float32)
    expected = deform_forward(inputs)
    inputs.shapes_L2 = inputs.shapes_L2.int()
    assert torch.equal(deform_forward(inputs), expected)


def test_several_python_threads_may_call_at_once():
    inputs = DeformCase("", Q=150, D=32).inputs(torch.float32)
    expected, wrong = deform_forward(inputs), []

    def work():
        for _ in range(10):
            if not torch.equal(deform_forward(inputs, threads=2), expected):
                wrong.append(1)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_the_callers_threads_run_the_tasks():
    task_type = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)
    run_type = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, task_type, ctypes.c_void_p)
    ran = []

    @run_type
    def backwards(_, tasks, task, argument):
        for index in reversed(range(tasks)):
            task(argument, index)
            ran.append(index)

    inputs = DeformCase("", Q=150, D=32).inputs(torch.float32)
    out = torch.empty_like(inputs.grad_NQC)
    executor = kernels.Executor(threads=3, run=ctypes.cast(backwards, ctypes.c_void_p))
    call = deform_call(inputs, out=out)
    assert LIBRARY.handle.mssts_cpu_deform_attn_forward(ctypes.byref(call), ctypes.byref(executor)) == 0
    assert torch.equal(out, deform_forward(inputs)) and len(ran) > 1


OWN_THREADS_AND_FORK = """
import ctypes, os, sys
import numpy as np
from mssts import kernels
library = kernels.library("cpu").handle
assert library.mssts_cpu_threads() == b"own"
q = np.random.default_rng(0).standard_normal((1, 5, 3000, 64), dtype=np.float32)
strides = (ctypes.c_int64 * 3)(5 * 3000 * 64, 3000 * 64, 64)
def attend(threads):
    out = np.empty_like(q)
    call = kernels.TemporalAttnCall(batch=1, locations=3000, query_frames=5, key_frames=5, heads=4, channels=16,
        query_strides=strides, key_strides=strides, value_strides=strides,
        query=q.ctypes.data, key=q.ctypes.data, value=q.ctypes.data, out=out.ctypes.data)
    executor = kernels.Executor(threads=threads)
    assert library.mssts_cpu_temporal_attn_forward(ctypes.byref(call), ctypes.byref(executor)) == 0
    return out
expected = attend(1)
assert np.array_equal(attend(3), expected)
child = os.fork()
if child == 0:
    os._exit(0 if np.array_equal(attend(3), expected) else 1)
assert os.waitpid(child, 0)[1] == 0
assert np.array_equal(attend(2), expected)
"""


def test_without_openmp_it_has_threads_of_its_own_also_after_a_fork():
    subprocess.run([sys.executable, "-c", OWN_THREADS_AND_FORK], check=True, timeout=60)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": -1}, "batch is -1"),
        ({"heads": 0}, "heads is 0, expected at least 1"),
        ({"coordinates": 3}, "coordinates is 3"),
        ({"tokens": 7}, "expected 7 as in value"),
        ({"dtype": 9}, "dtype is 9"),
        ({"shapes_dtype": 0}, "shapes_dtype is 0"),
        ({"value": None}, "value is NULL"),
        ({"out": None}, "out is NULL"),
        ({"queries": 2**60}, "more elements than 64 bits"),
    ],
)
def test_a_wrong_call_is_refused_with_the_reason(change, message):
    inputs = DeformCase("").inputs(torch.float32)
    out = torch.empty_like(inputs.grad_NQC)
    call = deform_call(inputs, out=out)
    for name, value in change.items():
        setattr(call, name, value)
    assert LIBRARY.handle.mssts_cpu_deform_attn_forward(ctypes.byref(call), None) == INVALID
    reason = LIBRARY.handle.mssts_last_error().decode()
    assert message in reason and "\n" not in reason


def test_an_output_that_is_too_small_is_noticed_by_its_guards():
    inputs = DeformCase("", N=1).inputs(torch.float32)
    out, space = guarded(inputs.grad_NQC[:, :-1].contiguous())
    run("deform_attn_forward", deform_call(inputs, out=out))
    with pytest.raises(AssertionError):
        assert_guards(space)


@pytest.mark.slow
@pytest.mark.parametrize("isa", ISAS[1:])
def test_every_instruction_set(isa):
    """Runs this file's tests again, at most with the instruction set `isa`.

    The machine's best has run already.
    """
    environment = {**os.environ, "MSSTS_CPU_ISA": isa}
    if LIBRARY.handle.mssts_cpu_isa().decode() not in ISAS[: ISAS.index(isa)]:
        pytest.skip(f"{isa} is what the other tests have used, or is not of this machine")
    chosen = "not instruction_set and not sanitizers and not float64"  # whose kernels have no vectors
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", chosen, __file__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-2000:]


SANITIZED = """
import sys
from mssts import kernels
import pytest
assert not kernels.library("cpu").reason, kernels.library("cpu").reason
sys.exit(pytest.main(["-q", "-x", "-p", "no:cacheprovider", "-k", "{chosen}", {file!r}]))
"""


def sanitizer_library():
    compiler = shutil.which("g++") or ""
    found = compiler and subprocess.run(
        [compiler, "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    )
    return found.stdout.strip() if found and os.sep in found.stdout else ""


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("cmake") and sanitizer_library()), reason="needs cmake, g++ and libasan")
def test_sanitizers_find_nothing(tmp_path):
    """Runs the hard cases with a build that checks every access.

    An overrun of one element is found.

    For float32 and without AVX-512: each type and instruction set takes the compiler most of a minute more.
    """
    sources = Path(__file__).resolve().parents[2] / "plugins"
    out, build = tmp_path / "lib", tmp_path / "build"
    options = ["-DMSSTS_PARTS=cpu", f"-DMSSTS_OUTPUT={out}", "-DMSSTS_SANITIZE=address,undefined", "-DMSSTS_AVX512=OFF"]
    options += ["-DCMAKE_CXX_FLAGS_RELEASE=-O1", "-DCMAKE_CXX_FLAGS=-DMSSTS_FLOAT32_ONLY"]
    subprocess.run(["cmake", "-S", sources, "-B", build, *options], check=True, capture_output=True)
    subprocess.run(["cmake", "--build", build, "-j2"], check=True, capture_output=True)
    environment = {
        **os.environ,
        "LD_PRELOAD": sanitizer_library(),
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "halt_on_error=1",
        "MSSTS_LIBRARIES": str(out),
        "OMP_NUM_THREADS": "1",
    }

    chosen = "(attention or far_away or nan_goes or alignment) and torch.float32"
    script = SANITIZED.format(chosen=chosen, file=__file__)
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            env={**environment, "MSSTS_CPU_ISA": isa},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for isa in ISAS[1:]
    ]
    for clean in runs:
        said, _ = clean.communicate(timeout=300)
        assert clean.returncode == 0, said[-4000:]
    overrun = (
        "import ctypes, torch; from support.kernel_cases import *; i = DEFORM_CASES[0].inputs(torch.float32);"
        "import numpy; library = kernels.library('cpu').handle; libc = ctypes.CDLL(None);"
        "libc.malloc.restype = ctypes.c_void_p; call = deform_call(i);"
        "call.out = libc.malloc(ctypes.c_size_t(i.grad_NQC.numel() * 4 - 4));"
        "library.mssts_cpu_deform_attn_forward(ctypes.byref(call), None)"
    )
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    caught = subprocess.run(
        [sys.executable, "-c", overrun], env=environment, capture_output=True, text=True, check=False
    )
    assert caught.returncode != 0 and "ERROR: AddressSanitizer" in caught.stderr
