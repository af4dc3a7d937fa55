"""The OpenVINO runner: agreement with PyTorch, with and without our kernels."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("openvino", reason="OpenVINO is not installed")
onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from support.clips import clip  # noqa: E402
from support.contract_graph import OUR_NODE, contract_graph  # noqa: E402
from support.small_model import small  # noqa: E402

from mssts import kernels  # noqa: E402
from mssts.errors import MsstsError  # noqa: E402
from mssts.export.saving import save_model  # noqa: E402
from mssts.kernels import Library  # noqa: E402
from mssts.model.engine import Engine  # noqa: E402
from mssts.runners import best_precision  # noqa: E402
from mssts.runners.agreement import Agreement, out_of_bounds  # noqa: E402
from mssts.runners.base import EngineOutput  # noqa: E402
from mssts.runners.openvino_runner import OpenVinoRunner  # noqa: E402


@pytest.fixture(scope="module")
def engine(exported) -> Engine:
    return Engine(exported[2], small().top_k).eval()


@pytest.fixture(scope="module")
def file(exported):
    return exported[1] / "model.onnx"


def expected(engine: Engine, frames: np.ndarray, sizes: np.ndarray) -> EngineOutput:
    with torch.inference_mode():
        return EngineOutput(*(x.numpy() for x in engine(torch.from_numpy(frames), torch.from_numpy(sizes))))


def kernels_or_skip(file, **options) -> OpenVinoRunner:
    try:
        return OpenVinoRunner(file, threads=1, kernels=True, **options)
    except MsstsError as error:
        pytest.skip(str(error))


# Sizes whose scales are and are not halves of one another: resizing by a whole factor is another path in OpenVINO.
@pytest.mark.parametrize(("size", "valid"), [((96, 128), (96, 128)), ((104, 152), (104, 152)), ((72, 104), (61, 90))])
@pytest.mark.parametrize("kernels", [True, False])
def test_it_computes_what_pytorch_computes(engine, file, size, valid, kernels):
    runner = kernels_or_skip(file) if kernels else OpenVinoRunner(file, threads=1, kernels=False)
    frames, sizes = clip(size, 2)[0], np.array([valid], np.int32)
    found = Agreement.of(expected(engine, frames, sizes), runner.infer(frames, sizes)).summary()
    assert out_of_bounds(found, "fp32") == ""
    assert found["compared"] == 1.0
    described = runner.describe()
    assert described["kernels"] == (["MSDeformAttn", "SplitTemporalAttn"] if kernels else [])
    assert bool(described["kernels_reason"]) is not kernels
    runner.close()


def node_types(runner: OpenVinoRunner, clip_BTHWC: np.ndarray) -> Counter[tuple[str, str]]:
    """How many nodes of each type the compiled graph has, and in what they compute."""
    graph = runner._request(clip_BTHWC.shape).get_compiled_model().get_runtime_model()
    infos = [node.get_rt_info() for node in graph.get_ops()]
    return Counter((info["layerType"].astype(str), info["primitiveType"].astype(str)) for info in infos)


def test_clips_of_a_batch_have_paddings_of_their_own(engine, file):
    runner = kernels_or_skip(file)
    frames = np.concatenate([clip((64, 96), 2)[0], clip((64, 96), 2)[0][:, ::-1]])
    sizes = np.array([[64, 96], [40, 72]], np.int32)
    found = Agreement.of(expected(engine, frames, sizes), runner.infer(frames, sizes)).summary()
    assert out_of_bounds(found, "fp32") == ""
    runner.close()


def test_norms_are_one_node_and_nothing_is_transposed(file):
    """Convolutions take frames and tokens as they lie in memory."""
    runner = kernels_or_skip(file, profile=True)
    frames, sizes = clip((96, 128), 2)
    runner.infer(frames, sizes)
    kinds = Counter(kind for kind, _ in node_types(runner, frames).elements())
    assert kinds["RMS"] == 0 and kinds["MVN"] >= 16
    names = [node.name for node in runner.node_times()]
    moved = [name for name in names if "Transpose" in name or "_abcd_acdb_" in name]
    own = [name for name in moved if name.startswith(("engine/", "model.mask_features"))]
    assert all(name.endswith("_fake") for name in own), own  # which moves nothing
    runner.close()


def test_shapes_come_and_go(engine, file):
    """More shapes than are kept compiled, and the first again."""
    runner = OpenVinoRunner(file, threads=1)
    for size, frames in [((64, 64), 1), ((64, 96), 2), ((72, 64), 3), ((64, 64), 1)]:
        clip_BTHWC, sizes = clip(size, frames)
        found = Agreement.of(expected(engine, clip_BTHWC, sizes), runner.infer(clip_BTHWC, sizes)).summary()
        assert out_of_bounds(found, "fp32") == ""
    runner.close()


def test_bf16_is_nearly_the_same(engine, file):
    try:
        runner = OpenVinoRunner(file, threads=1, precision="bf16")
    except MsstsError as error:
        pytest.skip(str(error))
    frames, sizes = clip((96, 128), 2)
    assert (
        out_of_bounds(Agreement.of(expected(engine, frames, sizes), runner.infer(frames, sizes)).summary(), "bf16")
        == ""
    )
    assert runner.describe()["precision"] == "bf16"
    if runner.describe()["kernels"]:  # in bf16, as what is around them
        found = node_types(runner, frames)
        assert {primitive for kind, primitive in found if kind == "Reference"} == {"ref_bf16"}
    runner.close()


@pytest.mark.parametrize(
    ("able", "reason", "expected", "why"),
    [
        (True, "", "bf16", "has instructions"),
        (False, "", "fp32", "no instructions"),
        (True, "off", "fp32", "our kernels: off"),
    ],
)
def test_the_best_precision_is_what_the_machine_has(monkeypatch, able, reason, expected, why):
    monkeypatch.setattr("mssts.runners.library", lambda name: Library(name, None, reason))
    monkeypatch.setattr("mssts.runners.openvino_runner.has_bf16", lambda: able)
    precision, reason = best_precision()
    assert precision == expected
    assert why in reason


def test_errors_are_one_line_and_name_the_file(file, tmp_path, monkeypatch):
    with pytest.raises(MsstsError, match="no such file"):
        OpenVinoRunner(tmp_path / "absent.onnx")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(MsstsError, match=r"broken\.onnx: OpenVINO cannot load it; export the model again"):
        OpenVinoRunner(broken)
    with pytest.raises(MsstsError, match="fp32 or bf16"):
        OpenVinoRunner(file, precision="int4")
    off = Library("openvino", None, "switched off by an empty MSSTS_LIBRARIES")
    monkeypatch.setattr(kernels, "library", lambda name: off)
    with pytest.raises(MsstsError, match="MSSTS_LIBRARIES"):
        OpenVinoRunner(file, kernels=True)
    assert "MSSTS_LIBRARIES" in OpenVinoRunner(file).describe()["kernels_reason"]


def picky_graph() -> onnx.ModelProto:
    """A graph that fails while it runs, unless the valid size is 64×64.

    The masks' size is a quarter of the valid size, and there are elements for 16×16 only.
    """
    model = contract_graph()
    nodes = [
        helper.make_node("Div", ["sizes", "divisor"], ["quarter"]),
        helper.make_node("Cast", ["quarter"], ["quarter_int64"], to=TensorProto.INT64),
        helper.make_node("Reshape", ["quarter_int64", "two"], ["mask_size"]),
        helper.make_node("Concat", ["instances_and_frames", "mask_size"], ["to_quarter"], axis=0),
    ]
    constants = {
        "divisor": np.array([4], np.int32),
        "two": np.array([2]),
        "instances_and_frames": np.array([1, 4, 2]),
    }
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    index, reshape = next((i, node) for i, node in enumerate(model.graph.node) if node.output[0] == "mask_logits")
    reshape.input[1] = "to_quarter"
    for node in reversed(nodes):
        model.graph.node.insert(index, node)
    return model


@pytest.mark.parametrize("threads", [1, 2])
def test_an_inference_that_fails_is_an_error(tmp_path, threads):
    """On one thread as on several.

    Where OpenVINO 2026.4 has one thread, its `infer` drops every error and leaves the outputs as they were.
    """
    file = tmp_path / "model.onnx"
    onnx.save(picky_graph(), file)
    runner = OpenVinoRunner(file, threads=threads, kernels=False)
    frames = np.ones((1, 2, 64, 64, 3), np.uint8)
    good, bad = np.array([[64, 64]], np.int32), np.array([[40, 72]], np.int32)
    before = runner.infer(frames, good)
    with pytest.raises(MsstsError, match=r"model\.onnx: the engine failed on frames \[1, 2, 64, 64, 3\]: .") as raised:
        runner.infer(frames, bad)
    assert "\n" not in str(raised.value)
    np.testing.assert_equal(vars(runner.infer(frames, good)), vars(before))  # it goes on with the next clip
    runner.close()


def test_sizes_that_our_ops_do_not_take_are_the_reason_that_is_given(tmp_path):
    if reason := kernels.library("openvino").reason:
        pytest.skip(reason)
    model = contract_graph()
    node = next(node for node in model.graph.node if node.name == OUR_NODE)
    attention = helper.make_node("SplitTemporalAttn", [node.input[0]] * 3, node.output, domain=node.domain, heads=3)
    node.CopyFrom(attention)
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(MsstsError, match=r"again \(mssts: .* C = 16 channels, expected a multiple of heads = 3\)$"):
        OpenVinoRunner(tmp_path / "model.onnx", threads=1)


def test_weights_beside_the_file_leave_memory_and_answers_stay(file, tmp_path):
    """Mapped memory is given back.

    OpenVINO computes with its own copies.
    """
    apart = tmp_path / "model.onnx"
    save_model(onnx.load(file), apart, largest=0)
    frames, sizes = clip((96, 128), 2)
    plain, mapped = OpenVinoRunner(file, threads=1), OpenVinoRunner(apart, threads=1)
    for _ in range(2):
        np.testing.assert_equal(vars(mapped.infer(frames, sizes)), vars(plain.infer(frames, sizes)))
    if sys.platform == "linux" and mapped.describe()["kernels"]:  # without our kernels the file is read, not mapped
        data = tmp_path / "model.onnx.data"
        assert str(data) in Path("/proc/self/maps").read_text()
        assert _resident(data) < data.stat().st_size / 2
    plain.close()
    mapped.close()


def _resident(path: Path) -> int:
    """Bytes of a mapped file that are in this process's memory."""
    total, counted = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            counted = words[-1] == str(path)
        elif words[0] == "Rss:" and counted:
            total += int(words[1]) * 1024
    return total


_CLOSE_AND_GET_A_SIGNAL = """
import faulthandler, os, signal, sys
from mssts.runners.openvino_runner import OpenVinoRunner
faulthandler.enable()
first, second = (OpenVinoRunner(sys.argv[1], threads=1) for _ in range(2))
first.close()
second.close()
del first, second
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGUSR1)
"""


def test_signals_are_handled_after_runners_are_closed(file):
    """A process with several runners survives a signal.

    OpenVINO 2026.4 changes the stack that signals are handled on, on processors with AMX, and leaves one that is freed
    where two of its cores go in the order they came: the next signal then kills the process.
    """
    done = subprocess.run([sys.executable, "-c", _CLOSE_AND_GET_A_SIGNAL, str(file)], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "handled"), done.stderr[-2000:]
