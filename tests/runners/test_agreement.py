"""Two engines' answers: which instances are the same, and how far they are apart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mssts.runners.agreement import Agreement, match, out_of_bounds
from mssts.runners.base import EngineOutput


def answer(seed: int = 0, clips: int = 1) -> EngineOutput:
    rng = np.random.default_rng(seed)
    return EngineOutput(
        scores=-np.sort(-rng.random((clips, 4), np.float32)),
        labels=np.tile(np.arange(4, dtype=np.int32), (clips, 1)),
        boxes=rng.random((clips, 4, 2, 4), np.float32),
        mask_logits=rng.normal(size=(clips, 4, 2, 8, 8)).astype(np.float32),
    )


def in_order(output: EngineOutput, order: list[int]) -> EngineOutput:
    return EngineOutput(*(values[:, order] for values in vars(output).values()))


def test_another_order_of_the_same_instances_is_no_difference():
    reference = answer(clips=2)
    agreement = Agreement.of(reference, in_order(reference, [1, 0, 3, 2]))
    assert agreement.rows.tolist() == [[1, 0, 3, 2]] * 2
    assert agreement.summary() == {"compared": 1.0, "scores": 0.0, "boxes": 0.0, "masks": 0.0}
    assert agreement.labels_equal
    assert out_of_bounds(agreement.summary(), "fp32") == ""


def test_each_instance_is_paired_once_with_the_nearest_of_its_label():
    reference = answer()
    one = replace(reference, labels=np.zeros_like(reference.labels), boxes=np.zeros_like(reference.boxes))
    near = replace(one, scores=one.scores + np.array([[0.01, 0, 0, 0]], np.float32))
    assert sorted(match(one, near, np.inf)[0]) == [0, 1, 2, 3]
    # One of four has another label, and one is elsewhere.
    other = replace(reference, labels=reference.labels.copy(), boxes=reference.boxes.copy())
    other.labels[0, 1], other.boxes[0, 2] = 9, other.boxes[0, 2] + 0.5
    assert match(reference, other).tolist() == [[0, -1, -1, 3]]
    assert match(reference, other, np.array([[1, 1, 1, 0]])).tolist() == [[0, -1, 2, -1]]
    assert Agreement.of(reference, other).compared == 0.5


def test_differences_are_those_of_the_pairs():
    reference = answer()
    moved = in_order(replace(reference, boxes=reference.boxes + np.float32(0.03)), [3, 2, 1, 0])
    agreement = Agreement.of(reference, moved)
    np.testing.assert_allclose(agreement.difference("boxes"), 0.03, atol=4 * np.finfo(np.float32).eps)
    assert not agreement.difference("mask_logits").any()


def test_masks_are_compared_over_a_clip_and_empty_ones_left_out():
    reference = answer()
    logits = np.full((1, 4, 2, 8, 8), -1, np.float32)
    logits[0, :3, 0, :4] = 1  # 32 pixels of one frame
    found = logits.copy()
    found[0, 1, 1, 0] = 1  # 8 more in the other frame
    found[0, 2] *= -1  # everything but those
    agreement = Agreement.of(replace(reference, mask_logits=logits), replace(reference, mask_logits=found))
    assert agreement.mask_ious.tolist() == [1, pytest.approx(32 / 40), 0]
    assert agreement.mask_overlap == (32 + 32, 32 + 40 + 128)  # the third: 32 against all the rest of 128


def test_other_instances_and_nan_are_out_of_bounds():
    reference = answer()
    others = Agreement.of(reference, replace(reference, labels=reference.labels + 9))
    assert others.pairs == 0 and "0%" in out_of_bounds(others.summary(), "bf16")
    for name in ("scores", "boxes", "mask_logits"):
        broken = replace(reference, **{name: getattr(reference, name) * np.nan})
        assert out_of_bounds(Agreement.of(reference, broken).summary(), "bf16"), name


@pytest.mark.parametrize(("precision", "bound"), [("fp32", 1e-3), ("fp16", 5e-2 / 8), ("bf16", 5e-2)])
def test_a_precision_has_its_bounds(precision, bound):
    reference = answer()
    for factor, refused in ((0.9, False), (1.1, True)):
        moved = replace(reference, boxes=reference.boxes + np.float32(factor * bound))
        assert bool(out_of_bounds(Agreement.of(reference, moved).summary(), precision)) is refused


def test_an_instance_that_rounding_replaced_is_no_difference():
    """The K-th is another query's, near by chance, at a score within the rounding."""
    reference = answer()
    scores = reference.scores.copy()
    scores[0] = 0.9, 0.8, 0.52, 0.5
    reference = replace(reference, scores=scores)
    for row, refused in ((3, False), (2, False), (1, True)):
        boxes = reference.boxes.copy()
        boxes[0, row] += np.float32(0.097)
        agreement = Agreement.of(reference, replace(reference, boxes=boxes), precision="bf16")
        assert agreement.compared == (1 if refused else 0.75)
        assert bool(out_of_bounds(agreement.summary(), "bf16")) is refused
