"""`mssts describe`: what it says of each kind of artefact, and of broken ones."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace

import pytest

pytest.importorskip("onnx")

from support.contract_graph import OUR_NODE, write_export
from support.plan import write_plan

from mssts.commands import describe as command
from mssts.data.moving_shapes import CATEGORIES
from mssts.errors import MsstsError
from mssts.manifest import Manifest

PROFILE = {"min": "1x1x64x64", "opt": "1x2x64x64", "max": "1x4x128x128"}


def run(*arguments: object) -> None:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    command.run(parser.parse_args([str(argument) for argument in arguments]))


def refusal(path) -> str:
    with pytest.raises(MsstsError) as error:
        run(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_an_export(tmp_path, capsys):
    export = write_export(tmp_path / "export")
    run(export, "--json", tmp_path / "out.json")
    found, printed = json.loads((tmp_path / "out.json").read_text()), capsys.readouterr().out
    assert found["kind"] == "ONNX graph" and found["opset"] == {"ai.onnx": 18, "mssts": 1}
    assert found["inputs"][0] == {"name": "frames", "dtype": "uint8", "shape": [1, 2, 64, 64, 3]}
    assert found["ops"] == {"MSDeformAttn": {"nodes": 1, "body": True}}
    assert set(found["kernels"]) == {"onnxruntime", "openvino"}
    assert found["memory"]["weights_bytes"]["float32"] == 4 * 3 * 4 * 4 * 4
    assert found["precision"] == "fp32" and found["shape"] == "1x2x64x64"
    assert found["bytes"] == (export / "model.onnx").stat().st_size
    for text in ("1 MSDeformAttn with body", "holds against PyTorch in fp64", "origin      weights model.safetensors"):
        assert text in printed
    run(export / "model.onnx")
    assert capsys.readouterr().out == printed


def test_a_graph_without_a_manifest(tmp_path, capsys):
    export = write_export(tmp_path)
    (export / "manifest.json").unlink()
    run(export / "model.onnx")
    printed = capsys.readouterr().out
    assert "no manifest beside it" in printed and "parity      not stated" in printed


def test_a_plan(tmp_path, capsys):
    plan = write_plan(tmp_path, profile=PROFILE, plugin_sha256="0" * 64)
    run(plan, "--json", tmp_path / "out.json")
    found, printed = json.loads((tmp_path / "out.json").read_text()), capsys.readouterr().out
    assert found["kind"] == "tensorrt plan" and found["profile"] == PROFILE
    assert found["ops"] == {OUR_NODE.rpartition("/")[2]: {"nodes": 2, "plugin": True}}
    assert "1x1x64x64 to 1x4x128x128, tuned for 1x2x64x64" in printed
    assert "tensorrt 11.1.0 on GPU A" in printed
    assert "tensorrt" in found["kernels"]


def test_a_checkpoint(tmp_path, capsys):
    pytest.importorskip("torch")
    from mssts.model.checkpoint import save_checkpoint
    from mssts.model.config import preset
    from mssts.model.random_weights import random_checkpoint

    path, loaded = tmp_path / "model.safetensors", random_checkpoint(preset("tiny"))
    weights = loaded.weights
    save_checkpoint(path, weights, loaded.preset, CATEGORIES)
    run(path, "--json", tmp_path / "out.json")
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["kind"] == "checkpoint" and found["classes"] == [category.name for category in CATEGORIES]
    assert found["parameters"] == sum(tensor.numel() for tensor in weights.values())
    assert "checkpoint" in capsys.readouterr().out


def test_what_is_broken_is_said_in_one_line(tmp_path):
    plan = write_plan(tmp_path / "plan", profile=PROFILE)
    plan.write_bytes(bytes(100))
    assert "truncated: 100 of 4096 bytes" in refusal(plan)
    plan.write_bytes(bytes(4095) + b"x")
    assert "SHA-256 differs" in refusal(plan) and "build it again" in refusal(plan)
    (plan.parent / "manifest.json").unlink()
    assert "no manifest.json" in refusal(plan)
    export = write_export(tmp_path / "export") / "model.onnx"
    whole = export.read_bytes()
    export.write_bytes(whole + b"\x00")
    assert "SHA-256 differs" in refusal(export) and "export it again" in refusal(export)
    replace(Manifest.read(export), artefact="another").write(export.parent)
    export.write_bytes(whole[: len(whole) // 2])
    assert "truncated" in refusal(export)
    export.write_bytes(b"")
    assert "not an ONNX file" in refusal(export)
    assert "no such file" in refusal(tmp_path / "none.onnx")
    other = tmp_path / "notes.txt"
    other.write_text("text")
    assert "expected a .onnx, a .plan, or a checkpoint as .safetensors or .pth" in refusal(other)
