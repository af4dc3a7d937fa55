"""Quantisation: exclusions, accuracy, and nothing written when AP falls."""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path

import numpy as np
import onnx
import pytest

import mssts.export.average_precision
from mssts.cli import main
from mssts.data.moving_shapes import MovingShapesConfig, write_dataset
from mssts.errors import CheckFailed, MsstsError
from mssts.export.average_precision import ApGate
from mssts.export.quantization.calibration import calibrate, read_clips
from mssts.export.quantization.graph import DEFAULT_EXCLUSIONS, quantizable, quantized, read_exclusions
from mssts.export.quantization.quantizer import QuantizationOptions, existing_quantized, quantize
from mssts.export.reference_runner import ReferenceRunner
from mssts.manifest import Manifest
from mssts.ops.exporting import DOMAIN
from mssts.runners.onnx_runtime import OnnxRuntimeRunner
from mssts.segmenters.local import LocalSegmenter


@pytest.fixture(scope="module")
def engine(exported) -> Path:
    """The folder of an export in fp32."""
    return exported[1]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = MovingShapesConfig(width=80, height=64, length=6)
    return write_dataset(tmp_path_factory.mktemp("shapes") / "data", 3, 5, config, progress=False)


@pytest.fixture(scope="module")
def int8(engine: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("int8") / "engine"
    quantize(engine, data, out, QuantizationOptions(clips=2))
    return out


@pytest.fixture(scope="module")
def fp8(engine: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fp8") / "engine"
    quantize(engine, data, out, QuantizationOptions("fp8", clips=1))
    return out


def dequantized(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {node.output[0]: node for node in model.graph.node if node.op_type == "DequantizeLinear"}


def test_excluded_layers_keep_their_weights_and_take_floats(engine, int8):
    before, after = (onnx.load(folder / "model.onnx") for folder in (engine, int8))
    eight_bits = dequantized(after)
    nodes, excluded = quantizable(before, read_exclusions(DEFAULT_EXCLUSIONS))
    names = {node.name for node in nodes}
    for part in ("reference_points/", "bbox_embed.0.", "decoder.layers.0.deformable.sampling_offsets/",
                 "decoder.layers.0.deformable.attention_weights/", "class_embed.", "controller."):  # fmt: skip
        assert any(part in name for name in excluded), part
        assert not any(part in name for name in names), part
    large = ("linear1", "deformable.sampling_offsets", "deformable.attention_weights")
    assert {"model.backbone.conv1/Conv", *(f"model.encoder.layers.0.{name}/MatMul" for name in large)} <= names
    untouched = {node.name: node for node in before.graph.node}
    for node in after.graph.node:
        if node.name in names:
            assert node.input[0] in eight_bits, node.name
            assert node.input[1] in eight_bits, node.name
        elif node.name in excluded:
            assert list(node.input) == list(untouched[node.name].input)


def test_our_ops_norms_and_residual_sums_take_floats(engine, int8):
    before, after = (onnx.load(folder / "model.onnx") for folder in (engine, int8))
    untouched = {node.name: node for node in before.graph.node}
    kinds = {"LayerNormalization", "Softmax", "TopK", "Sigmoid", "MSDeformAttn", "SplitTemporalAttn"}
    checked = [
        node for node in after.graph.node if node.op_type in kinds or ("encoder" in node.name and "Add" in node.name)
    ]
    assert {node.op_type for node in checked} >= kinds
    for node in checked:
        assert list(node.input) == list(untouched[node.name].input)
    assert [n.name for n in after.graph.node if n.domain == DOMAIN] == [
        n.name for n in before.graph.node if n.domain == DOMAIN
    ]
    assert list(after.functions) == list(before.functions)


def test_maximum_pooling_takes_8_bits_and_gives_the_same_values(int8):
    model = onnx.load(int8 / "model.onnx")
    eight_bits = dequantized(model)
    pools = [node for node in model.graph.node if node.op_type == "MaxPool"]
    assert len(pools) == 1
    before = eight_bits[pools[0].input[0]]
    [after] = [node for node in model.graph.node if pools[0].output[0] in node.input]
    assert after.op_type == "QuantizeLinear"
    assert list(after.input[1:]) == list(before.input[1:])  # a second rounding to the same steps changes nothing


def test_openvino_writes_8_bits_between_the_encoders_products(int8):
    """Bias, ReLU and quantisation are of the products, without a node of their own."""
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    from mssts.runners.openvino_runner import OpenVinoRunner

    with closing(OpenVinoRunner(int8, threads=1)) as runner:
        graph = runner._request((1, 2, 64, 96, 3)).get_compiled_model().get_runtime_model()
    types = {
        node.get_friendly_name(): node.get_rt_info()["outputPrecisions"].astype(str)
        for node in graph.get_ops()
        if "model.encoder.layers.0.linear1/" in node.get_friendly_name()
    }
    assert types and set(types.values()) <= {"i8", "u8"}, types


def test_weights_are_symmetric_and_scaled_per_channel(int8):
    model = onnx.load(int8 / "model.onnx")
    onnx.checker.check_model(model)
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    weight = tensors["model.backbone.conv1.weight_quantized"]
    assert weight.dtype == np.int8
    assert tensors["model.backbone.conv1.weight_scale"].shape == (len(weight),)
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert not tensors[node.input[2]].any(), node.name


@pytest.mark.parametrize("kernels", [False, None])
def test_the_engine_computes_nearly_the_same(engine, int8, data, kernels):
    clip = read_clips(data, Manifest.read(engine), 1)[0]
    before = OnnxRuntimeRunner(engine / "model.onnx", kernels=kernels).infer(*clip)
    after = OnnxRuntimeRunner(int8 / "model.onnx", kernels=kernels).infer(*clip)
    # A step is 1/127 of the greatest value of a tensor: some per cent after a dozen layers of random weights.
    assert np.abs(np.sort(before.scores) - np.sort(after.scores)).max() < 0.1
    assert np.isfinite(after.mask_logits).all()
    assert not np.array_equal(before.scores, after.scores)


def test_the_manifest_tells_what_was_done(engine, int8, data):
    before, after = Manifest.read(engine), Manifest.read(int8)
    assert (before.precision, after.precision) == ("fp32", "int8")
    assert after.provenance["quantized_from"] == before.artefact_sha256
    assert after.runner == "openvino"
    made = after.provenance["quantization"]
    assert made["clips"] == 2
    assert made["quantized"]["Conv"] > 20
    assert "model.decoder.reference_points/Gemm" in made["excluded"]
    assert after.checks["difference"]["compared"] > 0.5
    assert "parity" not in after.checks
    assert after.categories == before.categories


def test_the_same_is_kept_on_request_and_another_is_not(engine, int8, data, tmp_path, capsys):
    same = engine, data, int8
    assert existing_quantized(*same, QuantizationOptions(clips=2)) == Manifest.read(int8)
    (tmp_path / "mine.txt").write_text("*conv1/*\n")
    for options in (
        QuantizationOptions(clips=1),
        QuantizationOptions("fp8", clips=2),
        QuantizationOptions(target="gpu", clips=2),
        QuantizationOptions(clips=2, exclude=tmp_path / "mine.txt"),
    ):
        assert existing_quantized(*same, options) is None
    config = MovingShapesConfig(width=80, height=64, length=6)
    others = write_dataset(tmp_path / "others", 3, 6, config, progress=False)
    assert existing_quantized(engine, others, int8, QuantizationOptions(clips=2)) is None
    assert existing_quantized(*same, QuantizationOptions(clips=2), ApGate(data)) is None  # not scored
    words = ["quantize", str(engine), "--calibrate", str(data), "--clips", "2", "--out"]
    assert main([*words, str(int8), "--reuse"]) == 0
    assert f"kept {int8 / 'model.onnx'}: tiny, int8, for cpu" in capsys.readouterr().out
    shutil.copytree(int8, tmp_path / "edited")
    (tmp_path / "edited" / "model.onnx").write_bytes(b"edited")
    assert existing_quantized(engine, data, tmp_path / "edited", QuantizationOptions(clips=2)) is None


def test_a_file_of_exclusions_is_obeyed(engine, data, tmp_path):
    (tmp_path / "mine.txt").write_text("# all but the backbone\nmodel.[!b]*\n\n*conv1/*  # and these\n")
    words = ["quantize", engine, "--calibrate", data, "--clips", 1, "--exclude", tmp_path / "mine.txt"]
    assert main([str(word) for word in (*words, "--out", tmp_path / "out")]) == 0
    model = onnx.load(tmp_path / "out" / "model.onnx")
    eight_bits = dequantized(model)
    names = {node.name for node in model.graph.node if any(name in eight_bits for name in node.input[1:2])}
    names = {name for name in names if name.endswith("Conv")}
    assert "model.backbone.layer1.0.conv2/Conv" in names
    assert all(name.startswith("model.backbone.") and "conv1/" not in name for name in names)


def test_a_layer_whose_input_is_not_finite_is_named(engine, data):
    model = onnx.load(engine / "model.onnx")
    nodes = quantizable(model, read_exclusions(DEFAULT_EXCLUSIONS))[0]
    ranges = calibrate(
        engine / "model.onnx", {node.input[0] for node in nodes[1:]}, read_clips(data, Manifest.read(engine), 1)
    )
    with pytest.raises(MsstsError, match=f"the input of {nodes[0].name} has no finite range .*; exclude it$"):
        quantized(model, nodes, ranges, "int8", "cpu")


def test_fp8_is_valid_and_computes_nearly_the_same(engine, fp8, data):
    manifest = Manifest.read(fp8)
    assert (manifest.precision, manifest.provenance["quantization"]["target"]) == ("fp8", "gpu")
    assert any("encoder.layers.0.deformable.sampling" in n for n in manifest.provenance["quantization"]["excluded"])
    model = onnx.load(fp8 / "model.onnx")
    onnx.checker.check_model(model)
    tensors = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert tensors[node.input[2]] == onnx.TensorProto.FLOAT8E4M3FN
    clip = read_clips(data, manifest, 1)[0]
    before = OnnxRuntimeRunner(engine / "model.onnx").infer(*clip)
    after = ReferenceRunner(fp8 / "model.onnx").infer(*clip)
    assert np.abs(np.sort(before.scores) - np.sort(after.scores)).max() < 0.1


@pytest.mark.parametrize("number_format", ["int8", "fp8"])
def test_the_parser_of_tensorrt_takes_it(engine, fp8, data, tmp_path, number_format):
    trt = pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed")
    folder = fp8
    if number_format == "int8":
        folder = tmp_path
        quantize(engine, data, folder, QuantizationOptions(target="gpu", clips=1))
    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    parsed = parser.parse_from_file(str(folder / "model.onnx"))
    assert parsed, [str(parser.get_error(i)) for i in range(parser.num_errors)]
    kinds = {network.get_layer(i).type for i in range(network.num_layers)}
    assert {trt.LayerType.QUANTIZE, trt.LayerType.DEQUANTIZE} <= kinds


def test_ap_before_and_after_is_in_the_manifest(engine, data, tmp_path, monkeypatch):
    monkeypatch.setattr(mssts.export.average_precision, "average_precision", fake_ap(0.5, 0.4951))
    manifest = quantize(engine, data, tmp_path / "out", QuantizationOptions(clips=1), ApGate(data))
    assert Manifest.read(tmp_path / "out").checks["ap"] == manifest.checks["ap"] == {"fp32": 0.5, "int8": 0.4951}


def test_the_gate_closes_when_ap_falls(engine, data, tmp_path, monkeypatch):
    monkeypatch.setattr(mssts.export.average_precision, "average_precision", fake_ap(0.5, 0.49))
    with pytest.raises(CheckFailed, match=r"drops from 50.00 to 49.00"):
        quantize(engine, data, tmp_path / "out", QuantizationOptions(clips=1), ApGate(data))
    assert list(tmp_path.iterdir()) == []


def fake_ap(fp32: float, other: float):
    return lambda segmenter, *_: fp32 if segmenter.manifest.precision == "fp32" else other


def test_a_real_evaluation_runs(engine, data):
    with closing(LocalSegmenter(engine, runner="onnxruntime")) as segmenter:
        assert 0 <= mssts.export.average_precision.average_precision(segmenter, data) <= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"exclude": Path("absent.txt")}, "absent.txt: cannot be read as text"),
        ({"number_format": "int4"}, "--format is 'int4'; expected one of: int8, fp8"),
        ({"target": "tpu"}, "--target is 'tpu'"),
        ({"clips": 0}, "--clips is 0"),
    ],
)
def test_wrong_options_are_one_line(engine, data, tmp_path, change, message):
    with pytest.raises(MsstsError, match=message) as error:
        quantize(engine, data, tmp_path / "out", QuantizationOptions(**change))
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_wrong_files_are_one_line(engine, data, int8, tmp_path):
    cases = [
        (engine, tmp_path / "absent.mp4", tmp_path / "out", "absent.mp4: no such file"),
        (int8, data, tmp_path / "out", "in int8; expected an export in fp32"),
        (tmp_path / "absent", data, tmp_path / "out", "absent: no such file or folder"),
        (engine, data, engine, "is the folder of the engine itself"),
    ]
    for source, clips, out, message in cases:
        with pytest.raises(MsstsError, match=message):
            quantize(source, clips, out)
    (tmp_path / "all.txt").write_text("*\n")
    with pytest.raises(MsstsError, match="excludes every layer"):
        quantize(engine, data, tmp_path / "out", QuantizationOptions(exclude=tmp_path / "all.txt"))
    (tmp_path / "two.txt").write_text("model.a model.b\n")
    with pytest.raises(MsstsError, match=r"line 1: 'model\.a model\.b'; expected one glob"):
        quantize(engine, data, tmp_path / "out", QuantizationOptions(exclude=tmp_path / "two.txt"))
    shutil.copytree(engine, tmp_path / "edited")
    (tmp_path / "edited" / "model.onnx").write_bytes(b"edited")
    with pytest.raises(MsstsError, match="not the file that"):
        quantize(tmp_path / "edited", data, tmp_path / "out")
    assert not (tmp_path / "out").exists()
