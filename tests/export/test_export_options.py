"""Options of an export: precision, fixed shape, function bodies, no checkpoint."""

from __future__ import annotations

import collections

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator
from support.small_model import awake_model, small

from mssts.cli import main
from mssts.data.moving_shapes import CATEGORIES
from mssts.errors import CheckFailed
from mssts.export.exporter import export_checkpoint
from mssts.export.options import ExportOptions
from mssts.export.parity import Case, measure
from mssts.export.reference_runner import GatherElements
from mssts.export.saving import save_model
from mssts.manifest import FixedShape, Manifest
from mssts.model.checkpoint import load_checkpoint
from mssts.model.config import PRESETS
from mssts.model.deployment import deployed
from mssts.model.engine import Engine
from mssts.model.random_weights import random_checkpoint
from mssts.ops.exporting import DOMAIN
from mssts.runners.onnx_runtime import OnnxRuntimeRunner

SHAPE = FixedShape(1, 3, 64, 88)


@pytest.fixture(scope="module")
def checkpoint(exported):
    return exported[0]


@pytest.fixture(scope="module")
def sixteen_bit(checkpoint, tmp_path_factory):
    """Folders of the export in fp16 and bf16."""
    folders = {}
    for options in (ExportOptions("fp16"), ExportOptions("bf16", SHAPE)):
        folders[options.precision] = tmp_path_factory.mktemp(options.precision)
        export_checkpoint(checkpoint, folders[options.precision], options=options)
    return folders


