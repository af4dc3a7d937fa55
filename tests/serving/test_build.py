"""`mssts repo build`: a model repository for each target, read as Triton reads it."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from support.plan import write_plan
from support.serving import assert_same, clip_with_rectangles, needs_server
from support.toy_engine import CATEGORIES, write_toy_engine
from tritonclient.grpc import model_config_pb2

from mssts import contract, kernels
from mssts.cli import main
from mssts.files import sha256
from mssts.manifest import FILE_NAME, FixedShape, Manifest
from mssts.segmenters.local import LocalSegmenter
from mssts.segmenters.triton import TritonSegmenter
from mssts.serving import build
from mssts.serving.model_config import MODELS, STAGES
from mssts.serving.server import TritonServer

TYPES = {model_config_pb2.TYPE_UINT8, model_config_pb2.TYPE_INT32, model_config_pb2.TYPE_FP32}
OUTER_TYPES = TYPES | {model_config_pb2.TYPE_STRING}


def config_of(repository: Path, name: str) -> Any:
    text = (repository / name / "config.pbtxt").read_text(encoding="utf-8")
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def tensors(values: Any) -> dict[str, tuple[int, ...]]:
    return {value.name: tuple(value.dims) for value in values}


def build_repository(out: Path, artefact: Path, target: str, *options: str) -> int:
    return main(["repo", "build", "--artefact", str(artefact), "--target", target, "--out", str(out), *options])


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that stands for each of our libraries."""
    path = tmp_path / "libmssts_tensorrt.so"
    path.write_bytes(b"library")
    monkeypatch.setattr(build.kernels, "library", lambda name: kernels.Library(name, path, ""))
    return path


@pytest.fixture
def plan(tmp_path: Path, library: Path) -> Path:
    """The folder of a plan that was built with the library."""
    profile = {"min": "1x1x64x64", "opt": "1x5x64x112", "max": "1x5x128x128"}
    write_plan(tmp_path / "plan", plugin_sha256=sha256(library), profile=profile)
    return tmp_path / "plan"


def assert_whole(repository: Path, artefact: Path, models_of_python: set[str]) -> None:
    """Every model is there with its files and copies of the artefact's."""
    assert {path.name for path in repository.iterdir()} == set(MODELS)
    assert not [path for path in repository.rglob("*") if path.is_symlink()]
    for path in artefact.iterdir():
        assert (repository / "engine" / "1" / path.name).read_bytes() == path.read_bytes()
    for name in MODELS:
        config = config_of(repository, name)
        assert config.name == name and config.max_batch_size == 0
        assert (config.backend == "python") == (name in models_of_python)
        assert (repository / name / "1" / "model.py").is_file() == (name in models_of_python)
        # Routers take no 16-bit floats.
        assert {tensor.data_type for tensor in (*config.input, *config.output)} <= OUTER_TYPES
    parameters = config_of(repository, contract.ENSEMBLE).parameters
    assert Manifest.from_json(json.loads(parameters["manifest"].string_value)) == Manifest.read(artefact)


def assert_connected(repository: Path) -> None:
    """Every tensor of a step is mapped, and is one of its model."""
    made = {tensor.name for tensor in config_of(repository, contract.ENSEMBLE).input}
    for step in config_of(repository, contract.ENSEMBLE).ensemble_scheduling.step:
        model = config_of(repository, step.model_name)
        assert set(step.input_map) == {tensor.name for tensor in model.input}
        assert set(step.input_map.values()) <= made
        assert set(step.output_map) <= {tensor.name for tensor in model.output}
        made |= set(step.output_map.values())
    assert {tensor.name for tensor in config_of(repository, contract.ENSEMBLE).output} <= made


