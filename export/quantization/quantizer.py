"""Quantisation of an exported engine: calibrated, compared, scored, then written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from tqdm import tqdm

from mssts.artefact import Artefact, Kind, unchanged, writing
from mssts.errors import CheckFailed, MsstsError
from mssts.export.average_precision import ApGate, Scored
from mssts.export.existing import source_sha256
from mssts.export.quantization.calibration import Clip, calibrate, read_clips
from mssts.export.quantization.graph import (
    DEFAULT_EXCLUSIONS,
    FORMATS,
    TARGETS,
    check,
    quantizable,
    quantized,
    read_exclusions,
)
from mssts.export.saving import save_model
from mssts.manifest import Manifest
from mssts.media.orientation import Exif
from mssts.provenance import provenance
from mssts.runners import AUTO, load_runner
from mssts.runners.agreement import Agreement

_RUNNER = "onnxruntime"  # whatever runs such a file by default: the engines are to differ in their graphs alone
# Target → the runner that such a file is made for. For GPUs it is built into a plan first.
_RUNNERS = {"cpu": "openvino"}
# What the encoder's offsets and weights lose in E4M3, which has 3 bits of mantissa, was not measured.
_ALSO_EXCLUDED_IN_FP8 = ("*.deformable.sampling_offsets/*", "*.deformable.attention_weights/*")
_HINT = "Exclude more layers (--exclude), calibrate with more or other clips"


@dataclass(frozen=True)
class QuantizationOptions:
    """Options of a quantisation.

    Attributes:
        number_format: int8 or fp8 (E4M3).
        target: cpu (OpenVINO) or gpu (TensorRT), for int8; fp8 is for GPUs.
        clips: of the calibration, at most.
        exclude: file of the layers that are left as they are; None: the one that comes with this package.
        exif: of the calibration's images, as `mssts.media.sources.open_source` takes it.
    """

    number_format: str = "int8"
    target: str = "cpu"
    clips: int = 16
    exclude: Path | None = None
    exif: Exif | None = None

    def __post_init__(self) -> None:
        if self.number_format not in FORMATS:
            raise MsstsError(f"--format is {self.number_format!r}; expected one of: {', '.join(FORMATS)}")
        if self.target not in TARGETS:
            raise MsstsError(f"--target is {self.target!r}; expected one of: {', '.join(TARGETS)}")

    @property
    def exclusions(self) -> list[str]:
        """Globs of the layers that are left as they are.

        Raises:
            MsstsError: the file is absent or broken.
        """
        if self.exclude is not None:
            return read_exclusions(self.exclude)
        more = list(_ALSO_EXCLUDED_IN_FP8) if self.number_format == "fp8" else []
        return read_exclusions(DEFAULT_EXCLUSIONS) + more

    @property
    def made_for(self) -> str:
        """The target that applies: fp8 is for GPUs."""
        return "gpu" if self.number_format == "fp8" else self.target


def quantize(
    engine: Artefact | Path,
    calibration: Path,
    out: Path,
    options: QuantizationOptions | None = None,
    gate: ApGate | None = None,
) -> Manifest:
    """Writes `out/model.onnx` and `out/manifest.json`, or nothing.

    Args:
        engine: a folder of `mssts export`, in fp32.
        calibration: a video, a folder of images or the JSON of a data set, as `mssts.media.sources.open_source`
            takes them.
        out: another folder.
        options: `QuantizationOptions()` if None.
        gate: the data that both engines are scored on; None: they are not.

    Raises:
        MsstsError: the engine, the clips, the data or the exclusions are absent or broken; nothing is left to quantise.
        CheckFailed: the quantised engine loses more AP than the gate allows.
    """
    options = options or QuantizationOptions()
    source = _source(engine)
    path, before = source.path, source.described()
    if out.resolve() == path.parent.resolve():
        raise MsstsError(f"--out {out} is the folder of the engine itself; name another one")
    exclusions = options.exclusions
    model = onnx.load(path)
    nodes, excluded = quantizable(model, exclusions)
    if not nodes:
        raise MsstsError(
            f"{options.exclude or DEFAULT_EXCLUSIONS}: excludes every layer of {path}; nothing to quantize"
        )
    if gate is not None:
        gate.check_data(before.categories)
    clips = read_clips(calibration, before, options.clips, options.exif)
    with writing(out, path.name) as draft:
        ranges = calibrate(path, {node.input[0] for node in nodes}, clips)
        graph = quantized(model, nodes, ranges, options.number_format, options.target)
        check(graph)
        save_model(graph, draft.path)
        kinds = {name: sum(node.op_type == name for node in nodes) for name in ("Conv", "MatMul", "Gemm")}
        manifest = replace(
            before,
            precision=options.number_format,
            runner=_RUNNERS.get(options.made_for, AUTO),
            # The parity of the export holds for the file that was exported, not for this one.
            checks={"parity_before_quantization": before.checks.get("parity")},
            provenance={
                "quantized_from": source.sha256,
                "export": before.provenance,
                "quantization": {
                    "format": options.number_format,
                    "target": options.made_for,
                    "calibration": calibration.name,
                    "clips": len(clips),
                    "quantized": {name: count for name, count in kinds.items() if count},
                    "exclusions": exclusions,
                    "excluded": excluded,
                    "key": _key(source, clips, options),
                },
                **provenance(),
            },
        )
        draft.describe(manifest)
        checks = {**manifest.checks, "difference": compare(source, draft.folder, clips)}
        if gate is not None:
            reference = Scored("fp32", path.parent, _RUNNER)
            candidate = Scored(options.number_format, draft.folder, _RUNNER)
            checks |= gate.measure(reference, candidate, _HINT)[0]
        return draft.describe(replace(manifest, checks=checks))


def existing_quantized(
    engine: Artefact | Path,
    calibration: Path,
    out: Path,
    options: QuantizationOptions | None = None,
    gate: ApGate | None = None,
) -> Manifest | None:
    """The manifest in `out` if `quantize` would make the same again, else None.

    The rule is that of `mssts.export.existing`.

    Raises:
        MsstsError: the engine or the clips are absent or broken.
    """
    found, options = unchanged(out), options or QuantizationOptions()
    if found is None or found.manifest is None:
        return None
    source, manifest = _source(engine), found.manifest
    key = _key(source, read_clips(calibration, source.described(), options.clips, options.exif), options)
    same = manifest.provenance.get("quantization", {}).get("key") == key
    return manifest if same and (gate is None or gate.has_measured(manifest.checks)) else None


def _source(engine: Artefact | Path) -> Artefact:
    """The export that is to be quantised."""
    source = Artefact.open(engine)
    precision = source.described().precision
    if precision != "fp32" or source.kind is not Kind.ONNX:
        raise MsstsError(f"{source.path}: in {precision}; expected an export in fp32: `mssts export --precision fp32`")
    return source


def _key(source: Artefact, clips: Sequence[Clip], options: QuantizationOptions) -> str:
    """A hash of what decides a quantised engine."""
    digest = hashlib.sha256()
    for frames, sizes in clips:
        digest.update(f"{frames.shape} {sizes.tolist()}".encode() + frames.tobytes())
    decisive = [source.sha256, source_sha256(), options.number_format, options.made_for, options.exclusions]
    decisive.append(digest.hexdigest())
    return hashlib.sha256(json.dumps(decisive).encode()).hexdigest()


@dataclass(frozen=True)
class Difference:
    """The difference between a quantised engine's answers and the engine's own.

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


