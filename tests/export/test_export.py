"""Export: the file computes what the model does, and is not written when wrong."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from support.small_model import small

import mssts.export.exporter
from mssts import contract
from mssts.cli import main
from mssts.data.moving_shapes import CATEGORIES
from mssts.errors import CheckFailed, MsstsError
from mssts.export.existing import existing_export
from mssts.export.exporter import export_checkpoint
from mssts.export.options import OPSET, ExportOptions
from mssts.export.parity import Case, cases, measure
from mssts.manifest import Manifest
from mssts.model.checkpoint import save_checkpoint
from mssts.model.engine import Engine
from mssts.ops import function_bodies
from mssts.ops.exporting import DOMAIN
from mssts.runners.onnx_runtime import OnnxRuntimeRunner


@pytest.fixture(scope="module")
def graph(exported) -> onnx.ModelProto:
    return onnx.load(exported[1] / "model.onnx")


def test_the_file_is_valid_and_has_the_contracts_tensors(graph):
    onnx.checker.check_model(graph, full_check=True)
    for specs, values in ((contract.ENGINE_INPUTS, graph.graph.input), (contract.ENGINE_OUTPUTS, graph.graph.output)):
        assert [value.name for value in values] == [spec.name for spec in specs]
        for spec, value in zip(specs, values, strict=True):
            tensor = value.type.tensor_type
            assert onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type) == spec.numpy_dtype
            shape = [dim.dim_param or dim.dim_value for dim in tensor.shape.dim]
            assert shape == [small().top_k if size == "K" else size for size in spec.shape]


def test_our_ops_are_nodes_with_bodies_that_tensorrt_can_tell_apart(graph):
    nodes = [node for node in graph.graph.node if node.domain == DOMAIN]
    model = small().model
    # Deformable attention: each encoder and decoder layer. Temporal: intra and inter, and all decoder layers but one.
    assert [n.op_type for n in nodes].count("MSDeformAttn") == model.encoder_layers + model.decoder_layers
    assert [n.op_type for n in nodes].count("SplitTemporalAttn") == 2 * model.encoder_layers + model.decoder_layers - 1
    for node in nodes:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        assert attributes["plugin_version"] == b"1"
        assert attributes["plugin_namespace"] == b""
    assert {function.name for function in graph.functions} == {"MSDeformAttn", "SplitTemporalAttn"}
    everything = [*graph.graph.node, *(node for function in graph.functions for node in function.node)]
    assert "GridSample" not in {node.op_type for node in everything}


def test_a_projection_of_queries_keys_and_values_is_not_cut(graph):
    made_by = {output: node.op_type for node in graph.graph.node for output in node.output}
    inputs = [node.input for node in graph.graph.node if node.op_type == "SplitTemporalAttn"]
    assert not {made_by[name] for names in inputs for name in names} & {"Split", "Slice"}
    assert {len(set(names)) for names in inputs} == {1, 2}  # q, k and v in one; k and v, or q and k


def test_the_manifest_describes_the_file(exported):
    manifest = Manifest.read(exported[1])
    assert manifest.preset == "tiny"
    assert manifest.categories == CATEGORIES
    parity = manifest.checks["parity"]
    assert parity["holds"] is True
    assert parity["compared"] > 20
    assert {error["case"] for error in parity["outputs"]} == {case.name for case in cases()}
    assert manifest.provenance["versions"]["onnxruntime"] == onnxruntime.__version__


@pytest.mark.parametrize(
    ("sizes", "T"), [([[64, 72]], 2), ([[33, 57]], 1), ([[48, 80], [31, 40], [48, 17]], 9)],
    ids=["plain", "one odd frame", "three padded clips"],
)  # fmt: skip
def test_the_file_computes_the_model_at_sizes_it_was_never_checked_with(exported, sizes, T):
    B, H, W = len(sizes), max(h for h, _ in sizes), max(w for _, w in sizes)
    frames = np.random.default_rng(5).integers(0, 256, (B, T, H, W, 3), dtype=np.uint8)
    report = measure(
        Engine(exported[2], small().top_k),
        OnnxRuntimeRunner(exported[1] / "model.onnx", kernels=False),
        [Case("new", frames, np.array(sizes, np.int32))],
    )
    assert report.failures() == []
    assert report.compared == B * small().top_k - report.ties


def break_function(old: str, new: str):
    """The function bodies with one line of the deformable attention changed."""
    text = function_bodies._MS_DEFORM_ATTN
    assert old in text
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(function_bodies, "_MS_DEFORM_ATTN", text.replace(old, new))
        return function_bodies.function_bodies(OPSET)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("wh_order = Constant <value_ints = [1, 0]> ()", "wh_order = Constant <value_ints = [0, 1]> ()"),
        ("half = Constant <value_float = 0.5> ()", "half = Constant <value_float = 0.501> ()"),
        ("wx1 = Where (x1_ok, fx1, zero_f)", "wx1 = Identity (fx1)"),
        # What engines that keep locations in half precision compute.
        ("pixel = Sub (scaled, half)", "p16 = Cast <to = 10> (location)\n  p32 = Cast <to = 1> (p16)\n"
         "  s32 = Mul (p32, wh_L12)\n  pixel = Sub (s32, half)"),
    ],
    ids=["swapped axis", "a thousandth of a pixel", "no zero outside", "fp16 locations"],
)  # fmt: skip
def test_the_gate_closes_on_a_wrong_graph(exported, graph, tmp_path, old, new):
    broken = onnx.ModelProto()
    broken.CopyFrom(graph)
    del broken.functions[:]
    broken.functions.extend(break_function(old, new))
    onnx.save(broken, tmp_path / "model.onnx")
    report = measure(Engine(exported[2], small().top_k), OnnxRuntimeRunner(tmp_path / "model.onnx", kernels=False))
    with pytest.raises(CheckFailed, match=r"does not compute what PyTorch computes; nothing was written: .*max error"):
        report.check("model.onnx")


def test_the_gate_closes_on_a_dropped_padding_mask(exported, tmp_path):
    class Deaf(OnnxRuntimeRunner):
        def infer(self, frames_BTHWC, sizes_B2):
            return super().infer(frames_BTHWC, np.full_like(sizes_B2, frames_BTHWC.shape[2:4]))

    report = measure(Engine(exported[2], small().top_k), Deaf(exported[1] / "model.onnx", kernels=False))
    assert {failure.split(" in case ")[1].split(":")[0] for failure in report.failures() if "case" in failure} == {
        "padded_batch"
    }


def test_nothing_is_written_when_the_gate_closes(exported, graph, tmp_path, monkeypatch, capsys):
    broken = onnx.ModelProto()
    broken.CopyFrom(graph)
    del broken.functions[:]
    broken.functions.extend(
        break_function("half = Constant <value_float = 0.5> ()", "half = Constant <value_float = 0.6> ()")
    )
    monkeypatch.setattr(mssts.export.exporter, "export_graph", lambda *_: broken)
    out = tmp_path / "engine"
    assert main(["export", str(exported[0]), "--out", str(out)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "nothing was written" in error
    assert list(tmp_path.iterdir()) == []


def test_an_export_is_reused_only_while_nothing_changed(exported, tmp_path, capsys):
    checkpoint, engine, _ = exported
    assert existing_export(checkpoint, engine) == Manifest.read(engine)
    assert existing_export(checkpoint, engine, ExportOptions(top_k=small().top_k)) == Manifest.read(engine)
    for other in (ExportOptions(top_k=3), ExportOptions("fp16"), ExportOptions(functions=False)):
        assert existing_export(checkpoint, engine, other) is None
    assert existing_export(checkpoint, tmp_path) is None
    assert main(["export", str(checkpoint), "--out", str(engine), "--reuse"]) == 0
    assert "kept" in capsys.readouterr().out
    manifest = json.loads((engine / "manifest.json").read_text())
    other = tmp_path / "other"
    other.mkdir()
    (other / "model.onnx").write_bytes((engine / "model.onnx").read_bytes())
    for key in ("checkpoint_sha256", "source_sha256"):
        changed = {**manifest, "provenance": {**manifest["provenance"], key: "0"}}
        (other / "manifest.json").write_text(json.dumps(changed))
        assert existing_export(checkpoint, other) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{checkpoint}", "--preset", "mssts_r50"], "a checkpoint of the preset 'tiny', not of 'mssts_r50'"),
        (["nowhere.safetensors"], "nowhere.safetensors: no such file"),
        (["{text}"], "not a PyTorch or safetensors file"),
        (["{checkpoint}", "--top-k", "0"], "--top-k is 0; expected 1 to 60"),
    ],
    ids=["another preset", "absent", "not a checkpoint", "top-k"],
)
def test_bad_input_is_one_line_and_leaves_nothing(exported, tmp_path, capsys, arguments, message):
    text = tmp_path / "text.safetensors"
    text.write_text("not a checkpoint")
    words = [word.format(checkpoint=exported[0], text=text) for word in arguments]
    assert main(["export", *words, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_with_a_weight_of_another_shape_names_it(exported, tmp_path):
    weights = {k: v for k, v in exported[2].state_dict().items() if "num_batches_tracked" not in k}
    weights["decoder.reference_points.bias"] = torch.zeros(3)
    save_checkpoint(tmp_path / "x.safetensors", weights, small(), CATEGORIES)
    with pytest.raises(MsstsError, match=r"decoder.reference_points.bias is \(3,\) in the file, expected \(2,\)"):
        export_checkpoint(tmp_path / "x.safetensors", tmp_path / "out")