def test_target_python(engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "models"
    assert build_repository(out, engine, "python", "--threads", "1", "--warm", "none", "--max-queue", "5") == 0
    assert_whole(out, engine, set(STAGES))
    assert_connected(out)
    parameters = {key: value.string_value for key, value in config_of(out, "engine").parameters.items()}
    assert parameters["threads"] == "1" and "warm" not in parameters
    assert config_of(out, "preprocess").parameters["max_queue"].string_value == "5"
    assert f"tritonserver --model-repository={out} " in capsys.readouterr().out


def test_target_onnxruntime(engine: Path, tmp_path: Path) -> None:
    library = kernels.library("onnxruntime")
    if library.path is None:
        pytest.skip(library.reason)
    out = tmp_path / "models"
    assert build_repository(out, engine, "onnxruntime", "--threads", "3", "--seen-at", "/srv/models") == 0
    assert_whole(out, engine, {"preprocess", "postprocess"})
    assert_connected(out)
    config = config_of(out, "engine")
    assert (config.backend, config.default_model_filename) == ("onnxruntime", "model.onnx")
    # ONNX Runtime's backend wants the file's own sizes.
    count = len(CATEGORIES)
    assert tensors(config.input) == {"frames": (-1, -1, -1, -1, 3), "sizes": (-1, 2)}
    assert tensors(config.output) == {
        "scores": (-1, count),
        "labels": (-1, count),
        "boxes": (-1, count, -1, 4),
        "mask_logits": (-1, count, -1, -1, -1),
    }
    assert config.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_AUTO
    assert config.parameters["intra_op_thread_count"].string_value == "3"
    assert list(config.model_operations.op_library_filename) == [f"/srv/models/engine/{library.path.name}"]
    assert (out / "engine" / library.path.name).read_bytes() == library.path.read_bytes()
    (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert (accelerator.name, dict(accelerator.parameters)) == ("cuda", {"use_tf32": "0"})
    assert not config.optimization.HasField("graph")
    (warm_up,) = config.model_warmup
    assert tuple(warm_up.inputs["frames"].dims) == (1, 5, 64, 112, 3) and warm_up.inputs["frames"].zero_data
    sizes = (out / "engine" / "warmup" / warm_up.inputs["sizes"].input_data_file).read_bytes()
    assert np.frombuffer(sizes, np.int32).tolist() == [64, 112]


def test_target_onnxruntime_without_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(build.kernels, "library", lambda name: kernels.Library(name, None, "not built"))
    write_toy_engine(tmp_path / "engine")
    manifest = Manifest.read(tmp_path / "engine")
    replace(manifest, precision="fp8").write(tmp_path / "engine")
    assert build_repository(tmp_path / "models", tmp_path / "engine", "onnxruntime", "--warm", "none") == 0
    config = config_of(tmp_path / "models", "engine")
    assert not config.HasField("model_operations") and not config.model_warmup
    assert config.optimization.graph.level == 2  # no optimisation: such graphs come out wrong
    assert "our kernels: none, the function bodies of the file are run: not built" in capsys.readouterr().out


def test_target_tensorrt(plan: Path, tmp_path: Path, library: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "models"
    assert build_repository(out, plan, "tensorrt") == 0
    assert_connected(out)
    config = config_of(out, "engine")
    assert (config.backend, config.platform) == ("tensorrt", "tensorrt_plan")
    assert config.default_model_filename == "model.plan"
    top_k = Manifest.read(plan).top_k
    assert tensors(config.output)["mask_logits"] == (-1, top_k, -1, -1, -1)
    assert config.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_GPU
    assert tuple(config.model_warmup[0].inputs["frames"].dims) == (1, 5, 64, 112, 3)  # what the plan was tuned for
    assert not config.HasField("model_operations") and not config.HasField("optimization")
    assert (out / "engine" / library.name).read_bytes() == library.read_bytes()
    assert f"--backend-config=tensorrt,plugins={out}/engine/{library.name}" in capsys.readouterr().out


def test_target_tensorrt_without_plugins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_plan(tmp_path / "plan")
    assert build_repository(tmp_path / "models", tmp_path / "plan", "tensorrt") == 0
    assert not list((tmp_path / "models").rglob("*.so"))
    assert "--backend-config" not in capsys.readouterr().out


def test_the_engine_alone_differs_between_targets(engine: Path, tmp_path: Path) -> None:
    for target in ("python", "onnxruntime"):
        assert build_repository(tmp_path / target, engine, target) == 0
    for name in ("preprocess", "postprocess"):
        assert config_of(tmp_path / "python", name) == config_of(tmp_path / "onnxruntime", name)
    python, native = (config_of(tmp_path / target, contract.ENSEMBLE) for target in ("python", "onnxruntime"))
    assert (python.input, python.output, python.parameters) == (native.input, native.output, native.parameters)


def of_one_shape(folder: Path) -> Path:
    return write_toy_engine(folder, FixedShape(1, 5, 64, 112)).parent


def for_openvino(folder: Path) -> Path:
    write_toy_engine(folder)
    replace(Manifest.read(folder), runner="openvino").write(folder)
    return folder


def for_rtx(folder: Path) -> Path:
    write_plan(folder, target="tensorrt-rtx")
    return folder


def with_other_plugins(folder: Path) -> Path:
    write_plan(folder, plugin_sha256="0" * 64)
    return folder


def changed(folder: Path) -> Path:
    with open(write_toy_engine(folder), "ab") as file:
        file.write(b"x")
    return folder


def checkpoint(folder: Path) -> Path:
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"x")
    return folder / "model.safetensors"


@pytest.mark.parametrize(
    ("make", "arguments", "expected"),
    [
        (lambda folder: write_toy_engine(folder).parent, ["tensorrt"], "an ONNX file, and the target tensorrt takes"),
        (lambda folder: write_plan(folder).parent, ["onnxruntime"], "a TensorRT plan, and the target onnxruntime"),
        (lambda folder: write_toy_engine(folder).parent, ["openvino"], "unknown target 'openvino'; expected one of"),
        (lambda folder: write_toy_engine(folder).parent, ["onnxruntime", "--runner", "openvino"], "--runner is for"),
        (lambda folder: write_toy_engine(folder).parent, ["python", "--runner", "tensorrt"], "expected a --runner"),
        (lambda folder: write_toy_engine(folder).parent, ["python", "--threads", "0"], "--threads must be at least 1"),
        (of_one_shape, ["onnxruntime"], "takes clips of 1x5x64x112 alone"),
        (for_openvino, ["onnxruntime"], "made for openvino; take the target python"),
        (for_rtx, ["tensorrt"], "built for tensorrt-rtx, which Triton has no backend for"),
        (with_other_plugins, ["tensorrt"], "built with another plugin library"),
        (changed, ["python"], "not the file that manifest.json describes"),
        (checkpoint, ["python"], "a checkpoint, and a server takes an exported engine"),
        (lambda folder: folder / "absent", ["python"], "no such file or folder"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("library")
def test_what_cannot_be_built_is_one_line(
    make: Any, arguments: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    artefact = make(tmp_path / "artefact")
    assert build_repository(tmp_path / "models", artefact, *arguments) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(rf"mssts repo: error: .*{re.escape(expected)}.*\n", error), error
    assert not (tmp_path / "models").exists() and not list(tmp_path.glob(".models*"))


def test_what_is_there_is_not_touched(engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("mine")
    assert build_repository(tmp_path, engine, "python") == 2
    assert "exists and is not an empty folder; name another one" in capsys.readouterr().err
    assert build_repository(tmp_path / "file" / "models", engine, "python") == 2
    assert re.fullmatch(r"mssts repo: error: .*cannot be made.*\n", capsys.readouterr().err)
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "mine"


@needs_server
def test_the_models_around_a_native_engine_work(engine: Path, tmp_path: Path, local: LocalSegmenter) -> None:
    """Python's backend stands in for ONNX Runtime's, which Triton's wheel lacks.

    All else is as it was built: the ensemble, the engine's tensors and its first run.
    """
    repository = tmp_path / "models"
    assert build_repository(repository, engine, "onnxruntime", "--threads", "1") == 0
    config = config_of(repository, "engine")
    config.backend = "python"
    for field in ("default_model_filename", "optimization", "model_operations"):
        config.ClearField(field)
    config.parameters["manifest"].string_value = (engine / FILE_NAME).read_text(encoding="utf-8")
    (repository / "engine" / "config.pbtxt").write_text(text_format.MessageToString(config), encoding="utf-8")
    models = Path(build.__file__).parents[1] / "triton_repo"
    shutil.copyfile(models / "engine" / "1" / "model.py", repository / "engine" / "1" / "model.py")
    clip_THWC = clip_with_rectangles()
    with TritonServer(repository) as server, TritonSegmenter(server.grpc_url) as client:
        assert_same(client.segment(clip_THWC), local.segment(clip_THWC))
        server.stop(grace_seconds=0)  # a proper end takes three seconds
