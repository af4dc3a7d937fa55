"""ONNX Runtime's runner: transfers to a device, and absent providers."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from support.toy_engine import write_toy_engine

from mssts import contract
from mssts.errors import MsstsError
from mssts.files import sha256
from mssts.kernels import Library
from mssts.manifest import Manifest
from mssts.runners import load_runner
from mssts.runners.device_buffers import DeviceBuffers
from mssts.runners.onnx_runtime import CUDA, OnnxRuntimeRunner


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return write_toy_engine(tmp_path_factory.mktemp("engine"))


def feeds(seed: int) -> dict[str, np.ndarray]:
    """One of six shapes, more than are kept."""
    height, width = 32 + 8 * (seed % 3), 40 + 8 * (seed % 2)
    frames = np.random.default_rng(seed).integers(0, 256, (1, 2, height, width, 3), dtype=np.uint8)
    return {contract.FRAMES.name: frames, contract.SIZES.name: np.array([[height, width - 5]], np.int32)}


def test_buffers_of_many_shapes_and_threads_are_not_mixed_up(file):
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    buffers = DeviceBuffers(session, "cpu")
    names = [spec.name for spec in contract.ENGINE_OUTPUTS]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda seed: buffers.run(feeds(seed)), range(40)))
    for seed, found in enumerate(answers):
        for ours, theirs in zip(found, session.run(names, feeds(seed)), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_answers_outlive_the_next_inference(file):
    buffers = DeviceBuffers(onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"]), "cpu")
    first = buffers.run(feeds(0))
    kept = [array.copy() for array in first]
    buffers.run({**feeds(0), contract.FRAMES.name: 255 - feeds(0)[contract.FRAMES.name]})
    for now, then in zip(first, kept, strict=True):
        np.testing.assert_array_equal(now, then)


_GROWTH = """
import sys
from pathlib import Path
import numpy as np
from mssts.runners.onnx_runtime import OnnxRuntimeRunner

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1])

runner = OnnxRuntimeRunner(Path(sys.argv[1]))
clip = np.zeros((1, 5, 360, 640, 3), np.uint8), np.array([[360, 640]], np.int32)
pages = [resident()]
for _ in range(3):
    runner.infer(*clip)
    pages.append(resident())
print(*np.diff(pages))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from Linux's /proc")
def test_the_second_inference_takes_the_memory_of_the_first(exported):
    """Memory is not planned for a shape.

    ONNX Runtime would plan for a shape that it has seen, and hold both the planned block and the first one's.
    """
    program = [sys.executable, "-c", _GROWTH, str(exported[1] / "model.onnx")]
    done = subprocess.run(program, capture_output=True, text=True, check=True)
    first, *later = map(int, done.stdout.split())
    assert sum(later) < first / 4


def test_an_engine_is_refused_without_its_companions_as_they_were(tmp_path):
    path = write_toy_engine(tmp_path)
    (tmp_path / "model.onnx.data").write_bytes(b"weights")
    replace(Manifest.read(tmp_path), companions={"model.onnx.data": sha256(tmp_path / "model.onnx.data")}).write(
        tmp_path
    )
    OnnxRuntimeRunner(path, 1).close()
    (tmp_path / "model.onnx.data").write_bytes(b"others")
    with pytest.raises(MsstsError, match=r"model\.onnx\.data: not the file that manifest\.json describes"):
        OnnxRuntimeRunner(path, 1)
    (tmp_path / "model.onnx.data").unlink()
    with pytest.raises(MsstsError, match=r"model\.onnx\.data: no such file, though manifest\.json beside it names it"):
        OnnxRuntimeRunner(path, 1)


def test_auto_takes_the_runner_that_a_file_was_made_for(tmp_path, monkeypatch):
    path = write_toy_engine(tmp_path)
    monkeypatch.setattr("mssts.runners.library", lambda name: Library(name, None, ""))  # as if OpenVINO had our kernels
    for meant, expected in (("onnxruntime", "onnxruntime"), ("openvino", "openvino"), ("auto", "openvino")):
        replace(Manifest.read(tmp_path), runner=meant).write(tmp_path)
        if expected == "openvino":
            pytest.importorskip("openvino")
        assert load_runner(path, 1).describe()["name"] == expected
    assert load_runner(path, 1, "onnxruntime").describe()["name"] == "onnxruntime"
    # One that does not take such a file, or is not there, is no reason to fail.
    monkeypatch.setattr("mssts.runners.library", lambda name: Library(name, None, "not built"))
    for meant in ("tensorrt", "abacus", "openvino"):
        replace(Manifest.read(tmp_path), runner=meant).write(tmp_path)
        assert load_runner(path, 1).describe()["name"] == "onnxruntime"


@pytest.mark.skipif(CUDA[0] in onnxruntime.get_available_providers(), reason="this ONNX Runtime has CUDA")
def test_without_cuda_it_says_so_and_auto_takes_the_processor(file):
    with pytest.raises(MsstsError, match=r"this ONNX Runtime has no CUDAExecutionProvider; it has .*CPU"):
        load_runner(file, 1, "onnxruntime-cuda")
    assert load_runner(file, 1).describe()["device"] == "cpu"


def test_a_provider_that_falls_back_is_refused(file, monkeypatch):
    """A CUDA provider without a GPU is an error.

    ONNX Runtime with CUDA would make a session of its CPU provider and go on.
    """
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(CUDA))
    real = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda path, options, providers: real(path, options, providers=["CPUExecutionProvider"]),
    )
    with pytest.raises(
        MsstsError, match=r"cannot use CUDAExecutionProvider here: .*--runner onnxruntime takes the CPU"
    ):
        OnnxRuntimeRunner(file, 1, CUDA)
    assert load_runner(file, 1, "auto").describe()["device"] == "cpu"


@pytest.mark.gpu
def test_a_gpu_answers_as_the_processor(file):
    cpu, gpu = OnnxRuntimeRunner(file, 1), OnnxRuntimeRunner(file, 1, CUDA)
    assert gpu.describe()["device"] == "cuda"
    for seed in range(8):
        inputs = tuple(feeds(seed).values())
        for ours, theirs in zip(vars(gpu.infer(*inputs)).values(), vars(cpu.infer(*inputs)).values(), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
