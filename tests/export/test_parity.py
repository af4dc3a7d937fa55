"""The verdict of the parity gate, on engines whose rounding is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mssts.export.parity import Case, measure
from mssts.runners.base import EngineOutput, Runner

K, T, SIDE = 10, 4, 24
NOISE = 1.7  # rms of mask logits in bf16 where their spread is 30, as R50 with random weights has it
CASES = [
    Case(f"case {n}", np.zeros((1, T, SIDE * 4, SIDE * 4, 3), np.uint8), np.array([[SIDE * 4] * 2], np.int32))
    for n in range(2)
]


def truth() -> list[np.ndarray]:
    """Ten instances far apart.

    The mask of the last is a handful of pixels that are hardly positive.
    """
    rng = np.random.default_rng(7)
    scores = np.linspace(0.9, 0.3, K)[None]
    labels = np.arange(K, dtype=np.int32)[None]
    boxes = np.tile(np.linspace(0.1, 0.9, K)[None, :, None, None], (1, 1, T, 4))
    y, x = np.mgrid[:SIDE, :SIDE]
    logits = np.stack([30 * (1 - np.hypot(y - 3 - 2 * k, x - 12) / 6) for k in range(K)])
    logits = np.tile(logits[None, :, None], (1, 1, T, 1, 1))
    logits[0, -1] = -20
    logits[0, -1, :, 10, 8:12] = rng.uniform(0.2, 1, (T, 4))
    return [scores, labels, boxes, logits]


def rounded(seed: int, noise: float = NOISE) -> list[np.ndarray]:
    """The truth as an engine rounds it.

    Every seed is another engine, and all are equally good.
    """
    rng = np.random.default_rng(seed)
    scores, labels, boxes, logits = truth()
    scores = scores + noise * 1e-3 * rng.normal(size=scores.shape)
    boxes = boxes + noise * 2e-4 * rng.normal(size=boxes.shape)
    logits = logits + noise * rng.normal(size=logits.shape)
    return [
        array.astype(np.int32 if array.dtype == np.int32 else np.float32) for array in (scores, labels, boxes, logits)
    ]


class Network(nn.Module):
    """PyTorch's side: exact in fp64, rounded in fp32."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, frames: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        exact = self.weight.dtype == torch.float64
        return tuple(torch.from_numpy(array) for array in (truth() if exact else rounded(self.seed)))


class Engine(Runner):
    """The engine that is checked."""

    def __init__(self, answer: list[np.ndarray]) -> None:
        self._answer = answer

    def infer(self, frames_BTHWC: np.ndarray, sizes_B2: np.ndarray) -> EngineOutput:
        return EngineOutput(*self._answer)


def failures(answer: list[np.ndarray], seed: int) -> list[str]:
    return measure(Network(seed), Engine(answer), CASES).failures()  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(12))
def test_an_engine_that_rounds_as_pytorch_does_passes_whatever_its_smallest_mask(seed: int) -> None:
    """Masks whose logits are within rounding of zero do not decide.

    Their IoU is luck.
    """
    assert failures(rounded(1000 + seed), seed) == []


@pytest.mark.parametrize("seed", range(4))
def test_an_engine_that_rounds_three_times_as_much_is_refused(seed: int) -> None:
    assert any("mask_logits" in line for line in failures(rounded(1000 + seed, 3 * NOISE), seed))


def test_one_wrong_mask_of_ten_is_refused() -> None:
    answer = rounded(1)
    answer[3][0, 4] = np.roll(answer[3][0, 4], 6, axis=-1)
    assert any("mask_logits" in line for line in failures(answer, 0))


def test_masks_that_reach_too_far_are_refused_by_their_overlap_too() -> None:
    answer = rounded(1)
    answer[3] += 8
    assert any("thresholded masks agree to an IoU" in line for line in failures(answer, 0))
