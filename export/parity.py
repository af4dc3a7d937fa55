"""Parity of an engine with PyTorch in fp64, on inputs it was not traced with.

The bound of an output is derived, not chosen: PyTorch in fp32, or of the same modules stored in 16 bits, has an error
against fp64 too, and a faithful engine of the same precision has one of the same size. An rms error above `_RMS_FACTOR`
times PyTorch's own closes the gate, more where there are few instances (`rms_factor`), as does a greatest error above
`_MAX_FACTOR` times (a maximum of few values scatters more than a mean). PyTorch's own is the larger of two: with our
kernels, and with the ops' definitions.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
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
from mssts.ops import reference_ops, why_no_kernel
from mssts.runners.agreement import Agreement, match
from mssts.runners.base import EngineOutput, Runner

_RMS_FACTOR = 2.0
_MAX_FACTOR = 4.0
_SCATTER = 3.29  # standard deviations: one faithful engine of 2,000 is beyond
# Below this share of the reference's own size a difference is rounding, however small PyTorch's own error is.
_FLOOR = 16 * float(np.finfo(np.float32).eps)
# Thresholded masks may differ in this share of their pixels, or in `rms_factor` times that of PyTorch's own.
_MASK_DIFFERENCE = 0.01
_FLOATS = ("scores", "boxes", "mask_logits")
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
    """The error of one output in one case against PyTorch in fp64, and its bounds."""

    case: str
    output: str
    max_abs: float
    rms: float
    max_bound: float
    rms_bound: float

    @property
    def holds(self) -> bool:
        """Whether both errors are within their bounds (NaN never is)."""
        return self.max_abs <= self.max_bound and self.rms <= self.rms_bound


@dataclass(frozen=True)
class ParityReport:
    """The comparison of all outputs in all cases."""

    errors: tuple[OutputError, ...]
    labels_equal: bool
    mask_iou: float  # of the thresholded masks of all instances together
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
    """A manifest's parity report as lines for people: errors beside bounds."""
    return [
        f"{error['case']:20} {error['output']:12} max {error['max_abs']:.1e} (≤ {error['max_bound']:.1e})"
        f"  rms {error['rms']:.1e} (≤ {error['rms_bound']:.1e})"
        for error in report["outputs"]
    ]


def cases(seed: int = 0, shape: FixedShape | None = None) -> list[Case]:
    """Edge-case inputs: one frame, odd sizes, padding, noise.

    None has the traced size. A fixed shape allows fewer."""
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


class _Tally:
    """A report while it is measured."""

    def __init__(self) -> None:
        self._errors: list[OutputError] = []
        self._labels_equal = True
        self._overlap = np.zeros(2)
        self._compared = self._ties = 0

    def add(self, case: Case, agreement: Agreement, bounds: Callable[[str], tuple[float, float]]) -> None:
        """Adds one case.

        `bounds` returns those of an output: of the greatest error, and of the rms error."""
        self._compared += agreement.pairs
        self._ties += agreement.rows.size - agreement.pairs
        self._labels_equal &= agreement.labels_equal
        for name in _FLOATS:
            error = agreement.difference(name)
            max_bound, rms_bound = bounds(name)
            self._errors.append(OutputError(case.name, name, _greatest(error), _rms(error), max_bound, rms_bound))
        self._overlap += agreement.mask_overlap

    def report(self, mask_iou_bound: float) -> ParityReport:
        """The report of all cases."""
        return ParityReport(
            tuple(self._errors), self._labels_equal, _iou(self._overlap), mask_iou_bound, self._compared, self._ties
        )


def measure(
    engine: Engine, runner: Runner, inputs: Sequence[Case] | None = None, precision: str = "fp32"
) -> ParityReport:
    """Compares a runner with the fp32 PyTorch engine that it came from.

    `precision` is how the runner stores it."""
    own_engine = deployed(engine, precision)
    exact = copy.deepcopy(engine).eval().double()
    tally, own_overlaps, pairs = _Tally(), np.zeros((2, 2)), 0
    for case in tqdm(inputs or cases(), desc="parity", unit="case", disable=None, leave=False):
        reference = _torch(exact, case)
        with contextlib.nullcontext() if precision == "fp32" else _without_onednn():
            own = again = _torch(own_engine, case)
            if not why_no_kernel("cpu"):
                with reference_ops():
                    again = _torch(own_engine, case)
        found = runner.infer(case.frames_BTHWC, case.sizes_B2)
        tie = max(_TIE, 4 * float(np.abs(np.sort(own.scores) - np.sort(reference.scores)).max()))
        rows = [_match(reference, output, tie) for output in (found, own, again)]
        # The same instances for all: those that none of the three has lost.
        shared = np.all([row >= 0 for row in rows], axis=0)
        agreement, *owns = (
            Agreement(reference, output, np.where(shared, row, -1))
            for output, row in zip((found, own, again), rows, strict=True)
        )

        def bounds(name: str, agreement: Agreement = agreement, owns: list[Agreement] = owns) -> tuple[float, float]:
            errors = [pytorch.difference(name) for pytorch in owns]
            floor = _FLOOR * _rms(agreement.values(name)[0])
            return (
                _MAX_FACTOR * (max(map(_greatest, errors)) + floor),
                rms_factor(agreement.pairs) * (max(map(_rms, errors)) + floor),
            )

        tally.add(case, agreement, bounds)
        own_overlaps += [pytorch.mask_overlap for pytorch in owns]
        pairs += agreement.pairs
    own_iou = min(map(_iou, own_overlaps))
    return tally.report(1 - max(_MASK_DIFFERENCE, rms_factor(pairs) * (1 - own_iou)))


