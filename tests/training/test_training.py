"""Training: the losses, the matching, and that a run can stop anywhere and go on as if it had not."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mssts.cli import main
from mssts.data.clips import Clip, ClipDataset, ClipTransform
from mssts.data.moving_shapes import CATEGORIES, MovingShapesConfig, write_dataset
from mssts.data.youtube_vis import read_youtube_vis
from mssts.errors import MsstsError
from mssts.manifest import Category
from mssts.model.checkpoint import load_checkpoint, save_checkpoint
from mssts.model.config import BASELINE, Preset, tiny
from mssts.model.mssts_vis import MSSTSVIS
from mssts.training.batches import batches, collate
from mssts.training.boxes import generalised_iou, to_corners
from mssts.training.config import TrainConfig, recipe
from mssts.training.criterion import Criterion, LossWeights
from mssts.training.discriminator import Discriminator, accuracy, as_drawn, duel_loss, foreground, verdict
from mssts.training.matcher import MatchCosts, Target, match
from mssts.training.metric_log import METRICS_FILE
from mssts.training.trainer import MODEL_FILE, STATE_FILE, Trainer

SMALL = replace(
    tiny().model, width=32, heads=2, ffn_width=32, queries=5, encoder_layers=1, decoder_layers=2, split_width=16,
    temporal_width=16, dropout=0.1,
)  # fmt: skip
PRESET = Preset("tiny", SMALL, tiny().input, clip_frames=2, clip_overlap=1, top_k=4)
CONFIG = TrainConfig(
    epochs=2,
    batch=2,
    clip_frames=2,
    transform=ClipTransform((48,), 64),
    lr_drops=(1,),
    ema_decay=0.9,
    save_every=1,
)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shapes"
    write_dataset(folder, 4, 0, MovingShapesConfig(width=64, height=48, length=4), progress=False)
    return folder


def trainer(shapes: Path, out: Path, preset: Preset = PRESET, **changes: object) -> Trainer:
    clips = ClipDataset(read_youtube_vis(shapes / "instances.json"), CONFIG.transform, CONFIG.clip_frames, 0)
    return Trainer(preset, replace(CONFIG, **changes), clips, CATEGORIES, out, torch.device("cpu"), 0, amp=False)


def target(n: int, T: int, H: int = 32, W: int = 32, seed: int = 0) -> Target:
    gen = torch.Generator().manual_seed(seed)
    boxes = torch.rand(n, T, 4, generator=gen) * 0.4 + 0.2
    masks = torch.rand(n, T, H, W, generator=gen) > 0.5
    return Target(torch.arange(n), boxes, torch.ones(n, T, dtype=torch.bool), masks)


def predict(model: MSSTSVIS, B: int, T: int):
    frames = torch.randn(B, T, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    return model(frames, torch.tensor([[32, 32]] * B, dtype=torch.int32))


def test_generalised_iou_of_known_boxes():
    a = torch.tensor([0.0, 0.0, 2.0, 2.0])
    b = torch.tensor([1.0, 1.0, 3.0, 3.0])
    assert generalised_iou(a, a).item() == pytest.approx(1)
    assert generalised_iou(a, b).item() == pytest.approx(1 / 7 - 2 / 9)
    assert generalised_iou(a, a + 10).item() == pytest.approx(-(144 - 8) / 144)
    assert torch.equal(to_corners(torch.tensor([2.0, 3.0, 2.0, 4.0])), torch.tensor([1.0, 1.0, 3.0, 5.0]))


def test_matching_finds_the_queries_that_are_right():
    wanted = target(2, 3)
    logits = torch.full((5, 4), -4.0)
    boxes = torch.full((3, 5, 4), 0.9)
    for query, instance in ((3, 0), (1, 1)):
        logits[query, wanted.labels_n[instance]] = 4.0
        boxes[:, query] = wanted.boxes_nT4[instance]
    # Of two clips and two layers, of which the second has the queries in reverse; the first clip has no instance.
    found = match(
        [torch.stack((x, x)) for x in (logits, logits.flip(0))],
        [torch.stack((x, x)) for x in (boxes, boxes.flip(1))],
        [target(0, 3), wanted],
        MatchCosts(),
    )
    for pairs, expected in zip(found, ({3: 0, 1: 1}, {1: 0, 3: 1}), strict=True):
        assert dict(zip(pairs.query_n.tolist(), pairs.instance_n.tolist(), strict=True)) == expected
        assert pairs.clip_n.tolist() == [1, 1]
        assert pairs.slot_n.tolist() == [0, 1]


def test_a_frame_without_the_instance_says_nothing_of_its_box():
    torch.manual_seed(0)
    model = MSSTSVIS(replace(SMALL, dropout=0.0)).eval()
    prediction = predict(model, 1, 3)
    present = torch.tensor([[True, False, True], [True, True, True]])
    a = replace(target(2, 3), present_nT=present)
    boxes = a.boxes_nT4.clone()
    boxes[0, 1] = 0  # as the data set writes an absent box
    terms_a = Criterion()(model, prediction, [a]).terms
    terms_b = Criterion()(model, prediction, [replace(a, boxes_nT4=boxes)]).terms
    assert {k: v.item() for k, v in terms_a.items()} == {k: v.item() for k, v in terms_b.items()}


def test_padding_changes_no_loss():
    """A clip's losses do not depend on the size of its neighbours, but through the network, which is left out here."""
    torch.manual_seed(0)
    model = MSSTSVIS(replace(SMALL, dropout=0.0)).eval()
    prediction = predict(model, 1, 3)
    narrow = replace(prediction, sizes_B2=torch.tensor([[24, 16]], dtype=torch.int32))
    logits = torch.randn(1, 2, 3, 8, 8, generator=torch.Generator().manual_seed(1))

    class Drawn:
        """Masks that are given, of the size asked for."""

        def __init__(self, height: int, width: int, beyond: float) -> None:
            self.logits = torch.full((1, 2, 3, height, width), beyond)
            self.logits[..., :6, :4] = logits[..., :6, :4]

        def masks(self, *_: object) -> torch.Tensor:
            return self.logits

    found = []
    for H, W, beyond in ((24, 16, 0.0), (32, 32, -3.0), (40, 24, 5.0)):
        small, large = target(2, 3, 24, 16), torch.zeros(2, 3, H, W, dtype=torch.bool)
        large[..., :24, :16] = small.masks_nTHW
        clip = replace(small, masks_nTHW=large)
        found.append(Criterion()(Drawn(H // 4, W // 4, beyond), narrow, [clip]).terms)  # type: ignore[arg-type]
    for terms in found[1:]:
        for name, term in found[0].items():
            assert terms[name].item() == pytest.approx(term.item(), rel=1e-6), name


@pytest.mark.parametrize("counts", [(0, 2), (0, 0)])
def test_clips_without_instances_teach_the_classes_alone(counts):
    torch.manual_seed(0)
    model = MSSTSVIS(SMALL).train()
    losses = Criterion()(model, predict(model, 2, 2), [target(n, 2) for n in counts])
    total = losses.total(LossWeights())
    total.backward()
    assert total.isfinite()
    assert losses.terms["loss_ce"] > 0
    if not any(counts):
        assert losses.terms["loss_bbox"] == losses.terms["loss_dice"] == 0


def test_foreground_is_the_union_of_a_clips_masks():
    masks = torch.zeros(3, 1, 2, 2)
    masks[0, 0, 0, 0], masks[1, 0, 0, 1], masks[2, 0, 1, 1] = 0.7, 0.4, 0.9
    union = foreground(masks, torch.tensor([0, 0, 2]), 3)
    assert torch.equal(union[0, 0], torch.tensor([[0.7, 0.4], [0, 0]]))
    assert not union[1].any()
    assert union[2, 0, 1, 1] == torch.tensor(0.9)


def squares(n: int, side: int, size: int = 16) -> torch.Tensor:
    masks = torch.zeros(n, 1, size, size)
    masks[:, :, 4 : 4 + side, 4 : 4 + side] = 1
    return masks


def test_the_discriminator_tells_masks_by_their_shape():
    """Drawn masks are as hard as true ones; they differ by a corner."""
    torch.manual_seed(0)
    judge = Discriminator(8)
    optimiser = torch.optim.Adam(judge.parameters(), 2e-3)
    images, features = torch.rand(4, 3, 64, 64), [torch.randn(4, 8, side, side) for side in (8, 4, 2)]
    true, drawn = squares(4, 8), squares(4, 8)
    drawn[:, :, 9:, 9:] = 0
    drawn = as_drawn(drawn * 0.9)
    sizes = torch.tensor([[64, 64]] * 4), (64, 64)
    for _ in range(40):
        real, fake = (verdict(judge(images, features, mask), *sizes) for mask in (true, drawn))
        optimiser.zero_grad()
        duel_loss(real, fake).backward()
        optimiser.step()
    assert accuracy(real, fake) == 1
    assert accuracy(fake, real) == 0
    assert accuracy(real, real) == 0.5
    assert duel_loss(real, fake) < 0.1


def test_evidence_in_the_padding_does_not_count():
    sizes = torch.tensor([[64, 32]])
    maps = [torch.full((1, 1, side, side), 2.0) for side in (8, 4, 2)]
    before = verdict(maps, sizes, (64, 64))
    for evidence in maps:
        evidence[..., evidence.shape[-1] // 2 :] = -9.0
    assert torch.equal(verdict(maps, sizes, (64, 64)), before)
    assert verdict(maps, torch.tensor([[64, 64]]), (64, 64)) < 0 < before


def test_drawn_masks_are_hard_and_pass_the_gradient_of_soft_ones():
    probability = torch.tensor([0.2, 0.5, 0.7], requires_grad=True)
    drawn = as_drawn(probability)
    assert torch.equal(drawn.detach(), torch.tensor([0.0, 0.0, 1.0]))
    (drawn * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert torch.equal(probability.grad, torch.tensor([1.0, 2.0, 3.0]))


def test_the_adversarial_loss_changes_masks_and_sees_features_of_three_scales(shapes, tmp_path):
    """Its gradient is that of the loss it names, through the masks alone, beside that of the other losses."""
    batch = next(batches(trainer(shapes, tmp_path).clips, 2, 0, 0, 0, 0))

    def gradients(weight: float) -> dict[str, torch.Tensor]:
        run = trainer(shapes, tmp_path, replace(PRESET, model=replace(SMALL, dropout=0.0)), adversarial=weight,
                      clip_norm=1e9)  # fmt: skip
        metrics = run.train_step(batch)
        assert (metrics["adversarial_share"] > 0) == (weight > 0)
        return {name: p.grad for name, p in run.model.named_parameters() if p.grad is not None}

    none, one, two = (gradients(weight) for weight in (0.0, 20.0, 40.0))
    for name in ("mask_head.controller.layers.0.weight", "encoder.layers.0.linear1.weight"):
        assert (one[name] - none[name]).norm() > 1e-5 * none[name].norm(), name
        torch.testing.assert_close(two[name] - none[name], 2 * (one[name] - none[name]), rtol=1e-2, atol=1e-4)
    assert torch.equal(one["class_embed.1.weight"], none["class_embed.1.weight"])
    judge = Discriminator(8)
    features = [torch.randn(1, 8, side, side, requires_grad=True) for side in (8, 4, 2)]
    verdict(judge(torch.rand(1, 3, 64, 64), features, squares(1, 8)), torch.tensor([[64, 64]]), (64, 64)).backward()
    assert all(feature.grad is not None and feature.grad.any() for feature in features)


def test_the_discriminator_lives_in_joint_training(shapes, tmp_path):
    """After 200 joint steps it is above chance, and the masks get more than nothing of its gradient."""
    run = trainer(shapes, tmp_path, epochs=200, batch=1, lr_drops=(), learning_rate=5e-4, frozen=(),
                  backbone_factor=1.0, warmup_steps=50, ema_decay=0.0)  # fmt: skip
    found = []
    while len(found) < 200:
        found += [run.train_step(batch) for batch in run._batches()]
        run.epoch += 1
    late = found[150:]
    assert np.mean([metrics["discriminator_accuracy"] for metrics in late]) > 0.55
    assert np.mean([metrics["adversarial_share"] for metrics in late]) > 0.01
    assert np.mean([metrics["loss"] for metrics in late]) < 0.8 * np.mean([metrics["loss"] for metrics in found[:50]])


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
    run = trainer(shapes, tmp_path, learning_rate=2e-3, backbone_factor=1.0)
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
