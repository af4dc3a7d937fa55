"""An exported engine becomes one in 8 bits: calibrated, compared with what it was, scored, and only then written."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from tqdm import tqdm

from mssts.errors import CheckFailed, MsstsError
from mssts.export.average_precision import MAX_DROP, ApGate, Contender, check_max_drop
from mssts.export.quantization.calibration import Clip, calibrate, read_clips
from mssts.export.quantization.graph import (
    DEFAULT_EXCLUSIONS,
    FORMATS,
    TARGETS,
    calibrated_tensors,
    check,
    quantizable,
    quantized,
    read_exclusions,
)
from mssts.export.saving import save_model
from mssts.files import sha256
from mssts.manifest import Manifest
from mssts.provenance import provenance
from mssts.runners import load_runner
from mssts.runners.artefact import check_unchanged
from mssts.runners.base import EngineOutput

_RUNNER = "onnxruntime"  # whatever runs such a file by default: the engines are to differ in their graphs alone
_CURE = "Exclude more layers (--exclude), calibrate with more or other clips"
_SAME_INSTANCE = 0.1  # in boxes and scores: two instances of one clip are further apart


@dataclass(frozen=True)
class QuantizationOptions:
    """How an engine is quantised.

    Attributes:
        number_format: int8 or fp8 (E4M3).
        target: cpu (OpenVINO), cpu-onnxruntime or gpu (TensorRT), for int8; fp8 is for GPUs.
        clips: of the calibration, at most.
        exclude: file of the layers that are left as they are; None: the one that comes with this package.
        max_ap_drop: in AP, 0…1.
    """

    number_format: str = "int8"
    target: str = "cpu"
    clips: int = 16
    exclude: Path | None = None
    max_ap_drop: float = MAX_DROP

    def __post_init__(self) -> None:
        if self.number_format not in FORMATS:
            raise MsstsError(f"--format is {self.number_format!r}; expected one of: {', '.join(FORMATS)}")
        if self.target not in TARGETS:
            raise MsstsError(f"--target is {self.target!r}; expected one of: {', '.join(TARGETS)}")
        check_max_drop(self.max_ap_drop)


def quantize(
    engine: Path, calibration: Path, out: Path, options: QuantizationOptions | None = None, data: Path | None = None
) -> Manifest:
    """Writes `out/model.onnx` and `out/manifest.json`, or nothing.

    Args:
        engine: a folder of `mssts export`, in fp32.
        calibration: a video, a folder of images or the JSON of a data set, as `mssts.media.sources.open_source`
            takes them.
        out: another folder.
        options: `QuantizationOptions()` if None.
        data: the JSON of a data set with ground truth, to score both engines on.

    Raises:
        MsstsError: the engine, the clips, the data or the exclusions are absent or broken; nothing is left to quantise.
        CheckFailed: AP drops by more than `options.max_ap_drop`.
    """
    options = options or QuantizationOptions()
    if not engine.exists():
        raise MsstsError(f"{engine}: no such folder; expected one that `mssts export` wrote")
    source = Manifest.read(engine)
    path = engine / source.artefact if engine.is_dir() else engine
    if source.precision != "fp32" or path.suffix != ".onnx":
        raise MsstsError(f"{path}: in {source.precision}; expected an export in fp32: `mssts export --precision fp32`")
    if out.resolve() == path.parent.resolve():
        raise MsstsError(f"--out {out} is the folder of the engine itself; name another one")
    check_unchanged(path)
    exclusions = read_exclusions(options.exclude or DEFAULT_EXCLUSIONS)
    model = onnx.load(path)
    nodes, excluded = quantizable(model, exclusions)
    if not nodes:
        raise MsstsError(
            f"{options.exclude or DEFAULT_EXCLUSIONS}: excludes every layer of {path}; nothing to quantize"
        )
    gate = None if data is None else ApGate(data, options.max_ap_drop)
    if gate is not None:
        gate.check_data(source.categories)
    clips = read_clips(calibration, source, options.clips)
    ranges = calibrate(path, calibrated_tensors(model, nodes, options.target), clips)
    graph = quantized(model, nodes, ranges, options.number_format, options.target)
    check(graph)
    kinds = {name: sum(node.op_type == name for node in nodes) for name in ("Conv", "MatMul", "Gemm")}
    # On the same file system as `out`, so that files move by renaming; `out` itself appears with them.
    beside = out if out.exists() else next(parent for parent in out.absolute().parents if parent.exists())
    with tempfile.TemporaryDirectory(prefix=".quantize-", dir=beside) as temporary:
        candidate = Path(temporary) / path.name
        companions = save_model(graph, candidate)
        manifest = replace(
            source,
            precision=options.number_format,
            artefact_sha256=sha256(candidate),
            companions=companions,
            # The parity of the export holds for the file that was exported, not for this one.
            checks={"parity_before_quantization": source.checks.get("parity")},
            provenance={
                "quantized_from": source.artefact_sha256,
                "export": source.provenance,
                "quantization": {
                    "format": options.number_format,
                    "target": "gpu" if options.number_format == "fp8" else options.target,
                    "calibration": calibration.name,
                    "clips": len(clips),
                    "quantized": {name: count for name, count in kinds.items() if count},
                    "exclusions": exclusions,
                    "excluded": excluded,
                },
                **provenance(),
            },
        )
        manifest.write(candidate.parent)
        checks = {**manifest.checks, "difference": compare(path.parent, candidate.parent, clips)}
        if gate is not None:
            before = Contender("fp32", path.parent, _RUNNER)
            after = Contender(options.number_format, candidate.parent, _RUNNER)
            checks |= gate.measure(before, after, _CURE)[0]
        manifest = replace(manifest, checks=checks)
        out.mkdir(parents=True, exist_ok=True)
        # The artefact first: a manifest whose hash does not fit is refused, a missing artefact is.
        for name in (*companions, path.name):
            (candidate.parent / name).replace(out / name)
        manifest.write(out)
    return manifest


@dataclass(frozen=True)
class Difference:
    """How far a quantised engine's answers are from the engine's own, over the calibration clips.

    `compared` is the share of the instances that are among the best K of both. Scores and boxes are in 0…1: the
    greatest difference and the median. `mask_iou` is of masks over a clip, thresholded, of instances with a mask.
    """

    compared: float
    scores_max: float
    scores_median: float
    boxes_max: float
    boxes_median: float
    mask_iou_min: float
    mask_iou_mean: float


def compare(engine: Path, candidate: Path, clips: Sequence[Clip]) -> dict[str, float]:
    """`Difference` of the engines in two folders, as JSON; both run in ONNX Runtime."""
    runners = load_runner(engine, runner=_RUNNER), load_runner(candidate, runner=_RUNNER)
    total = 0
    scores: list[float] = []
    boxes: list[float] = []
    ious: list[float] = []
    for clip in tqdm(clips, desc="comparing", unit="clip", disable=None, leave=False):
        reference, found = (runner.infer(*clip) for runner in runners)
        total += reference.scores.size
        for k, j in _pairs(reference, found):
            scores.append(abs(float(found.scores[0, j] - reference.scores[0, k])))
            boxes.append(float(np.abs(found.boxes[0, j] - reference.boxes[0, k]).max()))
            a, b = reference.mask_logits[0, k] > 0, found.mask_logits[0, j] > 0
            if (a | b).any():
                ious.append(float((a & b).sum() / (a | b).sum()))
    for runner in runners:
        runner.close()
    if not scores:
        raise CheckFailed("the quantized engine finds none of the engine's own instances; nothing was written")
    difference = Difference(
        compared=len(scores) / total,
        scores_max=max(scores),
        scores_median=float(np.median(scores)),
        boxes_max=max(boxes),
        boxes_median=float(np.median(boxes)),
        mask_iou_min=min(ious, default=1.0),
        mask_iou_mean=float(np.mean(ious)) if ious else 1.0,
    )
    return asdict(difference)


def _pairs(reference: EngineOutput, found: EngineOutput) -> list[tuple[int, int]]:
    """The rows of the same instances of one clip."""
    pairs, free = [], np.ones(found.scores.shape[1], bool)
    for k in range(reference.scores.shape[1]):
        apart = np.abs(found.boxes[0] - reference.boxes[0, k]).max((1, 2))
        apart = np.maximum(apart, np.abs(found.scores[0] - reference.scores[0, k]))
        apart[(found.labels[0] != reference.labels[0, k]) | ~free] = np.inf
        j = int(apart.argmin())
        if apart[j] < _SAME_INSTANCE:
            pairs.append((k, j))
            free[j] = False
    return pairs
