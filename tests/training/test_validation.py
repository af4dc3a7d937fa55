"""Validation in the course of a training."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.small_training import CONFIG, PRESET, SMALL, trainer

from mssts.cli import main
from mssts.data.moving_shapes import CATEGORIES
from mssts.errors import MsstsError
from mssts.evaluation import evaluate
from mssts.model.checkpoint import load_checkpoint
from mssts.model.config import BASELINE
from mssts.prediction.results import RESULTS
from mssts.training.trainer import MODEL_FILE
from mssts.training.validation import BEST_FILE, VALIDATION_FILE, Validation

# With half the channels, and saved no more often than needed: these tests write many checkpoints.
HALF = replace(PRESET, model=replace(SMALL, backbone="resnet18_w32"))


def plain(shapes, out, **changes):
    return trainer(shapes, out, HALF, save_every=100, **changes)


def rows(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((out / VALIDATION_FILE).read_text().splitlines()))


def validated(shapes, out, **changes):
    run = plain(shapes, out, **changes)
    run.validation = Validation(shapes, CATEGORIES, out)
    return run


@pytest.fixture(scope="module")
def pair(shapes, tmp_path_factory):
    """A run with validation and the same without."""
    folder = tmp_path_factory.mktemp("runs")
    runs = []
    for make, name in ((validated, "with"), (plain, "without")):
        runs.append(make(shapes, folder / name))  # which seeds the random numbers
        runs[-1].train(progress=False)
    return runs


def test_validation_changes_no_weight(pair):
    a, b = (run.weights() for run in pair)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not (pair[1].out / VALIDATION_FILE).exists()


def test_each_epoch_is_a_row_and_the_figures_are_those_of_evaluate(pair, shapes):
    out = pair[0].out
    found = rows(out)
    assert [(row["epoch"], row["step"]) for row in found] == [("1", "2"), ("2", "4")]
    last = evaluate(shapes / "instances.json", out / "validation" / "shard-0-of-1" / RESULTS)
    assert float(found[-1]["ap"]) == pytest.approx(last.ap, abs=1e-6)
    events = b"".join(path.read_bytes() for path in (out / "tensorboard").iterdir())
    assert b"val/ap75" in events


def test_the_best_checkpoint_is_kept(shapes, tmp_path, monkeypatch):
    given = iter([0.2, 0.5, 0.3])
    monkeypatch.setattr(
        "mssts.training.validation.evaluate",
        lambda *a, real=evaluate: replace(real(*a), ap=next(given)),
    )
    run = validated(shapes, tmp_path, epochs=3)
    kept = {}
    real_save = run._write_checkpoint

    def write(path):
        real_save(path)
        kept[run.epoch] = load_checkpoint(path).weights

    monkeypatch.setattr(run, "_write_checkpoint", write)
    run.train(progress=False)
    best = load_checkpoint(tmp_path / BEST_FILE).weights
    assert all(torch.equal(best[name], kept[1][name]) for name in best)
    assert not all(torch.equal(best[name], kept[2][name]) for name in best)
    assert run.validation.best == (2, 0.5)


def test_a_run_killed_while_it_validates_does_so_again_when_resumed(pair, shapes, tmp_path, monkeypatch):
    class Killed(Exception):
        pass

    def kill(*_):
        raise Killed

    broken = validated(shapes, tmp_path)
    real = broken.validation.score
    monkeypatch.setattr(broken.validation, "score", lambda epoch, *a: real(epoch, *a) if epoch < 2 else kill())
    with pytest.raises(Killed):
        broken.train(progress=False)
    assert [row["epoch"] for row in rows(tmp_path)] == ["1"]
    resumed = validated(shapes, tmp_path)
    resumed.resume()
    resumed.train(progress=False)
    whole = pair[0]
    assert [row["ap"] for row in rows(tmp_path)] == [row["ap"] for row in rows(whole.out)]
    a, b = whole.weights(), resumed.weights()
    assert all(torch.equal(a[name], b[name]) for name in a)


def changed(shapes, tmp_path, change):
    content = json.loads((shapes / "instances.json").read_text())
    change(content)
    folder = tmp_path / "val"
    folder.mkdir()
    (folder / "JPEGImages").symlink_to(shapes / "JPEGImages")
    (folder / "instances.json").write_text(json.dumps(content))
    return folder


def test_other_classes_are_refused(shapes, tmp_path):
    folder = changed(shapes, tmp_path, lambda content: content["categories"][0].update(name="cube"))
    with pytest.raises(MsstsError, match=r"--val .*: has other classes than the training data .*cube"):
        Validation(folder, CATEGORIES, tmp_path)


def test_videos_without_annotations_are_refused(shapes, tmp_path):
    folder = changed(shapes, tmp_path, lambda content: content.update(annotations=[]))
    with pytest.raises(MsstsError, match=r"--val .*: has no annotations"):
        Validation(folder, CATEGORIES, tmp_path)


def test_switches_threads_and_validation_are_options(shapes, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("mssts.model.config.preset", lambda _: HALF)
    monkeypatch.setattr("mssts.training.config.recipe", lambda *_: replace(CONFIG, epochs=1, batch=4, save_every=100))
    threads = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    base = ["train", "--data", str(shapes), "--device", "cpu", "--threads", "1"]
    assert main([*base, "--out", str(tmp_path / "none"), "--val", str(shapes), "--switches"]) == 0
    assert "best AP" in capsys.readouterr().out
    assert threads[0] == 1
    assert load_checkpoint(tmp_path / "none" / MODEL_FILE).preset.model.switches == BASELINE
    some = ["--switches", "inter-scale", "discriminator"]
    assert main([*base, "--out", str(tmp_path / "some"), *some]) == 0
    expected = replace(BASELINE, inter_scale=True, discriminator=True)
    assert load_checkpoint(tmp_path / "some" / MODEL_FILE).preset.model.switches == expected
    assert main([*base, "--out", str(tmp_path / "some"), "--resume", "--switches"]) == 2
    assert "was trained with other switches; pass --switches inter-scale discriminator" in capsys.readouterr().err
    assert main([*base, "--out", str(tmp_path / "new"), "--threads", "0"]) == 2
    assert "--threads is 0; expected at least 1" in capsys.readouterr().err