@pytest.fixture(scope="module")
def fixed(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fixed")
    export_checkpoint(checkpoint, folder, options=ExportOptions(shape=SHAPE, functions=False))
    return folder


@pytest.mark.parametrize(("precision", "stored"), [("fp16", TensorProto.FLOAT16), ("bf16", TensorProto.BFLOAT16)])
def test_sixteen_bits_are_where_they_are_safe(sixteen_bit, precision, stored):
    model = onnx.load(sixteen_bit[precision] / "model.onnx")
    nodes = model.graph.node
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    types |= {
        value.name: value.type.tensor_type.elem_type
        for value in onnx.shape_inference.infer_shapes(model, data_prop=True).graph.value_info
    }
    for node in nodes:
        if node.op_type in ("Conv", "MSDeformAttn", "SplitTemporalAttn"):
            assert types[node.input[0]] == stored, node.name
        if node.op_type in ("Softmax", "LayerNormalization", "InstanceNormalization", "GroupNormalization", "TopK"):
            assert types[node.input[0]] == TensorProto.FLOAT, node.name
        if node.op_type == "MSDeformAttn":
            assert types[node.input[2]] == TensorProto.FLOAT, "reference points"
    # Frames too are narrowed before they are transposed: only then does OpenVINO leave the transposition out.
    frames = next(node for node in nodes if node.op_type == "Transpose")
    assert types[frames.input[0]] == stored, frames.name
    large = [tensor for tensor in model.graph.initializer if np.prod(tensor.dims) > 4096]
    count = collections.Counter(tensor.data_type for tensor in large)
    assert count[stored] > 4 * (sum(count.values()) - count[stored])


def test_sixteen_bits_halve_the_file_and_say_so(sixteen_bit, checkpoint):
    for precision, folder in sixteen_bit.items():
        manifest = Manifest.read(folder)
        assert manifest.precision == precision
        assert manifest.checks["parity"]["holds"] is True
        assert manifest.checks["parity"]["mask_iou"] > 0.9
        assert (folder / "model.onnx").stat().st_size < 0.7 * checkpoint.stat().st_size
        metadata = {entry.key: entry.value for entry in onnx.load(folder / "model.onnx").metadata_props}
        assert metadata["precision"] == precision
        assert metadata["classes"].split(", ") == [category.name for category in CATEGORIES]


def test_the_gate_of_sixteen_bits_closes_on_locations_in_sixteen_bits(sixteen_bit, checkpoint, tmp_path):
    """Rounds the reference points too, a common mistake of fp16 transformers."""
    model = onnx.load(sixteen_bit["fp16"] / "model.onnx")
    for function in model.functions:
        for node in function.node:
            if node.output[0] == "location":
                node.output[0] = "location_exact"
                rounded = onnx.helper.make_node("Cast", ["location_exact"], ["location_16"], to=TensorProto.FLOAT16)
                widened = onnx.helper.make_node("Cast", ["location_16"], ["location"], to=TensorProto.FLOAT)
                at = list(function.node).index(node) + 1
                nodes = [*function.node[:at], rounded, widened, *function.node[at:]]
                del function.node[:]
                function.node.extend(nodes)
                break
    onnx.save(model, tmp_path / "model.onnx")
    frames = np.random.default_rng(0).integers(0, 256, (1, 2, 360, 640, 3), dtype=np.uint8)
    engine = Engine(load_checkpoint(checkpoint).build(), small().top_k)
    case = Case("large", frames, np.array([[360, 640]], np.int32))
    good = measure(engine, OnnxRuntimeRunner(sixteen_bit["fp16"] / "model.onnx", kernels=False), [case], "fp16")
    good.check("the engine as exported")
    report = measure(engine, OnnxRuntimeRunner(tmp_path / "model.onnx", kernels=False), [case], "fp32")
    with pytest.raises(CheckFailed, match="does not compute"):
        report.check("broken")


def test_a_fixed_shape_is_in_the_file_and_the_manifest(fixed):
    model = onnx.load(fixed / "model.onnx")
    dims = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    assert dims == [SHAPE.clips, SHAPE.frames, SHAPE.height, SHAPE.width, 3]
    manifest = Manifest.read(fixed)
    assert manifest.shape == SHAPE
    assert (manifest.clip_frames, manifest.clip_overlap) == (SHAPE.frames, SHAPE.frames - 1)
    free = [d for value in model.graph.output for d in value.type.tensor_type.shape.dim if not d.dim_value]
    assert free == []


def test_without_functions_our_nodes_stand_alone_and_were_checked_with_them(fixed):
    model = onnx.load(fixed / "model.onnx")
    assert list(model.functions) == []
    assert {node.op_type for node in model.graph.node if node.domain == DOMAIN} == {"MSDeformAttn", "SplitTemporalAttn"}
    assert Manifest.read(fixed).checks["parity"]["holds"] is True


def test_nodes_are_named_after_modules_and_the_file_tells_no_paths(fixed):
    data = (fixed / "model.onnx").read_bytes()
    assert b"/mssts/model/" not in data
    model = onnx.load_from_string(data)
    names = [node.name for node in model.graph.node]
    assert len(names) == len(set(names))
    assert "model.encoder.layers.0.deformable/MSDeformAttn" in names
    assert "model.backbone.layer1.0.conv1/Conv" in names
    modules = dict(awake_model().named_modules())
    scopes = {name.rsplit("/", 1)[0] for name in names} - {"engine", "model"}
    assert {scope for scope in scopes if scope.removeprefix("model.") not in modules} == set()


def test_exporting_twice_gives_the_same_bytes(fixed, checkpoint, tmp_path):
    export_checkpoint(checkpoint, tmp_path, options=ExportOptions(shape=SHAPE, functions=False))
    assert (tmp_path / "model.onnx").read_bytes() == (fixed / "model.onnx").read_bytes()


def test_a_preset_exports_without_a_checkpoint(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("mssts.model.config.PRESETS", {"tiny": small})
    out = tmp_path / "engine"
    arguments = ["export", "--preset", "tiny", "--random-weights", "--shape", "1x2x48x56", "--out", str(out)]
    assert main(arguments) == 0
    assert "tiny, fp32, 1x2x48x56, top 10" in capsys.readouterr().out
    manifest = Manifest.read(out)
    assert manifest.provenance["weights"] == "random weights of tiny"
    assert manifest.checks["parity"]["holds"] is True


@pytest.mark.long
@pytest.mark.parametrize("preset", [name for name in PRESETS if name != "tiny"])
def test_every_preset_of_the_paper_exports_for_any_shape(preset, tmp_path):
    """Takes half an hour for all presets, and 10 GB of memory for the largest."""
    out = tmp_path / "engine"
    assert main(["export", "--preset", preset, "--random-weights", "--out", str(out)]) == 0
    manifest = Manifest.read(out)
    assert (manifest.preset, manifest.shape) == (preset, None)
    assert manifest.checks["parity"]["holds"] is True


def test_random_weights_are_a_function_of_their_seed():
    first, again, other = (random_checkpoint(small(), seed).weights for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no checkpoint given"),
        (["--random-weights"], "--random-weights takes --preset NAME and no checkpoint"),
        (["--random-weights", "--preset", "huge"], "unknown preset 'huge'; expected one of"),
        (["{checkpoint}", "--precision", "int3"], "--precision is 'int3'; expected one of: fp32, fp16, bf16"),
        (["{checkpoint}", "--shape", "5x360x640"], "expected CLIPSxFRAMESxHEIGHTxWIDTH, such as 1x5x360x640"),
    ],
)
def test_options_that_make_no_sense_are_one_line(checkpoint, tmp_path, capsys, arguments, message):
    words = [word.format(checkpoint=checkpoint) for word in arguments]
    assert main(["export", *words, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_weights_beyond_the_limit_of_a_file_lie_beside_it(fixed, tmp_path):
    model = onnx.load(fixed / "model.onnx")
    for _ in range(2):  # the second time in the place of the first, not behind it
        save_model(model, tmp_path / "model.onnx", largest=100_000)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    assert (tmp_path / "model.onnx.data").stat().st_size < (fixed / "model.onnx").stat().st_size
    assert (tmp_path / "model.onnx").stat().st_size < (fixed / "model.onnx").stat().st_size / 2
    assert (tmp_path / "model.onnx.data").stat().st_mode == (tmp_path / "model.onnx").stat().st_mode
    again = onnx.load(tmp_path / "model.onnx")
    for a, b in zip(model.graph.initializer, again.graph.initializer, strict=True):
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(a), onnx.numpy_helper.to_array(b))
    save_model(model, tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_folded_norms_compute_the_same():
    engine = Engine(awake_model(), small().top_k)
    folded = deployed(engine)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
    frames = torch.randint(0, 256, (1, 2, 48, 56, 3), dtype=torch.uint8)
    sizes = torch.tensor([[48, 56]], dtype=torch.int32)
    with torch.inference_mode():
        for a, b in zip(engine.double()(frames, sizes), folded.double()(frames, sizes), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=64 * torch.finfo(torch.float32).eps * float(a.abs().max()))


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_the_reference_evaluator_gathers_among_many(axis):
    """A tensor with as many rows as a real model has queries.

    onnx's own reference stops at 32, and wants all other axes of equal size.
    """
    rng = np.random.default_rng(0)
    data = rng.normal(size=(40, 50, 60)).astype(np.float32)
    indices = rng.integers(-data.shape[axis], data.shape[axis], (3, 4, 5))
    node = onnx.helper.make_node("GatherElements", ["data", "indices"], ["out"], axis=axis)
    inputs = [
        onnx.helper.make_tensor_value_info("data", TensorProto.FLOAT, [None] * 3),
        onnx.helper.make_tensor_value_info("indices", TensorProto.INT64, [None] * 3),
    ]
    out = onnx.helper.make_tensor_value_info("out", TensorProto.FLOAT, [None] * 3)
    graph = onnx.helper.make_graph([node], "gather", inputs, [out])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    feeds = {"data": data, "indices": indices}
    (found,) = ReferenceEvaluator(model, new_ops=[GatherElements]).run(None, feeds)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(found, session.run(None, feeds)[0])
