"""The TensorRT runner's errors, shapes and order of calls, with stand-ins.

They stand for TensorRT and CUDA, so no GPU is needed.
"""

from __future__ import annotations

import contextlib
import gc
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("onnx")

from support.plan import write_plan
from support.tensorrt_stand_in import Machine

from mssts import kernels
from mssts.description import describe
from mssts.errors import MsstsError
from mssts.manifest import FixedShape
from mssts.runners import tensorrt_library, tensorrt_runner
from mssts.runners.tensorrt_library import Gpu
from mssts.runners.tensorrt_runner import TensorRtRunner

SIZES = np.array([[64, 64]], np.int32)


def frames(*shape: int) -> np.ndarray:
    return np.zeros((*shape, 3), np.uint8)


def refusal(plan) -> str:
    with pytest.raises(MsstsError) as error:
        TensorRtRunner(plan)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_shape_is_run_recorded_and_replayed(tmp_path, monkeypatch):
    machine = Machine().install(monkeypatch)
    runner = TensorRtRunner(write_plan(tmp_path))
    output = runner.infer(frames(1, 2, 64, 96), SIZES)
    assert output.mask_logits.shape == (1, 4, 2, 16, 24) and output.labels.dtype == np.int32
    runner.infer(frames(1, 2, 64, 96), SIZES)
    assert machine.calls == ["context", "run", "record", "replay"]
    # The arrays that were returned are the caller's.
    output.scores[:] = 5
    assert (runner.infer(frames(1, 2, 64, 96), SIZES).scores == 1).all()
    for width in (64, 128):  # two more shapes: the first is let go
        runner.infer(frames(1, 2, 64, width), SIZES)
    assert machine.calls.count("free") == 6
    runner.close()
    assert machine.calls.count("free") == 18 and machine.calls.count("stream closed") == 4
    del output
    gc.collect()
    assert machine.gpu.graphs == [] and machine.gpu.memory == {}


class Together:
    """Holds up each clip on the GPU until a second is there too."""

    def __init__(self, machine: Machine) -> None:
        self.barrier = threading.Barrier(2)
        self.streams: list[int] = []
        machine.gpu.waits = self

    def __call__(self, stream: int) -> None:
        self.streams.append(stream)
        with contextlib.suppress(threading.BrokenBarrierError):
            self.barrier.wait(20)


def test_two_clips_run_at_once_and_neither_writes_over_the_other(tmp_path, monkeypatch):
    """Each has a context, a stream, buffers and a graph of its own."""
    machine = Machine().install(monkeypatch)
    runner = TensorRtRunner(write_plan(tmp_path))
    assert runner.in_flight == runner.describe()["in_flight"] == 2
    together = Together(machine)

    def infer(value: int):
        return runner.infer(frames(1, 2, 64, 96) + np.uint8(value), SIZES)

    with ThreadPoolExecutor(2) as threads:
        for first in (10, 20, 30):  # in pairs: a first run, then graphs
            pair = list(threads.map(infer, (first, first + 1)))
            assert not together.barrier.broken
            for value, found in zip((first + 1, first + 2), pair, strict=True):
                for array in (found.scores, found.labels, found.boxes, found.mask_logits):
                    assert (array == value).all()
    assert len(set(together.streams)) == 2
    assert [machine.calls.count(call) for call in ("context", "run", "record", "replay")] == [2, 2, 2, 4]
    machine.gpu.waits = lambda stream: None
    infer(1), runner.infer(frames(1, 1, 64, 64), SIZES)  # another shape takes the place of one of them
    assert machine.calls.count("context") == 3 and machine.calls.count("free") == 6
    runner.close()
    del pair, found
    gc.collect()
    assert machine.gpu.memory == {} and machine.gpu.graphs == []


