"""Masks encoded by the CUDA kernels, against the processor's, to the byte."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support.cuda_backends import Backend, Memory

from mssts import kernels
from mssts.errors import MsstsError
from mssts.manifest import FixedShape
from mssts.runners import device_logits
from mssts.runners.base import DeviceOutput, EngineOutput, Runner
from mssts.runners.device_logits import DeviceLogits
from mssts.runners.fixed_shape import FixedShapeRunner
from mssts.runners.tensorrt_runner import TensorRtRunner
from mssts.runners.torch_runner import device_logits as torch_logits
from mssts.segmenters.postprocessing import encode_masks, to_instances

Size = tuple[int, int]
CELL = 4
# Valid part of the engine's frame, and the frame: enlarged, shrunk, as it is, no whole parts, one pixel, one logit.
SIZES = [((96, 160), (180, 320)), ((64, 96), (17, 23)), ((60, 92), (60, 92)), ((50, 74), (111, 201)),
         ((37, 91), (1, 1)), ((3, 2), (40, 70)), ((8, 80), (130, 3)), ((21, 33), (300, 299))]  # fmt: skip


class Scratch:
    """Memory for the kernels whose surroundings are checked at each reading."""

    stream = 0

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.rooms: dict[str, Memory] = {}
        self.sizes: list[tuple[str, int]] = []

    def room(self, name: str, size: int) -> int:
        self.sizes.append((name, size))
        self.rooms[name] = self.backend.room((size,), torch.uint8)
        return self.rooms[name].pointer

    def read(self, address: int, size: int) -> bytes:
        found = {memory.pointer: memory.tensor() for memory in self.rooms.values()}
        return found[address][:size].numpy().tobytes()


def use(handle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts a library in place of the installed one."""
    calls = ctypes.POINTER(kernels.MaskRleCall)
    handle.mssts_cuda_mask_rle.argtypes = [calls, ctypes.c_void_p]
    handle.mssts_cuda_mask_rle_workspace.argtypes = [calls]
    handle.mssts_cuda_mask_rle_workspace.restype = ctypes.c_int64
    handle.mssts_last_error.restype = ctypes.c_char_p
    monkeypatch.setattr(kernels, "library", lambda name: kernels.Library(name, None, "", handle))


