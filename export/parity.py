"""Does an engine compute what PyTorch computes? Measured against PyTorch in fp64, on inputs it was not traced with.

The bound of an output is derived, not chosen: PyTorch in fp32 has an error against fp64 too, and a faithful engine of
the same precision has one of the same size. An rms error above `_RMS_FACTOR` times PyTorch's own closes the gate, as
does a greatest error above `_MAX_FACTOR` times (a maximum of few values scatters more than a mean).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch

from mssts import contract
from mssts.data.moving_shapes import MovingShapesConfig, render_video
from mssts.errors import CheckFailed
from mssts.model.engine import Engine
from mssts.runners.base import EngineOutput, Runner

_RMS_FACTOR = 2.0
_MAX_FACTOR = 4.0
# Below this share of the reference's own size a difference is rounding, however small PyTorch's own error is.
_FLOOR = 16 * float(np.finfo(np.float32).eps)
_MIN_MASK_IOU = 0.99


@dataclass(frozen=True)
class Case:
    """One input of the comparison."""

    name: str
    frames_BTHWC: np.ndarray
    sizes_B2: np.ndarray


@dataclass(frozen=True)
class OutputError:
    """How far one output is from PyTorch in fp64, in one case, and how far it may be."""

    case: str
    output: str
    max_abs: float
    rms: float
    max_bound: float
    rms_bound: float

    @property
    def holds(self) -> bool:
        """Whether both errors are within their bounds; NaN never is."""
        return self.max_abs <= self.max_bound and self.rms <= self.rms_bound


@dataclass(frozen=True)
class ParityReport:
    """The comparison of all outputs in all cases."""

    errors: tuple[OutputError, ...]
    labels_equal: bool
    mask_iou: float  # the least, of an instance's thresholded masks over a clip
    compared: int  # instances compared
    ties: int  # instances left out, because which one is the K-th best is a matter of rounding

    def failures(self) -> list[str]:
        """One line for everything out of bounds."""
        lines = [
            f"{e.output} in case {e.case}: max error {e.max_abs:.2e} (bound {e.max_bound:.2e}), "
            f"rms {e.rms:.2e} (bound {e.rms_bound:.2e})"
            for e in self.errors
            if not e.holds
        ]
        if not self.labels_equal:
            lines.append("labels differ")
        if not self.mask_iou >= _MIN_MASK_IOU:
            lines.append(f"thresholded masks agree to an IoU of {self.mask_iou:.4f} only (bound {_MIN_MASK_IOU})")
        return lines

    def check(self, artefact: str) -> None:
        """Closes the gate.

        Raises:
            CheckFailed: something is out of bounds; the message says which output and by how much.
        """
        failures = self.failures()
        if failures:
            raise CheckFailed(
                f"{artefact} does not compute what PyTorch computes; nothing was written: " + "; ".join(failures)
            )

    def to_json(self) -> dict[str, object]:
        """The report for the manifest."""
        return {
            "reference": "PyTorch in fp64",
            "holds": not self.failures(),
            "max_abs_error": {
                spec.name: max((e.max_abs for e in self.errors if e.output == spec.name), default=0.0)
                for spec in contract.ENGINE_OUTPUTS
                if spec.dtype == "float32"
            },
            "mask_iou": self.mask_iou,
            "compared": self.compared,
            "ties": self.ties,
            "outputs": [asdict(error) for error in self.errors],
        }


def cases(seed: int = 0) -> list[Case]:
    """Inputs of other sizes than the traced one, hard ones among them: one frame, odd sizes, padding, noise."""
    rng = np.random.default_rng(seed)

    def shapes(frames: int, height: int, width: int, index: int) -> np.ndarray:
        config = MovingShapesConfig(width=width, height=height, length=frames)
        return render_video(config, seed, index).frames_THWC[None]

    def noise(*shape: int) -> np.ndarray:
        return rng.integers(0, 256, (*shape, 3), dtype=np.uint8)

    def whole(frames: np.ndarray) -> np.ndarray:
        return np.tile(np.array(frames.shape[2:4], np.int32), (len(frames), 1))

    plain = shapes(4, 112, 200, 0)
    one_frame = shapes(1, 101, 77, 1)
    padded = np.concatenate([shapes(2, 96, 136, 2), noise(1, 2, 96, 136)])
    long = noise(1, 7, 72, 64)
    return [
        Case("shapes", plain, whole(plain)),
        Case("one_frame_odd_size", one_frame, whole(one_frame)),
        Case("padded_batch", padded, np.array([[61, 90], [96, 136]], np.int32)),
        Case("long_noise", long, whole(long)),
    ]


def measure(engine: Engine, runner: Runner, inputs: Sequence[Case] | None = None) -> ParityReport:
    """Compares a runner with the PyTorch engine it came from."""
    engine = copy.deepcopy(engine).eval()
    exact = copy.deepcopy(engine).double()
    errors: list[OutputError] = []
    labels_equal, least_iou, compared, ties = True, 1.0, 0, 0
    for case in inputs or cases():
        reference, own = _torch(exact, case), _torch(engine, case)
        found = runner.infer(case.frames_BTHWC, case.sizes_B2)
        own_rows, found_rows = _align(reference, own), _align(reference, found)
        both = (own_rows >= 0) & (found_rows >= 0)
        compared, ties = compared + int(both.sum()), ties + int((~both).sum())
        clip, row = np.nonzero(both)
        labels_equal &= bool((reference.labels[clip, row] == found.labels[clip, found_rows[both]]).all())
        for name in ("scores", "boxes", "mask_logits"):
            true = getattr(reference, name)[clip, row]
            own_error = getattr(own, name)[clip, own_rows[both]] - true
            found_error = getattr(found, name)[clip, found_rows[both]] - true
            floor = _FLOOR * _rms(true)
            errors.append(
                OutputError(
                    case.name,
                    name,
                    max_abs=float(np.abs(found_error).max()),
                    rms=_rms(found_error),
                    max_bound=_MAX_FACTOR * (float(np.abs(own_error).max()) + floor),
                    rms_bound=_RMS_FACTOR * (_rms(own_error) + floor),
                )
            )
        true_masks = reference.mask_logits[clip, row] > 0
        found_masks = found.mask_logits[clip, found_rows[both]] > 0
        for a, b in zip(true_masks, found_masks, strict=True):
            union = (a | b).sum()
            least_iou = min(least_iou, float((a & b).sum() / union) if union else 1.0)
    return ParityReport(tuple(errors), labels_equal, least_iou, compared, ties)


def _torch(engine: Engine, case: Case) -> EngineOutput:
    with torch.no_grad():
        outputs = engine(torch.from_numpy(case.frames_BTHWC), torch.from_numpy(case.sizes_B2))
    return EngineOutput(*(tensor.numpy() for tensor in outputs))


def _align(reference: EngineOutput, other: EngineOutput) -> np.ndarray:
    """For each instance of `reference` [B, K], its row in `other`, or −1.

    Scores that differ by rounding alone may come in either order, and the last of the K may be another instance.
    """
    B, K = reference.scores.shape
    rows = np.full((B, K), -1)
    for b in range(B):
        distance = np.abs(reference.boxes[b][:, None] - other.boxes[b][None]).max((2, 3))
        distance += np.abs(reference.scores[b][:, None] - other.scores[b][None])
        distance[reference.labels[b][:, None] != other.labels[b][None]] = np.inf
        for k in range(K):
            nearest = int(distance[k].argmin())
            # The same instance is there with rounding errors; another one is apart by orders of magnitude more, unless
            # the engine is wrong, which must show as an error and not as a tie.
            cut = reference.scores[b, k] - reference.scores[b, -1] < 1e-4
            if not cut or distance[k, nearest] < 1e-2:
                rows[b, k] = nearest if np.isfinite(distance[k, nearest]) else k
                distance[:, nearest] = np.inf
    return rows


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))
