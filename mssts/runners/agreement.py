"""Comparison of two engines' answers, over the instances that both found.

Engines that round differently, or quantise, may find the best K instances in another order, and another K-th. So
instances are matched first, by label, box and score, and the rest is measured on those pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mssts.runners.base import EngineOutput

# In boxes (the greatest difference of a coordinate) plus scores: two instances of one clip are further apart.
SAME_INSTANCE = 0.1


def match(reference: EngineOutput, other: EngineOutput, limit: float | np.ndarray = SAME_INSTANCE) -> np.ndarray:
    """For each instance of `reference` [B, K] its row in `other`, or −1.

    Each takes the nearest instance of its label that is free, best scores first, if it is nearer than `limit`, a number
    or one for each instance [B, K].
    """
    B, K = reference.scores.shape
    rows = np.full((B, K), -1)
    limits = np.broadcast_to(limit, (B, K))
    for b in range(B):
        distance = np.abs(reference.boxes[b][:, None] - other.boxes[b][None]).max((2, 3))
        distance += np.abs(reference.scores[b][:, None] - other.scores[b][None])
        distance[reference.labels[b][:, None] != other.labels[b][None]] = np.inf
        for k in range(K):
            nearest = int(distance[k].argmin())
            if distance[k, nearest] < limits[b, k]:  # NaN is not
                rows[b, k] = nearest
                distance[:, nearest] = np.inf
    return rows


@dataclass(frozen=True)
class Agreement:
    """Two engines' answers to the same clips, with their instances in pairs.

    Attributes:
        reference: one answer.
        found: the other.
        rows: of `match`: for each instance of `reference` [B, K] the one of `found` that is the same, or −1.
    """

    reference: EngineOutput
    found: EngineOutput
    rows: np.ndarray

    @classmethod
    def of(cls, reference: EngineOutput, found: EngineOutput, *, precision: str | None = None) -> Agreement:
        """With the instances that are clearly the same in pairs.

        Where a precision is given, an instance whose score that precision may carry below the K-th is in a pair only if
        its partner is within the precision's bounds: it may have dropped out for another one that is near by chance.
        """
        limits: float | np.ndarray = SAME_INSTANCE
        if precision is not None and reference.scores.size:
            bounds = _BOUNDS[precision]
            above_last_BK = reference.scores - reference.scores.min(axis=1, keepdims=True)
            limits = np.where(above_last_BK < bounds["scores"], bounds["boxes"], SAME_INSTANCE)
        return cls(reference, found, match(reference, found, limits))

    @property
    def pairs(self) -> int:
        """The number of instances that both found."""
        return int((self.rows >= 0).sum())

    @property
    def compared(self) -> float:
        """Their share of the reference's instances."""
        return self.pairs / self.rows.size

    @cached_property
    def _index(self) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
        clip, row = np.nonzero(self.rows >= 0)
        return (clip, row), (clip, self.rows[clip, row])

    def values(self, output: str) -> tuple[np.ndarray, np.ndarray]:
        """An output for each pair [P, …], of the reference and of the other engine."""
        ours, theirs = self._index
        return getattr(self.reference, output)[ours], getattr(self.found, output)[theirs]

    def difference(self, output: str) -> np.ndarray:
        """The differences of an output for each pair [P, …], in fp64."""
        reference, found = self.values(output)
        return found.astype(np.float64) - reference

    @property
    def labels_equal(self) -> bool:
        """Whether both engines give the instances of every pair one label."""
        reference, found = self.values("labels")
        return bool((reference == found).all())

    @property
    def mask_overlap(self) -> tuple[int, int]:
        """Pixels in intersections and unions of the thresholded masks, summed over pairs."""
        reference, found = (logits > 0 for logits in self.values("mask_logits"))
        return int((reference & found).sum()), int((reference | found).sum())

    @property
    def mask_ious(self) -> np.ndarray:
        """IoU of the thresholded masks over a clip, for each pair with a mask."""
        reference, found = (logits > 0 for logits in self.values("mask_logits"))
        axes = tuple(range(1, reference.ndim))
        union = (reference | found).sum(axes)
        return (reference & found).sum(axes)[union > 0] / union[union > 0]

    def summary(self) -> dict[str, float]:
        """The share of instances compared, and the differences of scores, boxes and masks.

        `masks` is the median over the pairs of the rms difference of mask logits, relative to their spread.
        """
        masks = self.difference("mask_logits")
        rms = np.sqrt(np.mean(np.square(masks), axis=tuple(range(1, masks.ndim)))) if self.pairs else np.array([np.inf])
        return {
            "compared": self.compared,
            **{name: _greatest(self.difference(name)) for name in ("scores", "boxes")},
            "masks": float(np.median(rms)) / float(self.reference.mask_logits.std()),
        }


def _greatest(difference: np.ndarray) -> float:
    return float(np.abs(difference).max()) if difference.size else float("inf")


# An engine that computes something else is off by the size of the values themselves. fp32 engines differ by what some
# hundred layers make of 2⁻²⁴, fp16 and TF32 by what they make of 2⁻¹², bf16 by what they make of 2⁻⁹. Of int8, whose
# steps depend on its calibration, only what pairs have at most is asked, and masks that are nearer than unrelated ones.
_BF16 = {"scores": 5e-2, "boxes": 5e-2, "masks": 2e-1}
_EIGHTH = {name: bound / 8 for name, bound in _BF16.items()}
_BOUNDS = {
    "fp32": {"scores": 1e-3, "boxes": 1e-3, "masks": 1e-3},
    "tf32": _EIGHTH,
    "fp16": _EIGHTH,
    "bf16": _BF16,
    "int8": {"scores": SAME_INSTANCE, "boxes": SAME_INSTANCE, "masks": 7e-1},
}


def out_of_bounds(summary: dict[str, float], precision: str) -> str:
    """The differences that are too great for a precision, empty if none is."""
    wrong = [
        f"{name} differ by {summary[name]:.1e} (bound {bound:.0e})"
        for name, bound in _BOUNDS[precision].items()
        if not summary[name] <= bound
    ]
    if summary["compared"] < 0.5:
        wrong.append(f"of the best instances only {summary['compared']:.0%} are the reference's")
    return "computes something else than PyTorch in fp32: " + ", ".join(wrong) if wrong else ""