@pytest.fixture
def kernel(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> Backend:
    """The backend, whose library is used."""
    use(backend.handle, monkeypatch)
    return backend


def logits_of(backend: Backend, logits_KThw: np.ndarray, scratch: Scratch | None = None) -> DeviceLogits:
    """Logits of one clip where the kernels may read them."""
    scratch = scratch or Scratch(backend)
    scratch.rooms["logits"] = backend.place(torch.from_numpy(logits_KThw))
    return DeviceLogits.dense(scratch.rooms["logits"].pointer, (1, *logits_KThw.shape), scratch)


def noise(rng: np.random.Generator, valid: Size, masks: tuple[int, int] = (2, 2)) -> np.ndarray:
    """Logits with areas, holes and specks, some behind the valid part."""
    found = rng.normal(size=(*masks, *(-(-side // 8) * 2 for side in valid)))
    for k in range(masks[0]):
        for _ in range(2 * k):
            for axis in (-2, -1):
                found[k] += np.roll(found[k], 1, axis)
    return (found - found.mean()).astype(np.float32)


def check(kernel: Backend, logits_KThw: np.ndarray, valid: Size, size: Size) -> int:
    """Bytes of the masks, after a comparison with the processor's."""
    with np.errstate(invalid="ignore"):
        expected = encode_masks(logits_KThw, valid, size)
    K = len(logits_KThw)
    assert logits_of(kernel, logits_KThw).encode(0, range(K), valid, size, CELL) == expected
    return sum(len(rle or b"") for rles in expected for rle in rles)


@pytest.mark.parametrize(("valid", "size"), SIZES)
@pytest.mark.usefixtures("any_order")
def test_masks_are_those_of_the_processor(kernel: Backend, valid: Size, size: Size) -> None:
    assert check(kernel, noise(np.random.default_rng(0), valid), valid, size) > 0


@pytest.mark.parametrize("seed", range(4))
def test_values_that_are_no_numbers_are_those_of_the_processor(kernel: Backend, seed: int) -> None:
    """NaN, infinities, zeros, the largest and the smallest numbers."""
    rng = np.random.default_rng(seed)
    for valid, size in (SIZES[0], SIZES[2], SIZES[3]):
        logits_KThw = noise(rng, valid)
        for value in (np.nan, np.inf, -np.inf, 0.0, -0.0, 3e38, 1e-45):
            logits_KThw[rng.random(logits_KThw.shape) < 0.03] = value
        logits_KThw[0, 0] = np.round(logits_KThw[0, 0])
        assert check(kernel, logits_KThw, valid, size) > 0


def test_the_fewest_and_the_most_runs(kernel: Backend) -> None:
    h, w = 41, 56  # an odd number: no run leads from one column to the next
    checkers = np.where(np.indices((h, w)).sum(0) % 2 == 0, 1.0, -1.0)
    kinds = [np.full((h, w), -1.0), np.full((h, w), 1.0), checkers, -checkers, np.full((h, w), np.nan)]
    logits_KThw = np.stack(kinds).astype(np.float32)[:, None]
    valid = (CELL * h, CELL * w)
    check(kernel, logits_KThw, valid, (h, w))  # a run for each pixel
    check(kernel, logits_KThw, valid, (3 * h + 1, 3 * w + 1))
    rles = logits_of(kernel, logits_KThw).encode(0, range(5), valid, (h, w), CELL)
    assert [len(rle or b"") for (rle,) in rles] == [0, 4, h * w + 1, h * w, 0] and rles[0] == (None,)


def test_a_served_size(kernel: Backend) -> None:
    check(kernel, noise(np.random.default_rng(1), (360, 640), (2, 1)), (360, 640), (720, 1280))


def test_texts_that_do_not_fit_are_left_out_whole_and_counted(kernel: Backend) -> None:
    valid, size = SIZES[3]
    logits_KThw, scratch = noise(np.random.default_rng(2), valid, (3, 2)), Scratch(kernel)
    expected = [rle or b"" for rles in encode_masks(logits_KThw, valid, size) for rle in rles]
    ends = np.cumsum([len(rle) for rle in expected])
    call = logits_of(kernel, logits_KThw, scratch)._call(0, valid, size, CELL)
    call.instances, call.frames, call.capacity = 3, 2, int(ends[2]) + 1
    call.workspace = scratch.room("workspace", kernel.handle.mssts_cuda_mask_rle_workspace(call))
    call.ends, call.text = scratch.room("ends", 48), scratch.room("text", call.capacity)
    assert kernel.handle.mssts_cuda_mask_rle(call, 0) == kernels.OK
    assert np.array_equal(np.frombuffer(scratch.read(call.ends, 48), np.int64), ends)
    assert scratch.read(call.text, call.capacity) == b"".join(expected[:3]) + b"\xfb"


def test_memory_is_bounded_and_grows_where_it_must(kernel: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    valid, size = SIZES[2]
    logits_KThw = noise(np.random.default_rng(3), valid, (3, 3))
    expected = encode_masks(logits_KThw, valid, size)
    monkeypatch.setattr(device_logits, "_USUAL_TEXT", 1)
    for masks in (1, 2, 4, 7):
        most = masks * size[0] * size[1] // 8 + 1
        monkeypatch.setattr(device_logits, "_MOST_WORKSPACE", most)
        scratch = Scratch(kernel)
        assert logits_of(kernel, logits_KThw, scratch).encode(0, range(3), valid, size, CELL) == expected
        assert max(n for name, n in scratch.sizes if name == "workspace") <= most + 16 * masks


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"width": 0}, "width is 0, expected at least 1"),
        ({"valid_height": 200}, "15 x 23 logits do not cover a valid part of 200 x 92 pixels"),
        ({"height": 2**16, "width": 2**15}, "65536 x 32768 pixels are more than the CUDA kernels count"),
        ({"ends": 0}, "ends is NULL"),
        ({"workspace": 4}, "workspace is not aligned to 16 bytes"),
    ],
)
def test_a_call_that_cannot_be_is_refused(kernel: Backend, change: dict[str, int], words: str) -> None:
    scratch = Scratch(kernel)
    call = logits_of(kernel, np.ones((1, 1, 15, 23), np.float32), scratch)._call(0, (60, 92), (60, 92), CELL)
    call.instances = call.frames = 1
    call.workspace, call.ends = scratch.room("workspace", 4096), scratch.room("ends", 8)
    for name, value in change.items():
        setattr(call, name, value)
    assert kernel.handle.mssts_cuda_mask_rle(call, 0) in (kernels.INVALID, kernels.UNSUPPORTED)
    assert words in kernel.handle.mssts_last_error().decode()
    assert "ends" in change or "workspace" in change or kernel.handle.mssts_cuda_mask_rle_workspace(call) == -1


class Fixed(Runner):
    """A runner whose output is given."""

    def __init__(self, output: EngineOutput | DeviceOutput) -> None:
        self.output = output

    @contextmanager
    def inference(self, frames_BTHWC: np.ndarray, sizes_B2: np.ndarray) -> Iterator[EngineOutput | DeviceOutput]:
        yield self.output


def test_instances_are_the_same_from_either_place(kernel: Backend) -> None:
    """Two clips of a padded shape, with fewer frames, some below the threshold."""
    rng = np.random.default_rng(4)
    logits = noise(rng, (64, 96), (6, 3)).reshape(2, 3, 3, 16, 24)
    small = (np.array([[0.9, 0.8, 0.1], [0.7, 0.6, 0.5]], np.float32), np.zeros((2, 3), np.int32))
    boxes = rng.random((2, 3, 3, 4)).astype(np.float32)
    scratch = Scratch(kernel)
    scratch.rooms["logits"] = kernel.place(torch.from_numpy(logits))
    there = DeviceLogits.dense(scratch.rooms["logits"].pointer, logits.shape, scratch)
    frames, sizes_B2 = np.zeros((2, 2, 56, 80, 3), np.uint8), np.array([[56, 80], [50, 71]], np.int32)
    found = []
    for output in (EngineOutput(*small, boxes, logits), DeviceOutput(*small, boxes, there)):
        with FixedShapeRunner(Fixed(output), FixedShape(2, 3, 64, 96), Path("plan")).inference(frames, sizes_B2) as cut:
            assert cut.mask_logits.shape == (2, 3, 2, 14, 20)
            found.append([to_instances(cut, sizes_B2, (121, 97), 0.2, clip) for clip in (0, 1)])
    assert [instances.rles for instances in found[0]] == [instances.rles for instances in found[1]]
    assert [len(instances) for instances in found[1]] == [2, 3]


def test_tensors_of_pytorch_are_encoded_where_they_are(kernel: Backend) -> None:
    valid, size = SIZES[0]
    logits_KThw = noise(np.random.default_rng(5), valid)
    tensor = torch.from_numpy(logits_KThw)[None].to("cpu" if kernel.emulated else "cuda")
    assert torch_logits(tensor, 0).encode(0, range(2), valid, size, CELL) == encode_masks(logits_KThw, valid, size)


def stand_ins(monkeypatch: pytest.MonkeyPatch, folder: Path, cuda: str) -> tuple[Any, Path]:
    """A machine with TensorRT and CUDA that are none, and a plan for it."""
    # Not at the top: they need packages that a bare machine with a GPU does not have for the other tests.
    from support.plan import write_plan
    from support.tensorrt_stand_in import Machine

    return Machine().install(monkeypatch, cuda=cuda), write_plan(folder)


@pytest.mark.parametrize("cuda", ["cuda-python", "pycuda"])
def test_a_plan_leaves_its_logits_on_the_gpu(
    cuda: str, emulation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT and CUDA are stand-ins, and the encoding is real."""
    machine, plan = stand_ins(monkeypatch, tmp_path, cuda)
    runner = TensorRtRunner(plan)
    use(ctypes.CDLL(str(emulation / "libmssts_cuda_emulated.so")), monkeypatch)
    frames, sizes_B2 = np.zeros((1, 2, 64, 96, 3), np.uint8), np.array([[64, 96]], np.int32)
    expected = to_instances(runner.infer(frames, sizes_B2), sizes_B2, (33, 77))
    for _ in range(2):
        with runner.inference(frames, sizes_B2) as output:
            assert isinstance(output, DeviceOutput)
            found = to_instances(output, sizes_B2, (33, 77))
        assert found.rles == expected.rles and found.masks().all() and len(found) == 4
    machine.gpu.has_memory = False  # more of it is only asked for by larger frames
    with runner.inference(frames, sizes_B2) as output:
        assert to_instances(output, sizes_B2, (33, 77)).rles == expected.rles
    with pytest.raises(MsstsError, match="out of memory"), runner.inference(frames, sizes_B2) as output:
        to_instances(output, sizes_B2, (2000, 2000))
    runner.close()
    del runner, output
    gc.collect()
    assert machine.gpu.memory == {}


def test_without_the_library_masks_are_encoded_on_the_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = TensorRtRunner(stand_ins(monkeypatch, tmp_path, "cuda-python")[1])
    monkeypatch.setattr(kernels, "library", lambda name: SimpleNamespace(reason="no GPU"))
    with runner.inference(np.zeros((1, 2, 64, 96, 3), np.uint8), np.array([[64, 96]], np.int32)) as output:
        assert isinstance(output, EngineOutput)
