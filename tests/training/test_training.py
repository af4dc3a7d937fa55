"""Training: losses, matching, and runs that stop anywhere and go on."""

from __future__ import annotations

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.small_training import CONFIG, PRESET, SMALL, trainer

from mssts.cli import main
from mssts.data.clips import Clip, ClipDataset
from mssts.data.moving_shapes import CATEGORIES
from mssts.data.youtube_vis import read_youtube_vis
from mssts.errors import MsstsError
from mssts.manifest import Category
from mssts.model.checkpoint import load_checkpoint, save_checkpoint
from mssts.model.config import BASELINE, tiny
from mssts.training.batches import batches, collate
from mssts.training.config import TrainConfig, recipe
from mssts.training.metric_log import METRICS_FILE
from mssts.training.trainer import MODEL_FILE, STATE_FILE


def test_the_first_stages_of_a_backbone_can_stay_as_they_were_loaded(shapes, tmp_path):
    run = trainer(shapes, tmp_path, learning_rate=1e-2, ema_decay=0.0)
    before = {name: tensor.clone() for name, tensor in run.model.named_parameters()}
    run.train_step(next(batches(run.clips, 2, 0, 0, 0, 0)))
    moved = {name for name, tensor in run.model.named_parameters() if not torch.equal(tensor, before[name])}
    assert "backbone.layer2.0.conv1.weight" in moved
    assert not any(name.startswith(CONFIG.frozen) for name in moved)
    assert CONFIG.frozen  # the published recipe's


def rates(config: TrainConfig, steps_per_epoch: int) -> list[float]:
    return [config.learning_rate_factor(step, steps_per_epoch) for step in range(config.epochs * steps_per_epoch)]


def test_the_learning_rate_step_by_step(shapes, tmp_path):
    config = replace(CONFIG, epochs=4, lr_drops=(1, 3), warmup_steps=4)
    expected = [0.25, 0.5, 0.75, 1, 1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01, 0.01, 0.01]
    assert rates(config, 5) == pytest.approx(expected, rel=1e-12)
    run = trainer(shapes, tmp_path, epochs=2, lr_drops=(1,), warmup_steps=2, learning_rate=1e-3, backbone_factor=0.5)
    run.train(progress=False)
    table = list(csv.DictReader((tmp_path / METRICS_FILE).read_text().splitlines()))
    assert [float(row["learning_rate"]) for row in table] == pytest.approx([5e-4, 1e-3, 1e-4, 1e-4])
    # The optimiser has it, too: the last step's, by kind of parameter.
    assert [group["lr"] for group in run.optimiser.param_groups] == pytest.approx([0.5e-4, 0.1e-4, 1e-4])


def test_the_drops_of_the_rate_move_along_with_the_epochs():
    assert TrainConfig().with_epochs(24).lr_drops == (8, 20)
    assert rates(TrainConfig().with_epochs(3), 4) == pytest.approx([1] * 4 + [0.1] * 6 + [0.01] * 2)
    assert rates(recipe("tiny").with_epochs(1), 700)[-1] == pytest.approx(0.01)


@pytest.mark.parametrize("switched_on", [False, True])
def test_the_discriminator_is_a_switch(shapes, tmp_path, switched_on):
    run = trainer(
        shapes, tmp_path, replace(PRESET, model=replace(SMALL, switches=replace(BASELINE, discriminator=switched_on)))
    )
    metrics = run.train_step(next(batches(run.clips, 2, 0, 0, 0, 0)))
    assert ("adversarial" in metrics) == switched_on
    assert (run.adversary is not None) == switched_on


