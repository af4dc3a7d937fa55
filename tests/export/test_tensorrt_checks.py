"""Checks of made-up TensorRT networks, and of a plan's parity."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from support.contract_graph import CONVOLUTION, OUR_NODE, OUTPUTS, SHAPE, parity_report, write_export  # noqa: E402

from mssts.errors import CheckFailed  # noqa: E402
from mssts.export.parity import cases, compare  # noqa: E402
from mssts.export.tensorrt.network import check_plugins, check_precision, check_report  # noqa: E402
from mssts.export.tensorrt.options import Profile  # noqa: E402
from mssts.export.tensorrt.parity import fitting_cases  # noqa: E402
from mssts.manifest import FixedShape, Manifest  # noqa: E402
from mssts.runners.base import EngineOutput  # noqa: E402


@pytest.fixture
def export_dir(tmp_path):
    return write_export(tmp_path / "export")


TRT = SimpleNamespace(
    LayerType=SimpleNamespace(PLUGIN_V3=1, CONVOLUTION=2, MATRIX_MULTIPLY=3),
    DataType=SimpleNamespace(FLOAT="DataType.FLOAT", HALF="DataType.HALF", BF16="DataType.BF16"),
)


def layer(kind: int, name: str, dtype: str = "DataType.HALF", metadata: str = ""):
    return SimpleNamespace(type=kind, name=name, metadata=metadata, get_input=lambda _: SimpleNamespace(dtype=dtype))


def test_every_node_of_ours_must_be_a_plugin():
    nodes = ["a/MSDeformAttn", "a/MSDeformAttn_2"]
    both = [layer(1, nodes[0]), layer(1, "renamed", metadata=f"[ONNX Layer: {nodes[1]}]")]
    check_plugins(TRT, both, nodes, plugins=True)
    check_plugins(TRT, [layer(2, "a/Conv")], nodes, plugins=False)
    with pytest.raises(CheckFailed, match=r"1 of 2 nodes .* such as a/MSDeformAttn_2"):
        check_plugins(TRT, both[:1], nodes, plugins=True)
    with pytest.raises(CheckFailed, match="3 plugins for 2 of our nodes"):
        check_plugins(TRT, [*both, layer(1, "another")], nodes, plugins=True)
    with pytest.raises(CheckFailed, match="no plugins were asked for"):
        check_plugins(TRT, both, nodes, plugins=False)


def test_convolutions_and_products_must_have_the_precision():
    good = [
        layer(2, "model.backbone.conv1/Conv"),
        layer(3, "model.encoder.layers.0.linear1/MatMul"),
        layer(3, "model.class_embed.0/MatMul", "DataType.FLOAT"),  # kept in fp32
        layer(3, "node_of_s00", "DataType.FLOAT"),  # of a function body
    ]
    assert check_precision(TRT, good, "fp16") == 2
    with pytest.raises(CheckFailed, match=r"1 of 3 .* not in fp16, such as model.decoder/MatMul \(FLOAT\)"):
        check_precision(TRT, [*good, layer(3, "model.decoder/MatMul", "DataType.FLOAT")], "fp16")
    with pytest.raises(CheckFailed, match="2 of 2"):
        check_precision(TRT, good, "bf16")


@pytest.mark.parametrize(
    ("precision", "datatype", "holds"),
    [("fp16", "Row major linear FP16 format", True), ("fp16", "Half", True), ("fp16", "Float", False),
     ("fp32", "Float", True), ("fp32", "BFloat16", False), ("bf16", "BF16", True)],
)  # fmt: skip
def test_built_layers_of_another_precision_are_named(precision, datatype, holds):
    report = [
        {"Name": "x", "LayerType": "PluginV3", "Metadata": f"[ONNX Layer: {OUR_NODE}]"},
        {"Name": CONVOLUTION, "LayerType": "CaskConvolution", "Inputs": [{"Format/Datatype": datatype}]},
    ]
    others = [] if holds else [{"name": CONVOLUTION, "input": datatype}]
    assert check_report(report, [OUR_NODE], True, precision) == others
    with pytest.raises(CheckFailed, match="no plugin for"):
        check_report(report[1:], [OUR_NODE], True, precision)


# --- parity of a plan with its ONNX file ---


class Fixed:
    """A runner of one answer, and of that answer with an error."""

    def __init__(self, error: float = 0.0, where: str = "boxes") -> None:
        rng = np.random.default_rng(0)
        values = {name: rng.normal(size=shape).astype(np.float32) for name, shape in OUTPUTS.items()}
        values["scores"] = np.array([[0.9, 0.7, 0.5, 0.3]], np.float32)
        values["labels"] = np.zeros((1, 4), np.int32)
        values[where] = values[where] + np.float32(error)
        self.output = EngineOutput(**values)

    def infer(self, frames_BTHWC, sizes_B2):
        return self.output


@pytest.mark.parametrize("where", ["scores", "boxes", "mask_logits"])
def test_a_plan_may_be_as_far_from_the_onnx_file_as_both_may_be_from_pytorch(where):
    inputs = cases(shape=SHAPE)[:1]
    # Errors of 1e-3 of the ONNX file and a bound of 2e-3 for the plan: up to 3e-3 apart.
    report = compare(Fixed(), Fixed(2.5e-3, where), inputs, parity_report())
    assert report.failures() == [] and report.compared == 4
    with pytest.raises(CheckFailed, match=f"does not compute what onnxruntime computes.*{where} in case shapes"):
        compare(Fixed(), Fixed(3.5e-3, where), inputs, parity_report()).check("model.plan", "onnxruntime")


def test_parity_runs_on_what_the_profile_takes(export_dir):
    source = replace(Manifest.read(export_dir), shape=None)
    wide = Profile(FixedShape(1, 1, 64, 64), FixedShape(1, 4, 112, 200), FixedShape(1, 7, 256, 256))
    assert [case.name for case in fitting_cases(source, wide)] == ["shapes", "one_frame_odd_size", "long_noise"]
    narrow = Profile(SHAPE, SHAPE, SHAPE)
    assert {case.frames_BTHWC.shape for case in fitting_cases(source, narrow)} == {(1, 2, 64, 64, 3)}