def rms_factor(instances: int) -> float:
    """The factor by which an engine's rms error may exceed PyTorch's own.

    Within an instance errors go together, so an rms is one of so many independent values at most, and the logarithm of
    the ratio of two such has a standard deviation of 1/√instances.
    """
    return max(_RMS_FACTOR, float(np.exp(_SCATTER / np.sqrt(max(instances, 1)))))


def compare(reference: Runner, runner: Runner, inputs: Sequence[Case], export_parity: dict[str, Any]) -> ParityReport:
    """Compares two runners of one graph.

    `export_parity` is the report in the manifest of its export.

    The second may be as far from fp64 as that report allows, and the first is as far as it says: they may differ by the
    sum. A case that the report does not have is allowed what its widest case is.
    """
    tally = _Tally()
    for case in tqdm(inputs, desc="parity", unit="case", disable=None, leave=False):
        true = reference.infer(case.frames_BTHWC, case.sizes_B2)
        found = runner.infer(case.frames_BTHWC, case.sizes_B2)
        allowed = functools.partial(_allowed, export_parity, case.name)
        agreement = Agreement(true, found, _match(true, found, max(_TIE, allowed("scores")[0])))
        tally.add(case, agreement, allowed)
    return tally.report(export_parity["mask_iou_bound"] + export_parity["mask_iou"] - 1)


def _allowed(export_parity: dict[str, Any], case: str, output: str) -> tuple[float, float]:
    """The greatest and the rms difference allowed between two runners of one export."""
    rows = [row for row in export_parity["outputs"] if row["output"] == output]
    rows = [row for row in rows if row["case"] == case] or rows
    return max(row["max_bound"] + row["max_abs"] for row in rows), max(row["rms_bound"] + row["rms"] for row in rows)


def _iou(overlap: np.ndarray) -> float:
    """IoU of an intersection and a union, in pixels.

    Of all instances together: in 16 bits the smallest masks may consist of pixels that rounding moves across zero, and
    their own IoU would be luck. That each mask is right is what the bounds of its logits hold.
    """
    intersection, union = overlap
    return float(intersection / union) if union else 1.0


@contextlib.contextmanager
def _without_onednn() -> Iterator[None]:
    """Switches oneDNN off.

    Its bf16 convolution for AMX (seen in PyTorch 2.13) reads uninitialised memory where it makes one column of two, and
    gives NaN by chance."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # PyTorch's own flags set a flag that it has deprecated
        with torch.backends.mkldnn.flags(enabled=False):
            yield


def _torch(engine: Engine, case: Case) -> EngineOutput:
    with torch.no_grad():
        outputs = engine(torch.from_numpy(case.frames_BTHWC), torch.from_numpy(case.sizes_B2))
    return EngineOutput(*(tensor.numpy() for tensor in outputs))


def _match(reference: EngineOutput, other: EngineOutput, tie: float) -> np.ndarray:
    """For each instance of `reference` [B, K], its row in `other`, or −1 for a tie.

    Scores that differ by less than `tie` may come in either order, and the last of the K may be another instance. All
    others are there with rounding errors, unless the engine is wrong, which must show as an error and not as a tie.
    """
    last = reference.scores - reference.scores[:, -1:] < tie
    # Another instance is apart by orders of magnitude more than a rounding error.
    rows = match(reference, other, np.where(last, 1e-2, np.inf))
    return np.where((rows < 0) & ~last, np.arange(rows.shape[1]), rows)


def _greatest(values: np.ndarray) -> float:
    return float(np.abs(values).max(initial=0.0))


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64)))) if values.size else 0.0
