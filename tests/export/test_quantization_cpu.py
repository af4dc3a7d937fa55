"""Quantisation for ONNX Runtime on a processor: its session computes in 8 bits what it can, and nearly the same.

What a fusion is worth shows in the graph that ONNX Runtime runs, so most of this looks at that one.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationMethod
from onnxruntime.quantization.calibrate import TensorsData

from mssts.data.moving_shapes import MovingShapesConfig, write_dataset
from mssts.errors import MsstsError
from mssts.export.quantization.calibration import calibrate, read_clips
from mssts.export.quantization.graph import (
    DEFAULT_EXCLUSIONS,
    calibrated_tensors,
    check,
    quantizable,
    quantized,
    read_exclusions,
)
from mssts.export.quantization.onnxruntime_fusions import eight_bits, own_biases, to_gemms
from mssts.kernels import library
from mssts.manifest import Manifest
from mssts.ops.exporting import DOMAIN
from mssts.runners.onnx_runtime import OnnxRuntimeRunner

TARGET = "cpu-onnxruntime"


@pytest.fixture(scope="module")
def clips(exported, tmp_path_factory: pytest.TempPathFactory) -> list:
    config = MovingShapesConfig(width=80, height=64, length=6)
    data = write_dataset(tmp_path_factory.mktemp("shapes") / "data", 2, 5, config, progress=False)
    return read_clips(data, Manifest.read(exported[1]), 2)


@pytest.fixture(scope="module")
def before(exported) -> Path:
    return exported[1] / "model.onnx"


@pytest.fixture(scope="module")
def layers(before) -> list[onnx.NodeProto]:
    return quantizable(onnx.load(before), read_exclusions(DEFAULT_EXCLUSIONS))[0]


@pytest.fixture(scope="module")
def ranges(before, layers, clips) -> TensorsData:
    return calibrate(before, calibrated_tensors(onnx.load(before), layers, TARGET), clips)


@pytest.fixture(scope="module")
def after(before, layers, ranges, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = onnx.load(before)
    graph = quantized(model, layers, ranges, "int8", TARGET)
    assert model == onnx.load(before)
    check(graph)
    path = tmp_path_factory.mktemp("cpu") / "model.onnx"
    onnx.save(graph, path)
    return path


@pytest.fixture(scope="module")
def session_graph(after, tmp_path_factory: pytest.TempPathFactory) -> onnx.GraphProto:
    """What ONNX Runtime makes of the file."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path_factory.mktemp("optimized") / "model.onnx")
    kernels = library("onnxruntime")
    if kernels.path is not None and not kernels.reason:
        options.register_custom_ops_library(str(kernels.path))
    onnxruntime.InferenceSession(str(after), options, providers=["CPUExecutionProvider"])
    return onnx.load(options.optimized_model_filepath).graph


def test_each_layer_runs_in_8_bits(layers, session_graph):
    kinds = [node.op_type for node in session_graph.node]
    convolutions = sum(node.op_type == "Conv" for node in layers)
    assert kinds.count("QLinearConv") == convolutions > 20
    assert kinds.count("QGemm") == len(layers) - convolutions > 20
    assert kinds.count("QLinearAdd") == 8  # two blocks in each of four stages
    # No weight is dequantised at run time, which is what becomes of a layer that is not fused.
    constants = {tensor.name for tensor in session_graph.initializer}
    assert not [n.name for n in session_graph.node if n.op_type == "DequantizeLinear" and n.input[0] in constants]


def test_between_convolutions_there_is_no_float(session_graph):
    makers = {output: node for node in session_graph.node for output in node.output}
    types = {value.name: value.type.tensor_type.elem_type for value in session_graph.value_info}
    pools = [node for node in session_graph.node if "MaxPool" in node.op_type]
    assert len(pools) == 1
    assert makers[pools[0].input[0]].op_type == "QLinearConv"
    assert types.get(pools[0].output[0], TensorProto.UINT8) == TensorProto.UINT8
    sums = [node for node in session_graph.node if node.op_type == "QLinearAdd"]
    sources = {makers[node.input[i]].op_type for node in sums for i in (0, 3)}
    assert sources <= {"QLinearConv", "QLinearAdd", "NhwcMaxPool", "MaxPool"}


