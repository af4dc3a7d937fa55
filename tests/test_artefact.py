"""A model on disk: opened and verified once, written whole or not at all."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mssts import artefact as artefact_module
from mssts.artefact import Artefact, Kind, is_checkpoint, unchanged, writing
from mssts.cli import main
from mssts.errors import MsstsError
from mssts.files import sha256
from mssts.manifest import Category, InputRule, Manifest
from mssts.runners import RUNNERS, load_engine, load_runner, runner_help, runners_of

MANIFEST = Manifest("tiny", "fp32", (Category(1, "disc"),), InputRule(64, 64), 2, 0, 4, "", "")


def write(out: Path, name: str = "model.onnx", content: bytes = b"graph", **others: bytes) -> Path:
    """An artefact of a file and others beside it.

    `model_onnx_data` stands for model.onnx.data.
    """
    with writing(out, name) as draft:
        draft.path.write_bytes(content)
        for other, data in others.items():
            (draft.folder / other.replace("_", ".")).write_bytes(data)
        draft.describe(MANIFEST)
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def refusal(path: Path) -> str:
    with pytest.raises(MsstsError) as error:
        Artefact.open(path)
    assert "\n" not in str(error.value)
    return str(error.value)


# --- opening ---


def test_a_folder_and_the_file_in_it_are_the_same_artefact(tmp_path):
    out = write(tmp_path / "engine", model_onnx_data=b"weights")
    opened = Artefact.open(out)
    assert opened == Artefact.open(out / "model.onnx") == Artefact.open(str(out)) == Artefact.open(opened)
    assert (opened.path, opened.kind) == (out / "model.onnx", Kind.ONNX)
    assert opened.described() == Manifest.read(out)
    assert opened.sha256 == opened.described().artefact_sha256 == sha256(out / "model.onnx")
    assert opened.described().companions == {"model.onnx.data": sha256(out / "model.onnx.data")}


def test_a_file_that_no_manifest_names_is_taken_as_it_is(tmp_path):
    out = write(tmp_path)
    other = out / "other.onnx"
    other.write_bytes(b"another graph")
    assert Artefact.open(other).manifest is None
    assert Artefact.open(other).sha256 == sha256(other)
    with pytest.raises(MsstsError, match=r"other\.onnx: manifest\.json beside it describes model\.onnx; keep a model"):
        Artefact.open(other).described()
    (out / "manifest.json").unlink()
    with pytest.raises(MsstsError, match=r"no manifest\.json beside it, so nothing says what it is; export it again"):
        load_engine(out / "model.onnx")


@pytest.mark.parametrize("name", ["model.safetensors", "model.pth"])
def test_a_checkpoint_needs_no_manifest(tmp_path, name):
    (tmp_path / name).write_bytes(b"weights")
    assert is_checkpoint(tmp_path / name) and not is_checkpoint(tmp_path / "model.onnx")
    assert Artefact.open(tmp_path / name).kind is Kind.CHECKPOINT


def test_what_is_no_model_is_said_in_one_line(tmp_path):
    for path in (tmp_path / "none", tmp_path / "none.onnx", tmp_path / "none.pth"):
        assert f"{path}: no such file or folder; expected a model.onnx" in refusal(path)
    (tmp_path / "notes").write_text("text")
    assert "notes: not a model of this project; expected a .onnx, a .plan" in refusal(tmp_path / "notes")
    (tmp_path / "empty").mkdir()
    assert "empty: a folder without manifest.json" in refusal(tmp_path / "empty")


@pytest.mark.parametrize("command", ["predict", "serve", "describe"])
def test_a_model_that_is_not_there_is_said_to_be_absent(tmp_path, capsys, command):
    frames = tmp_path / "frames"
    frames.mkdir()
    (frames / "0.png").write_bytes(
        bytes.fromhex(
            "89504e470d0a1a0a0000000d49484452000000010000000108020000"
            "00907753de0000000c4944415408d763f8ffff3f0005fe02fe0def46b80000000049454e44ae426082"
        )
    )
    words = {"predict": [str(frames), "--out", str(tmp_path / "out"), "--model"], "serve": ["--model"], "describe": []}
    assert main([command, *words[command], str(tmp_path / "nowhere")]) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path / 'nowhere'}: no such file or folder" in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_not_the_manifests_is_refused(tmp_path):
    out = write(tmp_path, model_onnx_data=b"weights")
    for name in ("model.onnx", "model.onnx.data"):
        whole = (out / name).read_bytes()
        (out / name).write_bytes(whole[:-1] + b"x")
        assert f"{out / name}: not the file that manifest.json describes" in refusal(out)
        assert unchanged(out) is None
        assert Artefact.find(out).path == out / "model.onnx"  # the runner will look
        (out / name).unlink()
        assert f"{out / name}: no such file, though manifest.json beside it names it" in refusal(out)
        (out / name).write_bytes(whole)
    assert unchanged(out) == Artefact.open(out)


def test_a_manifest_names_files_beside_it_alone(tmp_path):
    out = write(tmp_path / "engine")
    (tmp_path / "outside.onnx").write_bytes(b"graph")
    whole = json.loads((out / "manifest.json").read_text())
    for change in ({"artefact": "../outside.onnx"}, {"companions": {"../outside.onnx": "0"}}, {"artefact": ""}):
        (out / "manifest.json").write_text(json.dumps({**whole, **change}))
        assert "expected files beside it, without a folder" in refusal(out)


def test_manifests_from_before_the_field_runner_are_read(tmp_path):
    out = write(tmp_path)
    old = json.loads((out / "manifest.json").read_text())
    assert old.pop("runner") == "auto"
    (out / "manifest.json").write_text(json.dumps(old))
    assert Artefact.open(out).described().runner == "auto"


def test_loading_reads_the_manifest_once_and_each_file_once(tmp_path, monkeypatch):
    from support.toy_engine import write_toy_engine

    path = write_toy_engine(tmp_path)
    read: list[str] = []
    real_manifest, real_hash = Manifest.read, sha256
    monkeypatch.setattr(Manifest, "read", lambda folder: read.append("manifest") or real_manifest(folder))
    monkeypatch.setattr(artefact_module, "sha256", lambda file: read.append(Path(file).name) or real_hash(file))
    for model in (path, path.parent):
        load_engine(model, 1)
        assert read == ["manifest", "model.onnx"]
        read.clear()


# --- writing ---


def test_nothing_is_left_of_what_fails(tmp_path):
    before = contents(write(tmp_path / "engine", model_onnx_data=b"weights"))
    for out in (tmp_path / "engine", tmp_path / "new" / "deep"):
        for error in (OSError, KeyboardInterrupt, MsstsError):
            with pytest.raises(error), writing(out, "model.onnx") as draft:
                draft.path.write_bytes(b"another")
                draft.describe(MANIFEST)
                assert Artefact.open(draft.folder).path == draft.path  # for checks, before it is written
                raise error
    assert contents(tmp_path / "engine") == before
    assert [path.name for path in tmp_path.iterdir()] == ["engine"]


def test_the_manifest_is_the_last_that_is_put_in_place(tmp_path, monkeypatch):
    """The folder of a killed process holds one artefact or an obviously broken one.

    It may be killed at any time.
    """
    out = write(tmp_path / "engine")
    real, moved = Path.replace, []

    def stop(self, target):
        if moved:
            raise KeyboardInterrupt
        moved.append(self.name)
        return real(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", stop)
        with pytest.raises(KeyboardInterrupt), writing(out, "model.onnx") as draft:
            draft.path.write_bytes(b"another")
            draft.describe(MANIFEST)
            moved.clear()
    assert "not the file that manifest.json describes" in refusal(out)


def test_files_of_the_artefact_before_go_and_others_stay(tmp_path):
    out = write(tmp_path, model_onnx_data=b"weights")
    (out / "notes.txt").write_text("mine")
    write(out, content=b"all in one")
    assert set(contents(out)) == {"model.onnx", "manifest.json", "notes.txt"}
    assert Artefact.open(out).described().companions == {}
    # A plan beside an export takes its manifest, not its file.
    write(out, "model.plan", b"plan", layers_json=b"[]")
    write(out, "model.plan", b"plan")
    assert set(contents(out)) == {"model.onnx", "model.plan", "manifest.json", "notes.txt"}


def test_hashes_are_those_of_the_files_in_the_end(tmp_path):
    with writing(tmp_path / "out", "model.onnx") as draft:
        draft.path.write_bytes(b"first")
        first = draft.describe(MANIFEST)
        draft.path.write_bytes(b"second")
        second = draft.describe(replace(first, checks={"holds": True}))
    assert first.artefact_sha256 != second.artefact_sha256
    assert Artefact.open(tmp_path / "out").described() == second


def test_a_file_in_the_place_of_the_folder_is_told_before_anything_is_made(tmp_path):
    (tmp_path / "file").write_text("text")
    for out in (tmp_path / "file", tmp_path / "file" / "engine"):
        with pytest.raises(MsstsError, match=r"cannot be a folder to write to, as .*file is a file"), writing(out, "x"):
            raise AssertionError("the long steps began")


# --- the table of runners ---


def test_every_kind_has_runners_and_every_name_is_in_the_help():
    assert set(RUNNERS) == {
        "onnxruntime", "onnxruntime-cuda", "openvino", "pytorch", "pytorch-compiled", "tensorrt"
    }  # fmt: skip
    assert sorted(name for kind in Kind for name in runners_of(kind)) == sorted(RUNNERS)
    assert all(name in runner_help(*Kind) for name in RUNNERS)


def test_a_plan_is_not_run_by_others(tmp_path):
    out = write(tmp_path, "model.plan", b"plan")
    with pytest.raises(
        MsstsError, match=r"a TensorRT plan, which openvino does not run; expected one of: auto, tensor"
    ):
        load_runner(out, 1, "openvino")
    with pytest.raises(MsstsError, match=r"its manifest does not say how it was built; build it again"):
        load_runner(out)
