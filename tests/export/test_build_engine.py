"""`mssts build-engine` with TensorRT-RTX's real parser and builder, on a CPU."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

onnx = pytest.importorskip("onnx")

from support.contract_graph import CONVOLUTION, SHAPE, contract_graph, parity_report, write_export  # noqa: E402

from mssts.artefact import Artefact  # noqa: E402
from mssts.data.moving_shapes import MovingShapesConfig, write_dataset  # noqa: E402
from mssts.errors import CheckFailed, MsstsError  # noqa: E402
from mssts.export import average_precision  # noqa: E402
from mssts.export.average_precision import ApGate  # noqa: E402
from mssts.export.graph import export_graph  # noqa: E402
from mssts.export.options import ExportOptions  # noqa: E402
from mssts.export.tensorrt import builder as tensorrt_builder  # noqa: E402
from mssts.export.tensorrt import command as build_command  # noqa: E402
from mssts.export.tensorrt.builder import NOT_MEASURED, build_engine, existing_engine  # noqa: E402
from mssts.export.tensorrt.options import BuildOptions, Profile  # noqa: E402
from mssts.export.tensorrt.parity import check_data, check_parity  # noqa: E402
from mssts.manifest import FixedShape, Manifest  # noqa: E402
from mssts.model.config import preset  # noqa: E402
from mssts.model.deployment import deployed  # noqa: E402
from mssts.model.engine import Engine  # noqa: E402
from mssts.model.random_weights import random_checkpoint  # noqa: E402
from mssts.runners.tensorrt_library import Gpu, tensorrt_module  # noqa: E402

RTX = BuildOptions("tensorrt-rtx")
METADATA = {"version": "0", "preset": "", "commit": "none", "classes": "", "license": "Apache-2.0"}


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    """Hides the GPU, so that the tests run the same on every machine."""
    monkeypatch.setattr(tensorrt_builder, "first_gpu", lambda: None)


@pytest.fixture
def rtx():
    """TensorRT-RTX's module."""
    try:
        return tensorrt_module("tensorrt-rtx")
    except MsstsError as error:
        pytest.skip(str(error))