def test_a_batch_is_padded_at_the_bottom_and_the_right():
    def clip(h: int, w: int) -> Clip:
        frames = np.full((2, h, w, 3), 9, np.uint8)
        present = np.ones((1, 2), bool)
        boxes, masks = np.full((1, 2, 4), 0.5, np.float32), np.ones((1, 2, h, w), bool)
        return Clip(0, (0, 1), frames, np.zeros(1, np.int64), boxes, masks, present)

    batch = collate([clip(20, 30), clip(24, 17)])
    assert batch.frames_BTHWC.shape == (2, 2, 24, 32, 3)
    assert batch.sizes_B2.tolist() == [[20, 30], [24, 17]]
    assert (batch.frames_BTHWC[0, :, :20, :30] == 9).all()
    assert not batch.frames_BTHWC[0, :, 20:].any()
    assert batch.targets[1].masks_nTHW.sum() == 2 * 24 * 17


def test_each_epoch_sees_every_clip_in_an_order_of_its_own(shapes):
    clips = ClipDataset(read_youtube_vis(shapes / "instances.json"), CONFIG.transform, 2, 0)

    def frames(epoch: int, start: int = 0) -> list[bytes]:
        return [batch.frames_BTHWC.numpy().tobytes() for batch in batches(clips, 1, 0, epoch, start, 0)]

    assert len(frames(0)) == len(set(frames(0))) == len(clips)
    assert frames(0) == frames(0) != frames(1)
    assert frames(1, start=2) == frames(1)[2:]


def test_a_few_steps_on_one_clip_lower_every_kind_of_loss(shapes, tmp_path):
    # Without the discriminator, which pulls masks elsewhere: dice fell by 10 % on two threads, by over 20 % on one.
    alone = replace(PRESET, model=replace(SMALL, switches=replace(SMALL.switches, discriminator=False)))
    run = trainer(shapes, tmp_path, alone, learning_rate=2e-3, backbone_factor=1.0)
    batch = next(batches(run.clips, 2, 0, 0, 0, 0))
    losses = [run.train_step(batch) for _ in range(25)]
    for name in ("loss_ce", "loss_bbox", "loss_giou", "loss_dice"):
        assert losses[-1][name] < 0.8 * losses[0][name], name


def test_a_resumed_run_ends_with_the_weights_of_an_unbroken_one(shapes, tmp_path):
    whole = trainer(shapes, tmp_path / "whole")
    whole.train(progress=False)

    class Stopped(Exception):
        pass

    broken = trainer(shapes, tmp_path / "broken")
    step = broken.train_step

    def stop_in_the_second_epoch(batch):
        if broken.step == 3:
            raise Stopped
        return step(batch)

    broken.train_step = stop_in_the_second_epoch  # type: ignore[method-assign]
    with pytest.raises(Stopped):
        broken.train(progress=False)
    resumed = trainer(shapes, tmp_path / "broken")
    resumed.resume()
    assert resumed.step == 3
    resumed.train(progress=False)
    a, b = whole.weights(), resumed.weights()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    rows = [list(csv.reader((tmp_path / run / METRICS_FILE).read_text().splitlines())) for run in ("whole", "broken")]
    drop_time = [[row[:-1] for row in table] for table in rows]
    assert drop_time[0] == drop_time[1]
    assert [row[0] for row in rows[0]] == ["step", "1", "2", "3", "4"]


def test_the_checkpoint_holds_the_averaged_weights_and_the_classes(shapes, tmp_path, monkeypatch):
    run = trainer(shapes, tmp_path)
    run.train(progress=False)
    checkpoint = load_checkpoint(tmp_path / MODEL_FILE)
    assert checkpoint.categories == CATEGORIES
    assert checkpoint.preset.name == "tiny"
    for name, tensor in run.averaged.state_dict().items():
        if "num_batches_tracked" not in name:
            assert torch.equal(checkpoint.weights[name], tensor)


def test_what_a_killed_process_was_writing_is_removed(shapes, tmp_path):
    torn = [tmp_path / name for name in (".training_state.x.pt", ".model.x.safetensors", ".tmpAb3xYz")]
    for path in torn:
        path.write_bytes(b"half")
    trainer(shapes, tmp_path).train(progress=False)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_storing_halves_costs_their_rounding(tmp_path):
    torch.manual_seed(0)
    weights = {"a": torch.randn(100)}
    save_checkpoint(tmp_path / "x.safetensors", weights, tiny(), CATEGORIES, torch.float16)
    loaded = load_checkpoint(tmp_path / "x.safetensors").weights["a"]
    assert loaded.dtype == torch.float32
    assert ((loaded - weights["a"]).abs() <= weights["a"].abs() * 2**-11).all()


