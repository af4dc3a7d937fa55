"""Resizing inside the engine, against OpenCV's outside."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from mssts.errors import CheckFailed, MsstsError  # noqa: E402
from mssts.export import resizing  # noqa: E402
from mssts.export.options import ExportOptions  # noqa: E402
from mssts.export.resizing import check_resizing, put_resizing_before, resizing_graph  # noqa: E402
from mssts.export.tensorrt.options import BuildOptions  # noqa: E402
from mssts.files import sha256  # noqa: E402
from mssts.manifest import FixedShape, InputRule, Manifest  # noqa: E402
from mssts.runners.tensorrt_library import message_log, tensorrt_module  # noqa: E402
from mssts.segmenters.local import LocalSegmenter  # noqa: E402
from mssts.segmenters.preprocessing import engine_input, input_size  # noqa: E402

RULE = InputRule(112, 256)


def in_onnxruntime(graph):
    import onnxruntime

    session = onnxruntime.InferenceSession(graph.SerializeToString())
    return lambda frames: session.run(None, {"frames": frames})[0]


def in_openvino(graph):
    openvino = pytest.importorskip("openvino")
    core = openvino.Core()
    model = core.read_model(graph.SerializeToString(), b"")
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1})
    return lambda frames: compiled([frames])[0]


@pytest.fixture(scope="module", params=[in_onnxruntime, in_openvino])
def resize(request):
    """The nodes alone, in one of the runtimes."""
    return request.param(resizing_graph(RULE, 18))


# Shrunk, much and a little, to a whole and to no whole part; portrait; grown; grown in one direction by the rounding to
# eights; the long edge's limit; as it is; nearly nothing.
SIZES = [(360, 640), (224, 400), (720, 1280), (640, 360), (113, 201), (60, 90), (111, 200), (118, 119), (120, 600),
         (112, 200), (8, 8), (1, 40)]  # fmt: skip


@pytest.mark.parametrize("size", SIZES)
def test_it_is_within_one_step_of_opencvs(resize, size):
    rng = np.random.default_rng(0)
    noise_THWC = rng.integers(0, 256, (2, *size, 3), np.uint8)
    noise_THWC[1] = np.linspace(0, 255, size[1])[:, None].astype(np.uint8)  # a ramp
    expected, _ = engine_input(noise_THWC, RULE)
    found = resize(noise_THWC[None])
    assert found.shape == expected.shape and found.dtype == np.float32
    assert np.abs(found - expected).max() <= 1
    # OpenCV's bilinear filter computes in whole numbers of 11 bits, and its rounding is off in a tenth of the values.
    grows = expected.shape[2] * expected.shape[3] > size[0] * size[1]
    assert np.abs(found - expected).mean() < (0.2 if grows else 0.02)
    assert (found == np.round(found)).all()


def test_sizes_are_those_of_the_host():
    rng = np.random.default_rng(0)
    for rule in (InputRule(24, 40), InputRule(20, 37), InputRule(16, 64, 4)):
        run = in_onnxruntime(resizing_graph(rule, 18))
        for height, width in rng.integers(1, 90, (60, 2)).tolist():
            found = run(np.zeros((1, 1, height, width, 3), np.uint8))
            assert found.shape[2:4] == input_size(height, width, rule), (rule, height, width)


def test_the_check_of_an_export_sees_a_wrong_filter(monkeypatch):
    assert check_resizing(RULE, 18) == check_resizing(replace(RULE, in_engine=True), 18) <= 1
    right = resizing._weights

    def nearest(nodes, n, m, shrinks, averages):
        return nodes("Round", right(nodes, n, m, shrinks, averages))

    monkeypatch.setattr(resizing, "_weights", nearest)
    with pytest.raises(CheckFailed, match=r"off by .* of 255"):
        check_resizing(RULE, 18)


def test_an_engine_that_resizes_finds_the_same(exported, tmp_path):
    """A clip of any size goes in as it is.

    One of the engine's own size gives the same to the bit.
    """
    _, folder, _ = exported
    manifest = Manifest.read(folder)
    rule = replace(manifest.input, in_engine=True)
    model = onnx.load(folder / "model.onnx")
    put_resizing_before(model, rule)
    onnx.checker.check_model(model)
    onnx.save(model, tmp_path / "model.onnx")
    replace(manifest, input=rule, artefact_sha256=sha256(tmp_path / "model.onnx")).write(tmp_path)
    assert Manifest.read(tmp_path).input.in_engine
    rng = np.random.default_rng(0)
    own = input_size(720, 1280, manifest.input)
    with LocalSegmenter(folder, 1, "onnxruntime") as outside, LocalSegmenter(tmp_path, 1, "onnxruntime") as inside:
        clip = rng.integers(0, 256, (2, *own, 3), np.uint8)
        expected, found = outside.segment(clip), inside.segment(clip)
        assert (found.scores == expected.scores).all() and found.rles == expected.rles
        clip = rng.integers(0, 256, (2, own[0] * 2 + 6, own[1] * 2 + 10, 3), np.uint8)
        expected, found = outside.segment(clip), inside.segment(clip)
        assert found.size == expected.size == clip.shape[1:3]
        np.testing.assert_allclose(found.scores, expected.scores, atol=2e-2)
    with pytest.raises(MsstsError, match="without --resize-inside"):
        LocalSegmenter(tmp_path, 1, "onnxruntime", as_released=True)


def test_tensorrt_rtx_builds_it():
    try:
        trt = tensorrt_module("tensorrt-rtx")
    except MsstsError as error:
        pytest.skip(str(error))
    log = message_log(trt)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    assert parser.parse(resizing_graph(RULE, 18).SerializeToString()), log.last()
    shapes = builder.create_optimization_profile()
    shapes.set_shape("frames", (1, 1, 64, 64, 3), (1, 5, 720, 1280, 3), (1, 5, 1080, 1920, 3))
    config = builder.create_builder_config()
    config.add_optimization_profile(shapes)
    assert builder.build_serialized_network(network, config) is not None, log.last()


def test_a_plan_of_it_takes_the_frames_of_videos(exported):
    manifest = Manifest.read(exported[1])
    manifest = replace(manifest, input=replace(manifest.input, in_engine=True))
    profile = BuildOptions("tensorrt").profile(manifest)
    T = manifest.clip_frames
    assert profile.best == FixedShape(1, T, 720, 1280)
    assert profile.holds(FixedShape(1, T, 1920, 1080)) and profile.holds(FixedShape(1, 1, 64, 64))


def test_one_shape_and_any_size_exclude_each_other():
    with pytest.raises(MsstsError, match="--resize-inside takes frames of any size"):
        ExportOptions(shape=FixedShape(1, 2, 64, 64), resize=True)
