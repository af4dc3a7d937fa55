"""AP of an engine and its source: measured, stored and shown, and the gate on it.

Nothing is written when the gate closes.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from pycocotools import mask as coco_mask
from support.media_files import with_exif
from support.toy_engine import CATEGORIES, COLOURS, write_toy_engine

import mssts.export.average_precision
import mssts.export.exporter
from mssts.cli import main
from mssts.data.moving_shapes import CATEGORIES as SHAPES
from mssts.data.moving_shapes import MovingShapesConfig, write_dataset
from mssts.errors import CheckFailed, MsstsError
from mssts.export.average_precision import NOT_MEASURED, ApGate, Scored, ap_lines
from mssts.export.existing import existing_export
from mssts.export.options import ExportOptions
from mssts.export.quantization.calibration import read_clips
from mssts.files import sha256
from mssts.manifest import Category, Manifest
from mssts.segmenters.local import LocalSegmenter

HEIGHT, WIDTH, FRAMES = 64, 128, 3


def write_rectangles(folder: Path, **changes: Any) -> Path:
    """One video of three rectangles that the toy engine finds exactly.

    They are red, green and blue. Returns the path of its JSON.
    """
    folder.mkdir(parents=True, exist_ok=True)
    annotations = []
    frames = np.zeros((FRAMES, HEIGHT, WIDTH, 3), np.uint8)
    for k, (category, colour) in enumerate(zip(CATEGORIES, COLOURS, strict=True)):
        rles = []
        for t in range(FRAMES):
            mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
            mask[8 * t + 8 : 8 * t + 24, 40 * k + 8 : 40 * k + 32] = 1
            frames[t][mask > 0] = colour
            rles.append({"size": [HEIGHT, WIDTH], "counts": coco_mask.encode(mask)["counts"].decode()})
        annotations.append({"id": k + 1, "video_id": 1, "category_id": category.id, "iscrowd": 0,
                            "segmentations": rles})  # fmt: skip
    names = [f"{t}.png" for t in range(FRAMES)]
    for name, frame in zip(names, frames, strict=True):
        cv2.imwrite(str(folder / name), frame[..., ::-1])
    video = {"id": 1, "height": HEIGHT, "width": WIDTH, "length": FRAMES, "file_names": names}
    value = {"videos": [video], "annotations": annotations,
             "categories": [{"id": category.id, "name": category.name} for category in CATEGORIES]}  # fmt: skip
    (folder / "instances.json").write_text(json.dumps({**value, **changes}))
    return folder / "instances.json"


@pytest.fixture(scope="module")
def rectangles(tmp_path_factory) -> Path:
    return write_rectangles(tmp_path_factory.mktemp("rectangles"))


@pytest.fixture(scope="module")
def right(tmp_path_factory) -> Path:
    return write_toy_engine(tmp_path_factory.mktemp("right")).parent


@pytest.fixture(scope="module")
def wrong(right, tmp_path_factory) -> Path:
    """An engine like the toy engine that confuses the colours.

    It takes red things for green ones, green for blue, and blue for red.
    """
    folder = tmp_path_factory.mktemp("wrong")
    shutil.copy(right / "model.onnx", folder)
    replace(Manifest.read(right), categories=CATEGORIES[1:] + CATEGORIES[:1]).write(folder)
    return folder


def test_the_ap_of_both_is_stored_and_shown(right, rectangles):
    checks, ran = ApGate(rectangles).measure(Scored("onnx", right), Scored("plan", right, "onnxruntime"), "")
    assert checks["ap"]["onnx"] == pytest.approx(checks["ap"]["plan"]) and checks["ap"]["onnx"] > 0.5
    assert checks["ap_data"] == "instances.json" and checks["ap_max_drop"] == 0.005
    assert ran[1]["name"] == "onnxruntime" and checks["ap_runners"]["plan"].startswith("onnxruntime ")
    (line,) = ap_lines(checks)
    ap = f"{100 * checks['ap']['onnx']:.2f}"
    assert f"AP on instances.json: {ap} in onnx, {ap} in plan; difference +0.00 (≥ -0.5); run by" in line


def test_images_turned_by_exif_are_scored_as_is_said(right, tmp_path):
    """Frames stored as annotated, with a tag that would turn them upside down."""
    data = write_rectangles(tmp_path)
    for frame in tmp_path.glob("*.png"):
        frame.write_bytes(with_exif(frame.read_bytes(), 3))
    with pytest.raises(MsstsError, match="has EXIF orientation 3"):
        ApGate(data).check_data(CATEGORIES)
    with pytest.raises(MsstsError, match="has EXIF orientation 3"):
        read_clips(data, Manifest.read(right), 1)
    models = Scored("onnx", right), Scored("plan", right, "onnxruntime")
    found = {}
    for exif in ("apply", "ignore"):
        gate = ApGate(data, 1.0, exif)
        gate.check_data(CATEGORIES)
        checks, _ = gate.measure(*models, "")
        assert gate.has_measured(checks) and not ApGate(data, 1.0).has_measured(checks)
        found[exif] = checks["ap"]["onnx"], read_clips(data, Manifest.read(right), 1, exif)[0][0]
    assert found["apply"][0] < 0.1 and found["ignore"][0] > 0.5
    np.testing.assert_array_equal(found["apply"][1], found["ignore"][1][:, :, ::-1, ::-1])


def test_the_gate_closes_on_an_engine_that_finds_less(right, wrong, rectangles):
    models = Scored("onnx", right), Scored("plan", wrong)
    with pytest.raises(CheckFailed, match=r"drops from [\d.]{5} to 0\.00, by more than 0\.5; nothing was written") as e:
        ApGate(rectangles).measure(*models, "Export it in fp32")
    assert str(e.value).endswith("Export it in fp32, or allow it with --max-ap-drop")
    assert "\n" not in str(e.value)
    checks, _ = ApGate(rectangles, max_drop=1).measure(*models, "")
    assert "0.00 in plan; difference -" in ap_lines(checks)[0] and "(≥ -100)" in ap_lines(checks)[0]
    # More than before is no drop; and where there was nothing, the figures say that they tell nothing.
    checks, _ = ApGate(rectangles, max_drop=0).measure(*reversed(models), "")
    assert "tell nothing" in ap_lines(checks)[1]


def test_an_ap_that_was_measured_is_of_the_same_data_and_within_the_bound(tmp_path, rectangles):
    gate = ApGate(rectangles)
    data = {"ap_data": rectangles.name, "ap_data_sha256": sha256(rectangles)}
    assert gate.has_measured({"ap": {"pytorch": 0.5, "onnx": 0.496}, **data})
    assert not gate.has_measured({"ap": {"pytorch": 0.5, "onnx": 0.49}, **data})
    assert not gate.has_measured({"ap": {"pytorch": 0.5, "onnx": 0.5}, **data, "ap_data_sha256": "0"})
    assert not gate.has_measured({})
    assert gate.is_of(gate.unmeasured("why")) and not gate.has_measured(gate.unmeasured("why"))
    assert not ApGate(tmp_path / "absent.json").has_measured({"ap": {"pytorch": 0.5, "onnx": 0.5}})


def test_data_that_score_nothing_are_told_at_once(tmp_path, rectangles):
    wrong = [
        (tmp_path / "absent.json", "absent.json: no such file"),
        (rectangles.parent / "0.png", "0.png"),
        (write_rectangles(tmp_path / "empty", annotations=[]), "no annotated objects"),
        (write_rectangles(tmp_path / "test split", annotations=None), "annotations"),
    ]
    missing = write_rectangles(tmp_path / "missing")
    (missing.parent / "1.png").unlink()
    for data, message in [*wrong, (missing, "1.png")]:
        with pytest.raises(MsstsError, match=message) as error:
            ApGate(data).check_data(CATEGORIES)
        assert "\n" not in str(error.value)
    ApGate(rectangles).check_data(CATEGORIES)
    ApGate(rectangles).check_data([replace(category, id=category.id + 10) for category in CATEGORIES])  # by name
    others = [replace(category, name=f"{category.name} fish") for category in CATEGORIES]
    with pytest.raises(MsstsError, match=r"is a class of the engine \(red fish, green fish, blue fish\)"):
        ApGate(rectangles).check_data(others)
    content = json.loads(rectangles.read_text())
    red = content["categories"][0]["id"]
    only_red = [entry for entry in content["annotations"] if entry["category_id"] == red]
    reds = write_rectangles(tmp_path / "reds", annotations=only_red)
    with pytest.raises(MsstsError, match=r"annotates no category of the model \(green, pink"):
        ApGate(reds).check_data([Category(1, "green"), Category(9, "pink")])
    with pytest.raises(MsstsError, match="--max-ap-drop is 200; expected 0 to 100"):
        ApGate(rectangles, 2.0)


class NoBf16(LocalSegmenter):
    """On a processor that has no bf16."""

    def __init__(self, model: Path, **options: Any) -> None:
        if Path(model).is_dir() and Manifest.read(model).precision != "float32":
            raise MsstsError(f"{model}/model.onnx: ONNX Runtime cannot load it")
        super().__init__(model, **options)


def test_a_precision_that_nothing_runs_here_is_no_failure(right, rectangles, tmp_path, monkeypatch):
    monkeypatch.setattr(mssts.export.average_precision, "LocalSegmenter", NoBf16)
    for precision in ("bf16", "fp32"):
        shutil.copytree(right, tmp_path / precision)
        replace(Manifest.read(right), precision=precision).write(tmp_path / precision)
    bf16, fp32 = (Scored("onnx", tmp_path / precision) for precision in ("bf16", "fp32"))
    checks, ran = ApGate(rectangles).measure(Scored("pytorch", right), bf16, "")
    assert "ap" not in checks and ran == []
    (line,) = ap_lines(checks)
    assert line == (
        f"AP on instances.json: {NOT_MEASURED}: no runner here takes bf16 (model.onnx: ONNX Runtime cannot load it)"
    )
    with pytest.raises(MsstsError, match="cannot load it"):  # what every machine runs
        ApGate(rectangles).measure(Scored("pytorch", right), fp32, "")


# --- mssts export --data, without the tracing and the parity report that take long ---


@pytest.fixture
def quick(exported, monkeypatch) -> list[str]:
    """The beginning of a command that exports the checkpoint again."""
    graph = onnx.load(exported[1] / "model.onnx")
    parity = Manifest.read(exported[1]).checks["parity"]
    monkeypatch.setattr(mssts.export.exporter, "export_graph", lambda *_: graph)
    monkeypatch.setattr(mssts.export.exporter, "_check", lambda *_: ({"parity": parity}, []))
    return ["export", str(exported[0])]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    config = MovingShapesConfig(width=80, height=64, length=6)
    return write_dataset(tmp_path_factory.mktemp("shapes") / "data", 2, 5, config, progress=False)


def fake_ap(pytorch: float, onnx_file: float):
    def average_precision(segmenter: Any, *_: Any) -> float:
        return pytorch if segmenter.describe()["name"] == "pytorch" else onnx_file

    return average_precision


@pytest.mark.parametrize("functions", [True, False])
def test_an_export_is_scored_against_its_checkpoint(exported, quick, shapes, tmp_path, capsys, functions):
    out = tmp_path / "engine"
    options = [] if functions else ["--no-functions"]
    assert main([*quick, "--data", str(shapes), "--out", str(out), *options]) == 0
    printed = capsys.readouterr().out
    checks = Manifest.read(out).checks
    assert set(checks["ap"]) == {"pytorch", "onnx"}
    # The same tracks but for rounding: random weights find next to nothing.
    assert checks["ap"]["onnx"] == pytest.approx(checks["ap"]["pytorch"], abs=1e-3)
    assert f"AP on {shapes.name}: {100 * checks['ap']['pytorch']:.2f} in pytorch, " in printed
    assert {run["name"] for run in Manifest.read(out).provenance["checked_with"]} >= {"pytorch"}
    # What was scored is what is written, but for the function bodies.
    assert sha256(out / "model.onnx") == Manifest.read(out).artefact_sha256
    assert len(onnx.load(out / "model.onnx").functions) == (2 if functions else 0)
    assert sorted(path.name for path in out.iterdir()) == ["manifest.json", "model.onnx"]


def test_figures_are_stored_and_decide_what_is_reused(
    exported, quick, shapes, rectangles, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(mssts.export.average_precision, "average_precision", fake_ap(0.5, 0.497))
    out = tmp_path / "engine"
    words = [*quick, "--data", str(shapes), "--out", str(out), "--reuse"]
    assert main(words) == 0
    shown = "AP on instances.json: 50.00 in pytorch, 49.70 in onnx; difference -0.30 (≥ -0.5); run by pytorch"
    assert shown in capsys.readouterr().out
    assert Manifest.read(out).checks["ap"] == {"pytorch": 0.5, "onnx": 0.497}
    assert main(words) == 0
    again = capsys.readouterr().out
    assert "kept" in again and shown in again
    for gate in (None, ApGate(shapes)):
        assert existing_export(exported[0], out, ExportOptions(), gate) == Manifest.read(out)
    for gate in (ApGate(shapes, 0.001), ApGate(rectangles)):
        assert existing_export(exported[0], out, ExportOptions(), gate) is None
    assert existing_export(exported[0], exported[1], ExportOptions(), ApGate(shapes)) is None


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ([], "Score it on more videos, or"),
        (["--top-k", "10"], "Export with a higher --top-k, or"),
        (["--precision", "fp16", "--shape", "1x2x64x80"], "Export in fp32 or without --shape, or"),
    ],
)
def test_an_export_that_loses_ap_is_not_written(quick, shapes, tmp_path, capsys, monkeypatch, options, hint):
    monkeypatch.setattr(mssts.export.average_precision, "average_precision", fake_ap(0.5, 0.49))
    out = tmp_path / "engine"
    words = [*quick, "--data", str(shapes), "--out", str(out), *options]
    assert main(words) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "drops from 50.00 to 49.00, by more than 0.5; nothing was written" in error
    assert f"{hint} allow it with --max-ap-drop" in error
    assert list(tmp_path.iterdir()) == []
    assert main([*words, "--max-ap-drop", "2"]) == 0
    assert Manifest.read(out).checks["ap_max_drop"] == 0.02


def test_wrong_data_are_told_before_the_export(exported, rectangles, tmp_path, capsys, monkeypatch):
    def reached(*_: Any) -> None:
        raise AssertionError("the long steps began")

    monkeypatch.setattr(mssts.export.exporter, "export_graph", reached)
    assert {category.id for category in SHAPES} > {category.id for category in CATEGORIES}
    cases = [
        ([str(exported[0]), "--data", "absent.json"], "absent.json: no such file"),
        ([str(exported[0]), "--data", "absent.json", "--reuse"], "absent.json: no such file"),
        ([str(exported[0]), "--data", str(rectangles), "--max-ap-drop", "-1"], "--max-ap-drop is -1"),
        (["--preset", "tiny", "--random-weights", "--data", str(rectangles)], "--random-weights find nothing"),
    ]
    renamed = tmp_path / "checkpoint.pt"
    renamed.symlink_to(exported[0])
    cases.append(([str(renamed), "--data", str(rectangles)], "a checkpoint as .safetensors or .pth"))
    for words, message in cases:
        assert main(["export", *words, "--out", str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