def test_activations_are_unsigned_and_weights_have_seven_bits(after, layers):
    model = onnx.load(after)
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    zeros = {int(tensors[n.input[2]]) for n in model.graph.node if n.op_type == "QuantizeLinear"}
    assert {tensors[n.input[2]].dtype for n in model.graph.node if n.op_type == "QuantizeLinear"} == {np.dtype("uint8")}
    assert 0 in zeros  # after a Relu
    assert len(zeros) > 5
    for layer in layers:
        weight = tensors[f"{layer.input[1]}_quantized"]
        assert weight.dtype == np.int8
        assert np.abs(weight).max() <= 64, "two products of 255 and more than 64 saturate in 16 bits"
        channels = weight.shape[0 if layer.op_type == "Conv" else 1]
        assert tensors[f"{layer.input[1]}_scale"].shape == (channels,)
        assert not tensors[f"{layer.input[1]}_zero_point"].any()


def test_what_is_excluded_and_our_ops_take_floats(before, after):
    untouched = {node.name: node for node in onnx.load(before).graph.node}
    model = onnx.load(after)
    excluded = quantizable(onnx.load(before), read_exclusions(DEFAULT_EXCLUSIONS))[1]
    checked = [
        node
        for node in model.graph.node
        if node.name in excluded or node.domain == DOMAIN or node.op_type in ("LayerNormalization", "Softmax", "TopK")
    ]
    assert len(checked) > len(excluded) > 5
    for node in checked:
        assert list(node.input) == list(untouched[node.name].input)
    assert list(model.functions) == list(onnx.load(before).functions)


@pytest.mark.parametrize("kernels", [False, None])
def test_the_engine_computes_nearly_the_same(before, after, clips, kernels):
    runners = [OnnxRuntimeRunner(path, kernels=kernels) for path in (before, after)]
    for clip in clips:
        reference, found = (runner.infer(*clip) for runner in runners)
        # Some per cent after a dozen layers of random weights, as in test_quantization.py.
        assert np.abs(np.sort(reference.scores) - np.sort(found.scores)).max() < 0.1
        assert found.mask_logits.shape == reference.mask_logits.shape
        assert np.isfinite(found.mask_logits).all()
        assert not np.array_equal(reference.scores, found.scores)


def test_clips_of_other_sizes_and_lengths_run(after):
    runner = OnnxRuntimeRunner(after)
    for frames, height, width in ((2, 64, 96), (7, 48, 64)):
        clip = np.zeros((1, frames, height, width, 3), np.uint8)
        found = runner.infer(clip, np.array([[height, width]], np.int32))
        assert found.boxes.shape[2] == frames


def test_a_tensor_without_a_range_is_one_line(before, layers, ranges):
    model = onnx.load(before)
    inputs = calibrated_tensors(model, layers, "gpu")
    assert inputs == {layer.input[0] for layer in layers} < calibrated_tensors(model, layers, TARGET)
    known = TensorsData(CalibrationMethod.MinMax, {name: found for name, found in ranges.items() if name in inputs})
    with pytest.raises(MsstsError, match=r"has no finite range .*; exclude the layer that makes it") as error:
        quantized(model, layers, known, "int8", TARGET)
    assert "\n" not in str(error.value)


def test_fp8_is_for_gpus_whatever_the_target(before, layers, ranges):
    model = onnx.load(before)
    assert quantized(model, layers, ranges, "fp8", TARGET) == quantized(model, layers, ranges, "fp8", "gpu")


def test_the_shorter_list_of_exclusions_spares_boxes_and_classes(before, layers):
    fewer = DEFAULT_EXCLUSIONS.with_name(f"{TARGET}-fewer.txt")
    nodes, excluded = quantizable(onnx.load(before), read_exclusions(fewer))
    more = {node.name for node in nodes} - {node.name for node in layers}
    assert {node.name for node in layers} < {node.name for node in nodes}
    assert all(any(part in name for part in ("sampling_offsets", "attention_weights", "neighbour")) for name in more)
    for part in ("bbox_embed.", "reference_points/", "class_embed.", "mask_head."):
        assert any(part in name for name in excluded), part


