"""Does an engine compute what PyTorch computes? Measured against PyTorch in fp64, on inputs it was not traced with.

The bound of an output is derived, not chosen: PyTorch in fp32, or of the same modules stored in 16 bits, has an error
against fp64 too, and a faithful engine of the same precision has one of the same size. An rms error above `_RMS_FACTOR`
times PyTorch's own closes the gate, more where there are few instances (`rms_factor`), as does a greatest error above
`_MAX_FACTOR` times (a maximum of few values scatters more than a mean). PyTorch's own is the larger of two: with our
kernels, and with the ops' definitions.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from mssts import contract
from mssts.data.moving_shapes import MovingShapesConfig, render_video
from mssts.errors import CheckFailed
from mssts.manifest import FixedShape
from mssts.model.deployment import deployed
from mssts.model.engine import Engine
from mssts.ops import definition, why_no_kernel
from mssts.runners.base import EngineOutput, Runner

_RMS_FACTOR = 2.0
_MAX_FACTOR = 4.0
_SCATTER = 3.29  # standard deviations: one faithful engine of 2,000 is beyond
# Below this share of the reference's own size a difference is rounding, however small PyTorch's own error is.
_FLOOR = 16 * float(np.finfo(np.float32).eps)
# Thresholded masks may differ in this share of their pixels, or in twice the share that PyTorch's own differ in.
_MASK_DIFFERENCE = 0.01
# So few pixels of a clip are the rounding of a border, however small the mask is.
_BORDER_PIXELS = 8
# Scores this close, or four times as close as PyTorch's own error, may come in either order.
_TIE = 1e-4


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
    mask_iou_bound: float
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
        if self.compared == 0:
            lines.append("no instance could be compared")
        if not self.labels_equal:
            lines.append("labels differ")
        if not self.mask_iou >= self.mask_iou_bound:
            lines.append(
                f"thresholded masks agree to an IoU of {self.mask_iou:.4f} only (bound {self.mask_iou_bound:.4f})"
            )
        return lines

    def check(self, artefact: str, reference: str = "PyTorch") -> None:
        """Closes the gate.

        Raises:
            CheckFailed: something is out of bounds; the message says which output and by how much.
        """
        failures = self.failures()
        if failures:
            raise CheckFailed(
                f"{artefact} does not compute what {reference} computes; nothing was written: " + "; ".join(failures)
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
            "mask_iou_bound": self.mask_iou_bound,
            "compared": self.compared,
            "ties": self.ties,
            "outputs": [asdict(error) for error in self.errors],
        }


def parity_lines(report: dict[str, Any]) -> list[str]:
    """The errors of a report's outputs beside their bounds, for people; `report` is as the manifest has it."""
    return [
        f"{error['case']:20} {error['output']:12} max {error['max_abs']:.1e} (≤ {error['max_bound']:.1e})"
        f"  rms {error['rms']:.1e} (≤ {error['rms_bound']:.1e})"
        for error in report["outputs"]
    ]