def test_resuming_what_does_not_fit_is_refused(shapes, tmp_path):
    run = trainer(shapes, tmp_path)
    with pytest.raises(MsstsError, match="nothing to resume"):
        run.resume()
    run.save()
    other = trainer(shapes, tmp_path, batch=1)
    with pytest.raises(MsstsError, match="batch 2, not 1"):
        other.resume()
    (tmp_path / STATE_FILE).write_bytes(b"torn")
    with pytest.raises(MsstsError, match="cannot be read"):
        run.resume()


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (tuple(reversed(CATEGORIES)), "in another order (class 0 is ring, was disc)"),
        ((*CATEGORIES, Category(6, "hexagon")), "with hexagon"),
        ((*CATEGORIES[:4], Category(5, "torus")), "without ring and with torus"),
        ((*CATEGORIES[:4], Category(7, "ring")), "with other ids (ring is 7, was 5)"),
    ],
)
def test_resuming_on_another_table_of_classes_is_refused(shapes, tmp_path, table, said):
    trainer(shapes, tmp_path).save()
    other = trainer(shapes, tmp_path, PRESET.with_classes(len(table)))
    other.categories = table
    with pytest.raises(MsstsError) as error:
        other.resume()
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "huge"], "unknown preset 'huge'; expected one of"),
        (["--epochs", "0"], "--epochs is 0; expected a number above 0"),
        (["--lr-drops", "5", "8"], "--lr-drops 5 8: expected ascending epochs between 0 and 7"),
        (["--stage", "pretrain"], "--stage pretrain is on images alone; leave --data out"),
        (["--device", "abacus"], "--device abacus: unknown"),
        (["--init", "nowhere.safetensors"], "nowhere.safetensors: no such file"),
    ],
)
def test_bad_arguments_are_one_line(shapes, tmp_path, capsys, arguments, message):
    out = tmp_path / "run"
    assert main(["train", "--data", str(shapes), "--out", str(out), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_workers_and_the_arithmetic_are_options(shapes, tmp_path, monkeypatch):
    """Other processes load the same clips.

    Without bfloat16 the weights are others.
    """
    monkeypatch.setattr("mssts.model.config.preset", lambda _: PRESET)
    monkeypatch.setattr("mssts.training.config.recipe", lambda *_: replace(CONFIG, epochs=1, batch=4))
    monkeypatch.setattr("mssts.training.command._has_fast_bfloat16", lambda device: True)
    runs = {"mixed": [], "plain": ["--no-amp"], "workers": ["--no-amp", "--workers", "1"]}
    for name, flags in runs.items():
        words = ["train", "--data", str(shapes), "--out", str(tmp_path / name), "--device", "cpu", *flags]
        assert main(words) == 0
    mixed, plain, workers = (load_checkpoint(tmp_path / name / MODEL_FILE).weights for name in runs)
    assert all(torch.equal(plain[name], workers[name]) for name in plain)
    assert not all(torch.equal(plain[name], mixed[name]) for name in plain)


def test_a_run_is_not_overwritten(shapes, tmp_path, capsys):
    trainer(shapes, tmp_path).save()
    assert main(["train", "--data", str(shapes), "--out", str(tmp_path)]) == 2
    assert "pass --resume" in capsys.readouterr().err


def test_a_missing_image_stops_training_before_it_starts(shapes, tmp_path, capsys):
    import shutil

    copy = tmp_path / "data"
    shutil.copytree(shapes, copy)
    victim = sorted(copy.rglob("*.jpg"))[3]
    victim.unlink()
    assert main(["train", "--data", str(copy), "--out", str(tmp_path / "run")]) == 2
    assert victim.name in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
