"""Losses, matching and the discriminator."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.small_training import PRESET, SMALL, predict, target, trainer

from mssts.model.mssts_vis import MSSTSVIS
from mssts.training.batches import batches
from mssts.training.boxes import generalised_iou, to_corners
from mssts.training.criterion import Criterion, LossWeights
from mssts.training.discriminator import Discriminator, accuracy, as_drawn, duel_loss, foreground, verdict
from mssts.training.matcher import MatchCosts, match


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
    """A clip's losses do not depend on the size of its neighbours.

    The network, through which they could, is left out here."""
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
    """Drawn masks are as hard as true ones, and differ by a corner."""
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
    """Its gradient is that of its own loss, through the masks alone."""
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
    """After 200 joint steps it is above chance, and the masks get its gradient."""
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