@pytest.fixture
def export_dir(tmp_path):
    return write_export(tmp_path / "export")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data set with ground truth, of the category that the export knows."""
    config = MovingShapesConfig(width=128, height=96, length=3)
    return write_dataset(tmp_path_factory.mktemp("data") / "shapes", 2, 5, config, progress=False)


def command(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    build_command.add_arguments(parser)
    return build_command.run(parser.parse_args([str(argument) for argument in arguments]))


def one_line(error: pytest.ExceptionInfo) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def export_preset(name: str, precision: str, folder):
    """An export of the preset with random weights.

    It has no parity report, which would take minutes.
    """
    loaded = random_checkpoint(preset(name))
    engine = Engine(loaded.build(), loaded.preset.top_k).eval()
    graph = export_graph(deployed(engine, precision), METADATA, ExportOptions(precision))
    path = folder / "model.onnx"
    onnx.save(graph, path)
    replace(loaded.manifest(path, checks={"parity": parity_report()}), precision=precision).write(folder)
    return folder


def check_preset(name: str, precision: str, tmp_path) -> None:
    source = export_preset(name, precision, tmp_path)
    manifest = build_engine(source, tmp_path / "rtx", RTX)
    assert sorted(path.name for path in (tmp_path / "rtx").iterdir()) == ["manifest.json", "model.plan"]
    assert manifest.precision == precision and manifest.shape is None
    # Every encoder layer has at least seven matrix products, every decoder layer more.
    assert manifest.checks["network"]["in_precision"] > 40
    assert manifest.checks["parity"] == {"holds": None, "reason": f"{NOT_MEASURED}: no GPU"}


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_tensorrt_rtx_builds_tiny(rtx, precision, tmp_path):
    check_preset("tiny", precision, tmp_path)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_tensorrt_rtx_builds_r50(rtx, precision, tmp_path):
    check_preset("mssts_r50", precision, tmp_path)


@pytest.mark.slow
@pytest.mark.long
def test_tensorrt_rtx_builds_tiny_in_bf16(rtx, tmp_path):
    check_preset("tiny", "bf16", tmp_path)


def test_what_is_written_and_printed(rtx, export_dir, tmp_path, capsys):
    out = tmp_path / "out"
    assert command(export_dir, "--target", "tensorrt-rtx", "--out", out) == 0
    printed = capsys.readouterr().out
    assert f"wrote {out / 'model.plan'}: tiny, fp32, tensorrt-rtx {rtx.__version__}" in printed
    assert f"parity: {NOT_MEASURED}: no GPU" in printed
    manifest = Manifest.read(out)
    built = manifest.provenance["engine"]
    assert manifest.artefact == "model.plan" and manifest.shape == SHAPE
    assert built["bytes"] == (out / "model.plan").stat().st_size
    assert built["target"] == "tensorrt-rtx" and built["tensorrt"] == rtx.__version__ and built["gpu"] is None
    assert manifest.provenance["onnx"]["sha256"] == Manifest.read(export_dir).artefact_sha256


def test_the_same_build_is_kept_on_request_and_another_is_not(rtx, export_dir, tmp_path, capsys):
    out = tmp_path / "out"
    words = (export_dir, "--target", "tensorrt-rtx", "--out", out)
    assert existing_engine(export_dir, out, RTX) is None
    for options, verb in (((), "wrote"), (("--reuse",), "kept"), ((), "wrote")):
        assert command(*words, *options) == 0
        assert f"{verb} {out / 'model.plan'}" in capsys.readouterr().out
    assert existing_engine(export_dir, out, RTX) == Manifest.read(out)
    for other in (replace(RTX, optimization_level=1), replace(RTX, compute_capabilities=("8.9",))):
        assert existing_engine(export_dir, out, other) is None
    whole = (out / "model.plan").read_bytes()
    (out / "model.plan").write_bytes(b"broken")
    assert existing_engine(export_dir, out, RTX) is None
    (out / "model.plan").write_bytes(whole)
    model = contract_graph()
    model.graph.initializer[0].raw_data = bytes(len(model.graph.initializer[0].raw_data))
    write_export(export_dir, model)
    assert existing_engine(export_dir, out, RTX) is None


def test_an_op_that_tensorrt_lacks_is_named(rtx, tmp_path):
    export_dir = write_export(tmp_path / "export", contract_graph(unsupported=True))
    with pytest.raises(MsstsError, match=r"cannot parse it: node model.mask_head/Det \(Det\): not supported") as error:
        build_engine(export_dir, tmp_path / "out", RTX)
    one_line(error)
    assert not (tmp_path / "out").exists()


def test_an_edited_export_is_refused(export_dir, tmp_path):
    path = export_dir / "model.onnx"
    path.write_bytes(path.read_bytes() + b"\x00")
    with pytest.raises(MsstsError, match=r"SHA-256 differs.*export it again") as error:
        build_engine(export_dir, tmp_path / "out", RTX)
    one_line(error)
    assert not (tmp_path / "out").exists()


def test_the_export_is_not_overwritten(export_dir):
    with pytest.raises(MsstsError, match="name another"):
        build_engine(export_dir, export_dir, RTX)


def test_a_failed_build_leaves_what_was_there(rtx, export_dir, tmp_path, monkeypatch):
    out = tmp_path / "out"
    build_engine(export_dir, out, RTX)
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def full_disk(*_):
        raise OSError(28, "No space left on device", "model.plan")

    monkeypatch.setattr(tensorrt_builder, "provenance", full_disk)
    for folder in (out, tmp_path / "another"):
        with pytest.raises(OSError, match="No space"):
            build_engine(export_dir, folder, replace(RTX, optimization_level=1))
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert not (tmp_path / "another").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--target", "tensorflow"), "expected one of: tensorrt, tensorrt-rtx"),
        (("--target", "tensorrt-rtx", "--min", "1x1x64"), "--min 1x1x64: expected CLIPSxFRAMESxHEIGHTxWIDTH"),
        (("--target", "tensorrt-rtx", "--max", "1x2x64x128"), "takes the shape 1x2x64x64 alone"),
        (("--target", "tensorrt-rtx", "--hardware-compatible", "all"), "expected one of: none, ampere+, same"),
        (("--target", "tensorrt-rtx", "--compute-capability", "3.5"), "expected one of: 12.0"),
        (("--target", "tensorrt", "--compute-capability", "8.9"), "is for tensorrt-rtx"),
        (("--target", "tensorrt-rtx", "--timing-cache", "cache"), "is for tensorrt"),
        (("--target", "tensorrt-rtx", "--version-compatible"), "takes --compute-capability"),
        (("--target", "tensorrt-rtx", "--hardware-compatible", "same"), "takes --compute-capability"),
        (("--target", "tensorrt-rtx", "--workspace-gib", "0"), "expected more than 0"),
        (("--target", "tensorrt-rtx", "--optimization-level", "9"), "expected 0 to 5"),
    ],
)
def test_wrong_options_name_what_was_expected(rtx, arguments, message, export_dir, tmp_path):
    with pytest.raises(MsstsError) as error:
        command(export_dir, "--out", tmp_path / "out", *arguments)
    assert message in one_line(error)
    assert not (tmp_path / "out").exists()


def test_ops_as_functions_are_an_option(export_dir, tmp_path, monkeypatch):
    asked: list[BuildOptions] = []

    def build(source, out, options, gate):
        asked.append(options)
        raise MsstsError("enough")

    monkeypatch.setattr(tensorrt_builder, "build_engine", build)
    for flags in ([], ["--no-plugins"]):
        with pytest.raises(MsstsError, match="enough"):
            command(export_dir, "--target", "tensorrt", "--out", tmp_path / "out", *flags)
    assert [options.uses_plugins for options in asked] == [True, False]


def test_a_profile_must_be_in_order(export_dir):
    manifest = replace(Manifest.read(export_dir), shape=None)
    with pytest.raises(MsstsError, match="at most"):
        BuildOptions("tensorrt-rtx", least=FixedShape(2, 1, 64, 64)).profile(manifest)


@pytest.mark.parametrize("name", ["tiny", "mssts_r50"])
def test_the_profile_follows_from_the_model(name, export_dir):
    rule = preset(name).input
    manifest = replace(Manifest.read(export_dir), shape=None, input=rule, clip_frames=preset(name).clip_frames, top_k=1)
    profile = RTX.profile(manifest)
    T = manifest.clip_frames
    # Every frame that the input rule makes fits, portraits too, and so does a clip of one frame.
    for H, W in ((rule.short_edge, rule.long_edge), (rule.long_edge, rule.short_edge)):
        assert profile.holds(FixedShape(1, T, H, W)) and profile.holds(FixedShape(1, 1, H, W))
    assert not profile.holds(FixedShape(1, T + 1, rule.short_edge, rule.short_edge))
    given = replace(RTX, best=FixedShape(4, T, 128, 256)).profile(manifest)
    assert given.most.clips == 4 and given.most.width >= 256


# --- a machine with a GPU, of which the parts that need it are replaced ---


def test_with_a_gpu_the_layer_report_and_parity_are_stored(rtx, export_dir, tmp_path, monkeypatch):
    report = [{"Name": CONVOLUTION, "LayerType": "CaskConvolution", "Inputs": [{"Format/Datatype": "Row major FP32"}]}]
    monkeypatch.setattr(tensorrt_builder, "first_gpu", lambda: Gpu("GPU A", "8.9"))
    monkeypatch.setattr(tensorrt_builder, "_layer_report", lambda *_: report)
    monkeypatch.setattr(tensorrt_builder, "check_parity", lambda *_: {"holds": True})
    manifest = build_engine(export_dir, tmp_path / "out", RTX)
    assert json.loads((tmp_path / "out" / "layers.json").read_text()) == report
    assert list(manifest.companions) == ["layers.json"]
    assert Manifest.read(tmp_path / "out").checks["parity"] == {"holds": True}
    # A plan of another GPU is another build.
    monkeypatch.setattr(tensorrt_builder, "first_gpu", lambda: Gpu("GPU B", "8.9"))
    assert existing_engine(export_dir, tmp_path / "out", RTX) is None


def test_a_plan_for_other_gpus_is_not_run_on_this_one(rtx, export_dir, tmp_path, monkeypatch):
    # TensorRT-RTX knows no 9.0, and 8.6 is not asked for.
    for gpu in (Gpu("GPU H", "9.0"), Gpu("GPU A", "8.6")):
        monkeypatch.setattr(tensorrt_builder, "first_gpu", lambda gpu=gpu: gpu)
        manifest = build_engine(export_dir, tmp_path / gpu.name, replace(RTX, compute_capabilities=("8.9",)))
        assert gpu.name in manifest.checks["parity"]["reason"]


def test_a_plan_that_computes_something_else_is_not_written(rtx, export_dir, tmp_path, monkeypatch):
    def out_of_bounds(*_):
        raise CheckFailed("boxes in case shapes: max error 1 (bound 0)")

    monkeypatch.setattr(tensorrt_builder, "first_gpu", lambda: Gpu("GPU A", "8.9"))
    monkeypatch.setattr(tensorrt_builder, "_layer_report", lambda *_: [])
    monkeypatch.setattr(tensorrt_builder, "check_parity", out_of_bounds)
    with pytest.raises(CheckFailed, match="boxes"):
        build_engine(export_dir, tmp_path / "out", RTX)
    assert not (tmp_path / "out").exists()


def test_a_quantized_export_has_no_bounds_to_compare_a_plan_by(export_dir, tmp_path):
    replace(Manifest.read(export_dir), checks={"parity_before_quantization": {}}).write(export_dir)
    profile = Profile(*[FixedShape(1, 1, 64, 64)] * 3)
    report = check_parity(Artefact.open(export_dir), tmp_path / "model.plan", profile, "x")
    assert report["holds"] is None
    assert "--data scores it" in report["reason"]


# --- AP of the export and of the plan ---


class Scored:
    """A segmenter whose AP is given.

    It is 50 points, and for a plan as many as its class says.
    """

    plan = 0.5

    def __init__(self, path, runner="auto") -> None:
        self.manifest = Manifest.read(path)
        self.ap = self.plan if self.manifest.artefact == "model.plan" else 0.5

    def describe(self) -> dict[str, object]:
        return {"name": "stand-in", "version": "0"}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def score(monkeypatch, plan: float) -> None:
    """A machine with a GPU, of which the parts that need it are replaced."""
    monkeypatch.setattr(tensorrt_builder, "first_gpu", lambda: Gpu("GPU A", "8.9"))
    monkeypatch.setattr(tensorrt_builder, "_layer_report", lambda *_: [])
    monkeypatch.setattr(tensorrt_builder, "check_report", lambda *_: [])
    monkeypatch.setattr(tensorrt_builder, "check_parity", lambda *_: {"holds": None, "reason": "not compared"})
    monkeypatch.setattr(Scored, "plan", plan)
    monkeypatch.setattr(average_precision, "LocalSegmenter", Scored)
    monkeypatch.setattr(average_precision, "average_precision", lambda segmenter, *_: segmenter.ap)


def test_the_ap_of_a_plan_is_stored_and_printed(rtx, export_dir, data, tmp_path, monkeypatch, capsys):
    score(monkeypatch, 0.497)
    out = tmp_path / "out"
    words = (export_dir, "--target", "tensorrt-rtx", "--out", out, "--reuse", "--data", data)
    assert command(*words) == 0
    shown = "AP on instances.json: 50.00 in onnx, 49.70 in plan; difference -0.30 (≥ -0.5); run by stand-in 0"
    assert shown in capsys.readouterr().out
    manifest = Manifest.read(out)
    assert manifest.checks["ap"] == {"onnx": 0.5, "plan": 0.497}
    assert len(manifest.provenance["scored_with"]) == 2
    assert command(*words) == 0
    again = capsys.readouterr().out
    assert "kept" in again and shown in again
    # A stricter bound is not that of the plan which is there.
    with pytest.raises(CheckFailed, match=r"by more than 0\.1; nothing was written"):
        command(*words, "--max-ap-drop", "0.1")
    assert Manifest.read(out) == manifest


def test_a_plan_that_loses_ap_is_not_written(rtx, export_dir, data, tmp_path, monkeypatch):
    score(monkeypatch, 0.49)
    with pytest.raises(
        CheckFailed, match=r"drops from 50\.00 to 49\.00, by more than 0\.5; nothing was written"
    ) as error:
        build_engine(export_dir, tmp_path / "out", RTX, ApGate(data))
    assert "--max-ap-drop" in one_line(error)
    assert not (tmp_path / "out").exists()


def test_without_a_gpu_the_ap_is_not_measured(rtx, export_dir, data, tmp_path, capsys):
    out = tmp_path / "out"
    words = (export_dir, "--target", "tensorrt-rtx", "--out", out, "--data", data)
    assert command(*words) == 0
    assert f"AP on instances.json: {NOT_MEASURED}: no GPU" in capsys.readouterr().out
    checks = Manifest.read(out).checks
    assert "ap" not in checks and checks["ap_reason"] == f"{NOT_MEASURED}: no GPU"
    assert existing_engine(export_dir, out, RTX, ApGate(data)) is not None
    assert command(export_dir, "--target", "tensorrt-rtx", "--out", out, "--reuse") == 0
    assert f"AP on instances.json: {NOT_MEASURED}" in capsys.readouterr().out


def test_data_that_a_plan_cannot_take_are_told_before_it_is_built(export_dir, data, tmp_path, monkeypatch):
    monkeypatch.setattr(tensorrt_builder, "tensorrt_module", lambda _: SimpleNamespace(__version__="1.0"))
    with pytest.raises(MsstsError, match=r"absent\.json: no such file") as error:  # there is nothing to build with
        build_engine(export_dir, tmp_path / "out", RTX, ApGate(tmp_path / "absent.json"))
    one_line(error)
    assert not (tmp_path / "out").exists()

    source = replace(Manifest.read(export_dir), shape=None)
    gate = ApGate(data)
    check_data(Manifest.read(export_dir), Profile(SHAPE, SHAPE, SHAPE), gate)
    check_data(source, Profile(SHAPE, SHAPE, SHAPE), gate)  # clips are brought into it
    wide = Profile(FixedShape(1, 1, 32, 32), FixedShape(1, 2, 64, 64), FixedShape(1, 2, 128, 128))
    check_data(source, wide, gate)
    for profile in (replace(wide, least=FixedShape(1, 1, 64, 64)), Profile(*[FixedShape(1, 1, 64, 64)] * 3)):
        with pytest.raises(
            MsstsError, match=r"clips of \w+ are 1x2x48x64, outside the plan's shapes 1x1x64x64"
        ) as error:
            check_data(source, profile, gate)
        one_line(error)