def compare(engine: Artefact | Path, candidate: Artefact | Path, clips: Sequence[Clip]) -> dict[str, float]:
    """The `Difference` of two engines in ONNX Runtime, as JSON."""
    runners = load_runner(engine, runner=_RUNNER), load_runner(candidate, runner=_RUNNER)
    shares: list[float] = []
    found: dict[str, list[np.ndarray]] = {"scores": [], "boxes": [], "ious": []}
    for clip in tqdm(clips, desc="comparing", unit="clip", disable=None, leave=False):
        agreement = Agreement.of(*(runner.infer(*clip) for runner in runners))
        shares.append(agreement.compared)
        found["scores"].append(np.abs(agreement.difference("scores")))
        found["boxes"].append(np.abs(agreement.difference("boxes")).max((1, 2)))
        found["ious"].append(agreement.mask_ious)
    for runner in runners:
        runner.close()
    if not any(shares):
        raise CheckFailed("the quantized engine finds none of the engine's own instances; nothing was written")
    scores, boxes, ious = (np.concatenate(values) for values in found.values())
    difference = Difference(
        compared=float(np.mean(shares)),
        scores_max=float(scores.max()),
        scores_median=float(np.median(scores)),
        boxes_max=float(boxes.max()),
        boxes_median=float(np.median(boxes)),
        mask_iou_min=float(ious.min(initial=1.0)),
        mask_iou_mean=float(ious.mean()) if ious.size else 1.0,
    )
    return asdict(difference)