def two_linears() -> onnx.ModelProto:
    """[B, N, 3] → linear, Relu, linear; a third takes what the second gives, which is an output too."""
    weights = np.random.default_rng(0)
    tensors = {
        "first": weights.normal(size=(3, 5)), "first_bias": weights.normal(size=5),
        "second": weights.normal(size=(5, 4)), "second_bias": weights.normal(size=4),
        "third": weights.normal(size=(4, 2)), "late": weights.normal(size=(1, 1, 2)),
    }  # fmt: skip
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["a"], "first/MatMul"),
        helper.make_node("Add", ["first_bias", "a"], ["b"], "first/Add"),
        helper.make_node("Relu", ["b"], ["c"], "Relu"),
        helper.make_node("MatMul", ["c", "second"], ["d"], "second/MatMul"),
        helper.make_node("Add", ["d", "second_bias"], ["e"], "second/Add"),
        helper.make_node("MatMul", ["e", "third"], ["f"], "third/MatMul"),
        helper.make_node("Add", ["f", "late"], ["y"], "third/Add"),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in
              (("x", ["B", "N", 3]), ("e", ["B", "N", 4]), ("y", ["B", "N", 2]))]  # fmt: skip
    constants = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in tensors.items()]
    graph = helper.make_graph(nodes, "linears", values[:1], values[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_linear_layers_as_gemms_compute_the_same():
    model, gemms = two_linears(), two_linears()
    matrices = to_gemms(gemms, {"first/MatMul", "second/MatMul", "third/MatMul"})
    onnx.checker.check_model(gemms)
    assert set(matrices.values()) == {"x", "c", "e"}
    kinds = [node.op_type for node in gemms.graph.node]
    assert (kinds.count("Gemm"), kinds.count("MatMul")) == (3, 0)
    assert kinds.count("Flatten") == 2  # x and e; the Relu stays a matrix
    assert kinds.count("Add") == 1  # that is no bias of a channel each
    x = np.random.default_rng(1).normal(size=(2, 7, 3)).astype(np.float32)
    expected, found = (
        onnxruntime.InferenceSession(each.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})
        for each in (model, gemms)
    )
    for a, b in zip(expected, found, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5)


def test_layers_that_are_not_named_stay():
    model = two_linears()
    assert set(to_gemms(model, {"second/MatMul"}).values()) == {"c"}
    assert [node.op_type for node in model.graph.node if node.name.startswith("first")] == ["MatMul", "Add"]


def test_a_sum_with_a_float_stays_in_floats():
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "conv"),
        helper.make_node("Add", ["a", "a"], ["b"], "both"),
        helper.make_node("Relu", ["b"], ["c"], "relu"),
        helper.make_node("Add", ["c", "x"], ["d"], "mixed"),
        helper.make_node("MaxPool", ["d"], ["y"], "pool", kernel_shape=[2, 2]),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 8, 8]) for name in ("x", "y")]
    weight = numpy_helper.from_array(np.ones((3, 3, 1, 1), np.float32), "w")
    model = helper.make_model(helper.make_graph(nodes, "sums", values[:1], values[1:], [weight]))
    assert eight_bits(model, {"conv"}).tensors == {"a", "c"}
    assert eight_bits(model, {"conv"}).pools == frozenset()
    assert eight_bits(model, set()).tensors == frozenset()


def test_a_bias_that_another_node_takes_is_copied():
    model = two_linears()
    model.graph.node.append(helper.make_node("Add", ["e", "second_bias"], ["z"], "other/Add"))
    matrices = to_gemms(model, {"first/MatMul", "second/MatMul"})
    own_biases(model, {"first/MatMul", "second/MatMul"})
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    first, second = (node for node in model.graph.node if node.op_type == "Gemm")
    assert first.input[2] == "first_bias"
    assert second.input[2] != "second_bias"
    np.testing.assert_array_equal(tensors[second.input[2]], tensors["second_bias"])
    assert set(matrices.values()) == {"x", "c"}
