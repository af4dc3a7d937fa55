"""Export of a checkpoint to ONNX: checked against PyTorch, then written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import mssts
from mssts.artefact import is_checkpoint, writing
from mssts.errors import MsstsError
from mssts.export.average_precision import ApGate, Scored
from mssts.export.existing import source_sha256
from mssts.export.graph import export_graph
from mssts.export.options import ExportOptions
from mssts.export.parity import Case, cases, measure
from mssts.export.reference_runner import ReferenceRunner
from mssts.export.resizing import check_resizing, put_resizing_before
from mssts.export.saving import save_model
from mssts.files import sha256
from mssts.kernels import library
from mssts.manifest import FixedShape, InputRule, Manifest
from mssts.model.checkpoint import Checkpoint, load_checkpoint
from mssts.model.config import Preset
from mssts.model.deployment import deployed
from mssts.model.engine import MEAN, STD, Engine
from mssts.provenance import commit, provenance
from mssts.runners.base import Runner
from mssts.runners.onnx_runtime import OnnxRuntimeRunner
from mssts.segmenters.preprocessing import input_size

ARTEFACT = "model.onnx"


def export_checkpoint(
    checkpoint: Path,
    out: Path,
    expected_preset: str | None = None,
    options: ExportOptions | None = None,
    gate: ApGate | None = None,
) -> Manifest:
    """Writes `out/model.onnx` and `out/manifest.json`, or nothing.

    Args:
        checkpoint: one of `mssts train`, or of the released code.
        out: a folder; it is made.
        expected_preset: any other is refused.
        options: `ExportOptions()` if None.
        gate: the data that both, the checkpoint in PyTorch and the exported file, are scored on; None: they are not.

    Raises:
        MsstsError: the checkpoint or the data are absent or broken; it is of another preset; an option is out of range.
        CheckFailed: the exported graph does not compute what PyTorch computes, or loses more AP than the gate allows.
    """
    return export_model(load_checkpoint(checkpoint, expected_preset), out, options, gate)


def export_model(
    loaded: Checkpoint, out: Path, options: ExportOptions | None = None, gate: ApGate | None = None
) -> Manifest:
    """Exports weights that are in memory, as `export_checkpoint` does.

    Their `path` names them in the manifest, and is read for AP."""
    options = options or ExportOptions()
    preset = loaded.preset
    kept = preset.top_k if options.top_k is None else options.top_k
    candidates = preset.model.queries * preset.model.classes
    if not 1 <= kept <= candidates:
        raise MsstsError(
            f"--top-k is {kept}; expected 1 to {candidates}, the queries times the classes of {preset.name}"
        )
    if gate is not None:
        if not is_checkpoint(loaded.path) or not loaded.path.is_file():
            raise MsstsError(
                f"--data scores a checkpoint as .safetensors or .pth, and {loaded.path} is none; leave --data out"
            )
        gate.check_data(loaded.categories)
    engine = Engine(loaded.build(), kept)
    clip_frames, clip_overlap = _window(preset, options)
    metadata = {
        "version": mssts.__version__,
        "preset": preset.name,
        "precision": options.precision,
        "shape": "any" if options.shape is None else str(options.shape),
        "clip_frames": str(clip_frames),
        "mean": ", ".join(map(str, MEAN)),
        "std": ", ".join(map(str, STD)),
        "classes": ", ".join(category.name for category in loaded.categories),
        "commit": commit(),
        "license": "Apache-2.0",
    }
    with writing(out, ARTEFACT) as draft:
        # Checked with function bodies even if they are not written: they are what the nodes mean.
        graph = export_graph(deployed(engine, options.precision), metadata, replace(options, functions=True))
        rule = replace(preset.input, in_engine=options.resize)
        resizing = {}
        if options.resize:
            resizing = {"resize_max_difference": check_resizing(rule, options.opset)}
            put_resizing_before(graph, rule)
        save_model(graph, draft.path)
        checks, checked_with = _check(engine, draft.path, options, _inputs(options, rule), str(out / ARTEFACT))
        checks |= resizing
        manifest = replace(
            loaded.manifest(draft.path, top_k=kept),
            precision=options.precision,
            input=rule,
            shape=options.shape,
            clip_frames=clip_frames,
            clip_overlap=clip_overlap,
        )
        if gate is not None:
            draft.describe(manifest)
            before, after = Scored("pytorch", loaded.path), Scored("onnx", draft.folder)
            ap_checks, ran = gate.measure(before, after, _hint(options))
            checks |= ap_checks
            checked_with += ran
        if not options.functions:
            del graph.functions[:]
            save_model(graph, draft.path)
        manifest = replace(
            manifest,
            checks=checks,
            provenance={
                "weights": loaded.path.name,
                "checkpoint_sha256": sha256(loaded.path) if loaded.path.is_file() else None,
                "source_sha256": source_sha256(),
                "options": options.to_json(),
                "checked_with": checked_with,
                **provenance(),
            },
        )
        return draft.describe(manifest)


def _window(preset: Preset, options: ExportOptions) -> tuple[int, int]:
    """Frames of a window, and how many two windows share.

    They are the preset's, or as many as the one input shape holds."""
    if options.shape is None:
        return preset.clip_frames, preset.clip_overlap
    frames = options.shape.frames
    return frames, min(preset.clip_overlap, frames - 1)


def _hint(options: ExportOptions) -> str:
    """The options of an export that cost AP, for the message of a closed gate."""
    causes = {
        "in fp32": options.precision != "fp32",
        "without --shape": options.shape is not None,
        "with a higher --top-k": options.top_k is not None,
    }
    chosen = " or ".join(cause for cause, applies in causes.items() if applies)
    return f"Export {chosen}" if chosen else "Score it on more videos"


def _inputs(options: ExportOptions, rule: InputRule) -> list[Case]:
    """What the export is compared on.

    Where it resizes, frames of a size that it leaves as it is: the resizing is compared apart, with OpenCV's.
    """
    if not options.resize:
        return cases(shape=options.shape)
    return cases(shape=FixedShape(1, 2, *input_size(720, 1280, rule)))


def _check(
    engine: Engine, path: Path, options: ExportOptions, inputs: Sequence[Case], shown: str
) -> tuple[dict[str, object], list[object]]:
    """Runs the file and closes the gate if it computes something else.

    The function bodies are always checked, and our kernels in their place too where they are built. Returns the reports
    by their names in the manifest, and what ran.
    """
    runners: dict[str, Runner]
    if options.precision == "bf16":  # ONNX Runtime has no bf16 kernels for processors
        runners = {"parity": ReferenceRunner(path)}
    else:
        runners = {"parity": OnnxRuntimeRunner(path, kernels=False)}
        if not library("onnxruntime").reason:
            runners["parity_with_kernels"] = OnnxRuntimeRunner(path, kernels=True)
    reports: dict[str, object] = {}
    for name, runner in runners.items():
        report = measure(engine, runner, inputs, options.precision)
        report.check(shown)
        reports[name] = report.to_json()
    described: list[object] = [runner.describe() for runner in runners.values()]
    for runner in runners.values():
        runner.close()
    return reports, described
