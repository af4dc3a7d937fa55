"""Masks and boxes against a dense float64 reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from mssts.runners.base import EngineOutput
from mssts.segmenters.base import Instances
from mssts.segmenters.postprocessing import to_instances


def engine_output(
    mask_logits_Thw: np.ndarray, boxes: object = (0.5, 0.5, 1.0, 1.0), scores: object = (0.9,)
) -> EngineOutput:
    """One clip in which every instance has the same masks and boxes."""
    scores_K = np.array(scores, np.float32)
    K, T = len(scores_K), len(mask_logits_Thw)
    return EngineOutput(
        scores=scores_K[None],
        labels=np.arange(K, dtype=np.int32)[None],
        boxes=np.broadcast_to(np.array(boxes, np.float32), (1, K, T, 4)),
        mask_logits=np.broadcast_to(mask_logits_Thw.astype(np.float32), (1, K, *mask_logits_Thw.shape)),
    )


def decoded(found: Instances, instance: int = 0) -> np.ndarray:
    """Masks [T, H, W] of an instance, false where it has none."""
    return np.stack([
        np.zeros(found.size, bool) if rle is None
        else coco_mask.decode({"size": list(found.size), "counts": rle}).astype(bool)
        for rle in found.rles[instance]
    ])  # fmt: skip


def interpolation_matrix(pixels: int, valid: int) -> np.ndarray:
    """Row y holds the weights of the logits at pixel y.

    It is the definition written out, in float64.
    """
    logits = -(-valid // 4)
    matrix = np.zeros((pixels, logits))
    for y in range(pixels):
        place = ((y + 0.5) * valid / pixels - 2) / 4  # logit i is centred at 4i + 2 of the engine's frame
        place = min(max(place, 0), logits - 1)
        lower = int(place)
        matrix[y, lower] += 1 - (place - lower)
        matrix[y, min(lower + 1, logits - 1)] += place - lower
    return matrix


def reference(logits_hw: np.ndarray, valid: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    rows, columns = (interpolation_matrix(pixels, side) for pixels, side in zip(size, valid, strict=True))
    return rows @ logits_hw[: rows.shape[1], : columns.shape[1]].astype(np.float64) @ columns.T > 0


def smooth_noise(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Logits with areas, holes and specks, both signs everywhere."""
    noise = rng.normal(size=shape)
    for axis in (-2, -1):
        for _ in range(int(rng.integers(0, 4))):
            noise = noise + np.roll(noise, 1, axis)
    return (noise - rng.normal() * noise.std()).astype(np.float32)


sides = st.integers(1, 100)


@settings(max_examples=200, deadline=None)
@given(st.tuples(sides, sides), st.tuples(sides, sides), st.integers(0, 2**32 - 1))
def test_masks_equal_a_dense_float64_interpolation(valid: tuple[int, int], size: tuple[int, int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    # Padding beyond the valid size holds logits too, which must not leak in.
    h, w = (-(-side // 8) * 2 + int(rng.integers(0, 3)) for side in valid)
    logits_Thw = smooth_noise(rng, 2, h, w)
    found = to_instances(engine_output(logits_Thw), np.array([valid], np.int32), size)
    for t in range(2):
        expected = reference(logits_Thw[t], valid, size)
        np.testing.assert_array_equal(decoded(found)[t], expected)
        if not expected.any():
            assert found.rles[0][t] is None
        else:  # the bytes too: one mask has one encoding
            assert found.rles[0][t] == coco_mask.encode(np.asfortranarray(expected.astype(np.uint8)))["counts"]


@pytest.mark.parametrize("size", [(360, 640), (211, 333), (50, 90), (47, 1280), (1, 1)])
def test_masks_equal_torch_interpolate(size: tuple[int, int]) -> None:
    logits_Thw = smooth_noise(np.random.default_rng(1), 3, 32, 56)
    found = to_instances(engine_output(logits_Thw), np.array([[128, 224]], np.int32), size)
    upsampled = torch.nn.functional.interpolate(
        torch.from_numpy(logits_Thw)[None].double(), size, mode="bilinear", align_corners=False
    )
    np.testing.assert_array_equal(decoded(found), (upsampled[0] > 0).numpy())


def test_masks_that_fill_touch_and_leave_the_frame() -> None:
    logits_Thw = np.full((4, 8, 8), -1.0)
    logits_Thw[0] = 1  # all of it
    logits_Thw[1, :, 4:] = 1  # the right half
    logits_Thw[2, 4:] = 1  # the lower half
    found = to_instances(engine_output(logits_Thw), np.array([[32, 32]], np.int32), (32, 32))
    masks_THW = decoded(found)
    assert masks_THW[0].all()
    expected = np.zeros((32, 32), bool)
    expected[:, 16:] = True
    np.testing.assert_array_equal(masks_THW[1], expected)
    np.testing.assert_array_equal(masks_THW[2], expected.T)
    assert found.rles[0][3] is None


def test_a_mask_between_the_pixels_of_a_smaller_frame_is_none() -> None:
    logits_Thw = np.full((1, 64, 64), -1.0)
    logits_Thw[0, 3, 3] = 0.5
    found = to_instances(engine_output(logits_Thw), np.array([[256, 256]], np.int32), (16, 16))
    assert found.rles == ((None,),)


def test_boxes_are_pixels_of_the_sent_frames_and_clipped() -> None:
    boxes = [[(0.5, 0.5, 0.5, 0.25), (0.0, 1.0, 0.5, 0.5)]]
    found = to_instances(engine_output(np.ones((2, 8, 16)), boxes), np.array([[32, 64]], np.int32), (100, 200))
    np.testing.assert_allclose(found.boxes[0], [[50, 37.5, 150, 62.5], [0, 75, 50, 100]], rtol=1e-6)
    assert found.boxes.dtype == np.float32
    assert found.size == (100, 200)


def test_the_threshold_keeps_what_is_at_or_above_it() -> None:
    output = engine_output(np.ones((1, 8, 8)), scores=(0.75, 0.5, 0.25))
    sizes_B2 = np.array([[32, 32]], np.int32)
    found = to_instances(output, sizes_B2, (32, 32), score_threshold=0.5)
    assert found.scores.tolist() == [0.75, 0.5]
    assert found.labels.tolist() == [0, 1]
    assert len(found.rles) == 2
    nothing = to_instances(output, sizes_B2, (32, 32), score_threshold=0.8)
    assert len(nothing) == 0
    assert nothing.boxes.shape == (0, 1, 4)
    assert nothing.rles == ()


def test_each_clip_of_a_batch_has_its_own_valid_size() -> None:
    rng = np.random.default_rng(2)
    clips = [smooth_noise(rng, 1, 16, 16) for _ in range(2)]
    batch = EngineOutput(
        scores=np.full((2, 1), 0.5, np.float32),
        labels=np.zeros((2, 1), np.int32),
        boxes=np.zeros((2, 1, 1, 4), np.float32),
        mask_logits=np.stack(clips)[:, None],
    )
    sizes_B2 = np.array([[64, 64], [40, 52]], np.int32)
    for clip, valid in enumerate(((64, 64), (40, 52))):
        found = to_instances(batch, sizes_B2, (80, 104), clip=clip)
        np.testing.assert_array_equal(decoded(found)[0], reference(clips[clip][0], valid, (80, 104)))