def cases(seed: int = 0, shape: FixedShape | None = None) -> list[Case]:
    """Hard inputs: one frame, odd sizes, padding, noise, none of the traced size; what of that a fixed shape allows."""
    rng = np.random.default_rng(seed)

    def shapes(frames: int, height: int, width: int, index: int) -> np.ndarray:
        config = MovingShapesConfig(width=width, height=height, length=frames)
        return render_video(config, seed, index).frames_THWC[None]

    def noise(*shape: int) -> np.ndarray:
        return rng.integers(0, 256, (*shape, 3), dtype=np.uint8)

    def whole(frames: np.ndarray) -> np.ndarray:
        return np.tile(np.array(frames.shape[2:4], np.int32), (len(frames), 1))

    if shape is not None:
        B, T, H, W = shape.clips, shape.frames, shape.height, shape.width
        plain = np.concatenate([shapes(T, H, W, index) for index in range(B)])
        padded = np.tile(np.array([H * 2 // 3, W * 3 // 4], np.int32), (B, 1))
        return [Case("shapes", plain, whole(plain)), Case("padded_noise", noise(B, T, H, W), padded)]
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


def measure(
    engine: Engine, runner: Runner, inputs: Sequence[Case] | None = None, precision: str = "fp32"
) -> ParityReport:
    """Compares a runner with the fp32 PyTorch engine it came from, which it stores in `precision`."""
    own_engine = deployed(engine, precision)
    exact = copy.deepcopy(engine).eval().double()
    errors: list[OutputError] = []
    labels_equal, least_iou, own_least_iou, compared, ties = True, 1.0, 1.0, 0, 0
    for case in tqdm(inputs or cases(), desc="parity", unit="case", disable=None, leave=False):
        reference = _torch(exact, case)
        with contextlib.nullcontext() if precision == "fp32" else _without_onednn():
            own = again = _torch(own_engine, case)
            if not why_no_kernel("cpu"):
                with definition():
                    again = _torch(own_engine, case)
        found = runner.infer(case.frames_BTHWC, case.sizes_B2)
        tie = max(_TIE, 4 * float(np.abs(np.sort(own.scores) - np.sort(reference.scores)).max()))
        own_rows, again_rows, found_rows = (_align(reference, output, tie) for output in (own, again, found))
        both = (own_rows >= 0) & (again_rows >= 0) & (found_rows >= 0)
        compared, ties = compared + int(both.sum()), ties + int((~both).sum())
        clip, row = np.nonzero(both)
        labels_equal &= bool((reference.labels[clip, row] == found.labels[clip, found_rows[both]]).all())
        for name in ("scores", "boxes", "mask_logits"):
            true = getattr(reference, name)[clip, row]
            own_errors = [
                getattr(output, name)[clip, rows[both]] - true
                for output, rows in ((own, own_rows), (again, again_rows))
            ]
            found_error = getattr(found, name)[clip, found_rows[both]] - true
            floor = _FLOOR * _rms(true)
            errors.append(
                OutputError(
                    case.name,
                    name,
                    max_abs=float(np.abs(found_error).max(initial=0.0)),
                    rms=_rms(found_error),
                    max_bound=_MAX_FACTOR * (max(float(np.abs(e).max(initial=0.0)) for e in own_errors) + floor),
                    rms_bound=rms_factor(len(row)) * (max(map(_rms, own_errors)) + floor),
                )
            )
        true_masks = reference.mask_logits[clip, row] > 0
        least_iou = min(least_iou, _least_iou(true_masks, found.mask_logits[clip, found_rows[both]] > 0))
        own_least_iou = min(own_least_iou, _least_iou(true_masks, own.mask_logits[clip, own_rows[both]] > 0))
    iou_bound = 1 - max(_MASK_DIFFERENCE, 2 * (1 - own_least_iou))
    return ParityReport(tuple(errors), labels_equal, least_iou, iou_bound, compared, ties)


def rms_factor(instances: int) -> float:
    """How many times PyTorch's rms error an engine's may be, over so many instances.

    Within an instance errors go together, so an rms is one of so many independent values at most, and the logarithm of
    the ratio of two such has a standard deviation of 1/√instances.
    """
    return max(_RMS_FACTOR, float(np.exp(_SCATTER / np.sqrt(max(instances, 1)))))


def compare(reference: Runner, runner: Runner, inputs: Sequence[Case], export_parity: dict[str, Any]) -> ParityReport:
    """Compares two runners of one graph. `export_parity` is the report of its export, as the manifest has it.

    The second may be as far from fp64 as that report allows, and the first is as far as it says: they may differ by the
    sum. A case that the report does not have is allowed what its widest case is.
    """
    errors: list[OutputError] = []
    labels_equal, least_iou, compared, ties = True, 1.0, 0, 0
    for case in tqdm(inputs, desc="parity", unit="case", disable=None, leave=False):
        true = reference.infer(case.frames_BTHWC, case.sizes_B2)
        found = runner.infer(case.frames_BTHWC, case.sizes_B2)
        rows = _align(true, found, max(_TIE, _allowed(export_parity, case.name, "scores")[0]))
        clip, row = np.nonzero(rows >= 0)
        compared, ties = compared + len(clip), ties + int((rows < 0).sum())
        found_row = rows[clip, row]
        labels_equal &= bool((true.labels[clip, row] == found.labels[clip, found_row]).all())
        for name in ("scores", "boxes", "mask_logits"):
            difference = getattr(found, name)[clip, found_row].astype(np.float64) - getattr(true, name)[clip, row]
            max_bound, rms_bound = _allowed(export_parity, case.name, name)
            largest = float(np.abs(difference).max(initial=0.0))
            errors.append(OutputError(case.name, name, largest, _rms(difference), max_bound, rms_bound))
        true_masks, found_masks = true.mask_logits[clip, row] > 0, found.mask_logits[clip, found_row] > 0
        least_iou = min(least_iou, _least_iou(true_masks, found_masks))
    iou_bound = export_parity["mask_iou_bound"] + export_parity["mask_iou"] - 1
    return ParityReport(tuple(errors), labels_equal, least_iou, iou_bound, compared, ties)


def _allowed(export_parity: dict[str, Any], case: str, output: str) -> tuple[float, float]:
    """The greatest difference and the rms that two runners of one export may have in an output."""
    rows = [row for row in export_parity["outputs"] if row["output"] == output]
    rows = [row for row in rows if row["case"] == case] or rows
    return max(row["max_bound"] + row["max_abs"] for row in rows), max(row["rms_bound"] + row["rms"] for row in rows)


def _least_iou(a_masks: np.ndarray, b_masks: np.ndarray) -> float:
    least = 1.0
    for a, b in zip(a_masks, b_masks, strict=True):
        if (a ^ b).sum() > _BORDER_PIXELS:
            least = min(least, float((a & b).sum() / (a | b).sum()))
    return least


@contextlib.contextmanager
def _without_onednn() -> Iterator[None]:
    """Its convolution for AMX in bf16 (seen in PyTorch 2.13) reads memory that nobody wrote where it makes one column
    of two, and gives NaN by chance."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # PyTorch's own flags set a flag that it has deprecated
        with torch.backends.mkldnn.flags(enabled=False):
            yield


def _torch(engine: Engine, case: Case) -> EngineOutput:
    with torch.no_grad():
        outputs = engine(torch.from_numpy(case.frames_BTHWC), torch.from_numpy(case.sizes_B2))
    return EngineOutput(*(tensor.numpy() for tensor in outputs))


def _align(reference: EngineOutput, other: EngineOutput, tie: float) -> np.ndarray:
    """For each instance of `reference` [B, K], its row in `other`, or −1.

    Scores that differ by less than `tie` may come in either order, and the last of the K may be another instance.
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
            cut = reference.scores[b, k] - reference.scores[b, -1] < tie
            if not cut or distance[k, nearest] < 1e-2:
                rows[b, k] = nearest if np.isfinite(distance[k, nearest]) else k
                distance[:, nearest] = np.inf
    return rows


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64)))) if values.size else 0.0