def test_warming_leaves_nothing_to_do_for_two_clips(tmp_path, monkeypatch, caplog):
    machine = Machine().install(monkeypatch)
    runner = TensorRtRunner(write_plan(tmp_path))
    assert runner.warm(FixedShape(1, 2, 64, 96)) > 0
    assert machine.calls == ["context", "context", "run", "record", "run", "record"]
    together = Together(machine)
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda _: runner.infer(frames(1, 2, 64, 96), SIZES), range(2)))
    assert not together.barrier.broken and machine.calls[6:] == ["replay", "replay"]
    machine.gpu.waits = lambda stream: None
    with pytest.raises(MsstsError, match="outside the plan's profile"):
        runner.warm(FixedShape(1, 9, 64, 96))
    runner.close()
    machine.most_contexts = 3  # of which two were made
    runner = TensorRtRunner(write_plan(tmp_path / "short"))
    runner.warm(FixedShape(1, 2, 64, 96))
    assert runner.in_flight == 1 and "runs one clip at a time" in caplog.text


def test_a_third_clip_waits(tmp_path, monkeypatch):
    machine = Machine().install(monkeypatch)
    runner = TensorRtRunner(write_plan(tmp_path))
    inside, most, lock = [0], [0], threading.Lock()

    def wait(stream: int) -> None:
        with lock:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        time.sleep(0.01)
        with lock:
            inside[0] -= 1

    machine.gpu.waits = wait
    with ThreadPoolExecutor(6) as threads:
        widths = [64 + 8 * (i % 3) for i in range(18)]
        found = list(threads.map(lambda width: runner.infer(frames(1, 1, 64, width), SIZES), widths))
    assert [output.mask_logits.shape[-1] for output in found] == [width // 4 for width in widths]
    assert most == [2]
    # Never more than two are kept: 6 buffers and a stream each.
    assert machine.calls.count("free") == 6 * (machine.calls.count("context") - 2)
    runner.close()


@pytest.mark.parametrize("short", ["context", "buffers"])
def test_where_memory_is_short_one_clip_runs_at_a_time(short, tmp_path, monkeypatch, caplog):
    machine = Machine().install(monkeypatch)
    runner = TensorRtRunner(write_plan(tmp_path))
    runner.infer(frames(1, 2, 64, 96), SIZES)
    if short == "context":
        machine.most_contexts = 1
    else:
        machine.gpu.has_memory = False
    entered, go_on = threading.Event(), threading.Event()

    def wait(stream: int) -> None:
        entered.set()
        go_on.wait(20)

    machine.gpu.waits = wait
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(runner.infer, frames(1, 2, 64, 96) + np.uint8(4), SIZES)
        assert entered.wait(20)
        second = threads.submit(runner.infer, frames(1, 2, 64, 96) + np.uint8(6), SIZES)
        while runner.in_flight == 2 and not second.done():
            time.sleep(0.001)
        assert runner.in_flight == 1 and not second.done()
        go_on.set()
        assert (first.result().scores == 5).all() and (second.result().scores == 7).all()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    reason = "no memory for activations" if short == "context" else "out of memory"
    assert "runs one clip at a time" in caplog.text and reason in caplog.text
    runner.close()


def test_where_memory_is_short_an_idle_context_of_another_shape_goes(tmp_path, monkeypatch):
    machine = Machine().install(monkeypatch)
    runner = TensorRtRunner(write_plan(tmp_path))
    runner.infer(frames(1, 2, 64, 96), SIZES)
    refused = iter([None, None])
    create = runner._engine.create_execution_context
    runner._engine.create_execution_context = lambda: next(refused) if machine.calls.count("free") == 0 else create()
    assert runner.infer(frames(1, 1, 64, 64), SIZES).scores.shape == (1, 4)
    assert machine.calls.count("free") == 6 and runner.in_flight == 2


def test_pycuda_alone_is_enough(tmp_path, monkeypatch):
    """It has no CUDA graphs, and needs its context on the calling thread."""
    machine = Machine().install(monkeypatch, cuda="pycuda")
    runner = TensorRtRunner(write_plan(tmp_path))
    with ThreadPoolExecutor(1) as other:
        for _ in range(2):
            found = other.submit(runner.infer, frames(1, 2, 64, 96), SIZES).result()
            assert (found.scores == 1).all() and (found.boxes == 1).all()
    assert machine.calls == ["context", "run", "run"]
    described = runner.describe()
    assert (described["cuda"], described["cuda_graphs"], described["in_flight"]) == ("pycuda", False, 1)
    assert "install cuda-python" in described["cuda_graphs_reason"]
    runner.close()
    assert machine.gpu.memory == {} and machine.pycuda.context_stack == []


@pytest.mark.parametrize("when", ["TensorRT", "instantiation"])
def test_a_capture_that_fails_leaves_a_plain_run(when, tmp_path, monkeypatch, caplog):
    machine = Machine().install(monkeypatch)
    if when == "TensorRT":
        machine.breaks_capture = "layer Loop cannot be captured"
    machine.gpu.instantiates = when == "TensorRT"
    runner = TensorRtRunner(write_plan(tmp_path))
    for _ in range(3):
        assert (runner.infer(frames(1, 2, 64, 96), SIZES).scores == 1).all()
    assert machine.calls == ["context", "run", "record", "run", "run"]
    reason = "layer Loop cannot be captured" if when == "TensorRT" else "out of memory"
    assert reason in runner.describe()["cuda_graphs_reason"] and not runner.describe()["cuda_graphs"]
    assert [record.levelname for record in caplog.records] == ["WARNING"] and reason in caplog.text
    assert machine.gpu.captures == {}
    runner.close()
    assert machine.gpu.graphs == []


@pytest.mark.parametrize("refused", ["frames", "boxes address"])
def test_what_tensorrt_refuses_is_said_and_leaves_no_memory(refused, tmp_path, monkeypatch):
    machine = Machine().install(monkeypatch)
    machine.refuses = (refused,)
    runner = TensorRtRunner(write_plan(tmp_path))
    with pytest.raises(MsstsError, match=f"TensorRT refuses .*: cannot take {refused}"):
        runner.infer(frames(1, 2, 64, 96), SIZES)
    gc.collect()
    assert machine.gpu.memory == {}


@pytest.mark.parametrize("shape", [(2, 2, 64, 64), (1, 5, 64, 64), (1, 2, 32, 64), (1, 2, 64, 136), (2, 64, 64)])
def test_a_shape_outside_the_profile_is_refused(shape, tmp_path, monkeypatch):
    Machine().install(monkeypatch)
    runner = TensorRtRunner(write_plan(tmp_path))
    with pytest.raises(MsstsError, match=r"outside the plan's profile, \[1, 1, 64, 64, 3\] to \[1, 4, 128, 128, 3\]"):
        runner.infer(frames(*shape), np.tile(SIZES, (shape[0], 1)))


def test_what_cannot_be_run_is_said_in_one_line(tmp_path, monkeypatch):
    machine = Machine().install(monkeypatch)
    runner = TensorRtRunner(write_plan(tmp_path))
    with pytest.raises(MsstsError, match=r"sizes are \[3, 2\]; expected \[1, 2\]"):
        runner.infer(frames(1, 2, 64, 64), np.tile(SIZES, (3, 1)))
    machine.gpu.has_memory = False
    with pytest.raises(MsstsError, match=r"failed on frames \[1, 2, 64, 64, 3\]: CUDA: out of memory"):
        runner.infer(frames(1, 2, 64, 64), SIZES)


def test_the_plugin_library_is_loaded_first(tmp_path, monkeypatch):
    plan = write_plan(tmp_path, plugin_sha256="0" * 64)
    machine = Machine().install(monkeypatch)
    machine.needs_plugins = True
    monkeypatch.setattr(kernels, "library", lambda name: kernels.Library(name, tmp_path / "libmssts_tensorrt.so", ""))
    runner = TensorRtRunner(plan)
    assert machine.opened == [str(tmp_path / "libmssts_tensorrt.so")]
    assert runner.describe()["kernels"] == ["MSDeformAttn"]
    monkeypatch.setattr(kernels, "library", lambda name: kernels.Library(name, None, "no such file; `make plugins`"))
    assert "plugin library is missing: no such file; `make plugins`" in refusal(plan)


def test_a_plugin_library_that_registers_nothing_is_refused(tmp_path, monkeypatch):
    plan = write_plan(tmp_path, plugin_sha256="0" * 64)
    Machine().install(monkeypatch)
    path = tmp_path / "libmssts_tensorrt.so"
    monkeypatch.setattr(kernels, "library", lambda name: kernels.Library(name, path, ""))
    empty = SimpleNamespace(
        mssts_register_tensorrt_plugins=lambda registry: 0, mssts_tensorrt_build=lambda: b"TensorRT 10.3.0"
    )
    monkeypatch.setattr(tensorrt_library, "open_library", lambda path: empty)
    message = refusal(plan)
    assert "does not find MSDeformAttn, SplitTemporalAttn" in message and "built for TensorRT 10.3.0" in message


def test_a_plan_must_be_whole_and_its_own(tmp_path, monkeypatch):
    Machine().install(monkeypatch)
    plan = write_plan(tmp_path)
    plan.write_bytes(bytes(100))
    assert "truncated: 100 of 4096 bytes" in refusal(plan)
    plan.write_bytes(bytes(4095) + b"x")
    assert "SHA-256 differs" in refusal(plan) and "build it again" in refusal(plan)
    assert "describes model.plan" in refusal(tmp_path / "model.onnx")
    (tmp_path / "manifest.json").unlink()
    assert "no manifest.json beside it" in refusal(plan)
    plan.unlink()
    assert "no such file" in refusal(plan)


def test_the_tensorrt_must_be_the_one_of_the_plan(tmp_path, monkeypatch):
    Machine().install(monkeypatch, version="11.2.0")
    assert "built by TensorRT 10.14.1, this is 11.2.0" in refusal(write_plan(tmp_path, tensorrt="10.14.1"))
    assert "--version-compatible" in refusal(write_plan(tmp_path))
    TensorRtRunner(write_plan(tmp_path, {"version_compatible": True})).close()


def test_a_plan_with_code_of_the_host_is_allowed_where_it_was_asked_for(tmp_path, monkeypatch):
    Machine().install(monkeypatch).needs_host_code = True
    TensorRtRunner(write_plan(tmp_path, {"version_compatible": True})).close()
    plan = write_plan(tmp_path, {"version_compatible": True}, profile={})
    assert describe(plan)["memory"]["device_bytes"] == 3 << 20
    assert "host code that is not allowed" in refusal(write_plan(tmp_path))


def test_the_gpu_must_be_the_one_of_the_plan(tmp_path, monkeypatch):
    Machine().install(monkeypatch, gpu=Gpu("GPU B", "8.6"))
    assert "was built on GPU A, this is GPU B" in refusal(write_plan(tmp_path))
    assert "was built on GPU A" in refusal(write_plan(tmp_path, {"hardware_compatible": "same"}))
    TensorRtRunner(write_plan(tmp_path, {"hardware_compatible": "ampere+"})).close()
    monkeypatch.setattr(tensorrt_runner, "first_gpu", lambda: None)
    assert "needs an NVIDIA GPU" in refusal(write_plan(tmp_path))


def test_tensorrts_own_reason_is_passed_on(tmp_path, monkeypatch):
    machine = Machine().install(monkeypatch)
    machine.loads = False
    assert "Serialization assertion failed" in refusal(write_plan(tmp_path))


def test_what_is_not_installed_is_named(tmp_path, monkeypatch):
    Machine().install(monkeypatch, cuda="")
    assert "neither cuda-python nor pycuda is installed; `pip install cuda-python" in refusal(write_plan(tmp_path))
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert "tensorrt is not installed" in refusal(write_plan(tmp_path))
