"""Does a plan compute what the ONNX file computes that it was built from, and does it find as much?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mssts.errors import MsstsError
from mssts.export.average_precision import ApGate, Contender
from mssts.export.parity import Case, cases, compare
from mssts.export.reference_runner import ReferenceRunner
from mssts.export.tensorrt.options import Profile
from mssts.manifest import FixedShape, Manifest
from mssts.media.sources import open_source
from mssts.runners.base import Runner
from mssts.runners.onnx_runtime import OnnxRuntimeRunner
from mssts.runners.tensorrt_runner import TensorRtRunner
from mssts.segmenters.preprocessing import input_size


def fitting_cases(source: Manifest, profile: Profile) -> list[Case]:
    """The export's own cases that a profile takes; those of its best shape where none fits."""
    found = [case for case in cases(shape=source.shape) if profile.holds(FixedShape(*case.frames_BTHWC.shape[:4]))]
    return found or cases(shape=profile.best)


def check_parity(source: Manifest, onnx_path: Path, plan: Path, profile: Profile, shown: str) -> dict[str, Any]:
    """Runs both on the same cases; returns the report for the manifest, or why there is none.

    Raises:
        CheckFailed: an output is further from the ONNX file's than the bounds of its export allow.
    """
    if "parity" not in source.checks:
        return {
            "holds": None,
            "reason": "a quantized export has no bounds derived from PyTorch; --data scores it by AP",
        }
    inputs = fitting_cases(source, profile)
    # ONNX Runtime has no bf16 kernels for processors.
    reference: Runner = ReferenceRunner(onnx_path) if source.precision == "bf16" else OnnxRuntimeRunner(onnx_path)
    runner = TensorRtRunner(plan)
    try:
        report = compare(reference, runner, inputs, source.checks["parity"])
        name = reference.describe()["name"]
        report.check(shown, name)
        return {**report.to_json(), "reference": f"{onnx_path.name} in {name}"}
    finally:
        reference.close()
        runner.close()


def check_data(source: Manifest, profile: Profile, gate: ApGate) -> None:
    """Called before the build, so that data that the plan cannot be scored on are told at once.

    Raises:
        MsstsError: as `ApGate.check_data`, or clips of a video do not fit into the profile.
    """
    gate.check_data(source.categories)
    only = profile.best if profile.least == profile.most else None  # smaller clips are padded to it
    for video in open_source(gate.data).videos:
        frames = min(video.length or source.clip_frames, source.clip_frames)
        clip = FixedShape(1, frames, *input_size(*video.size, source.input, only))
        if not (profile.holds(clip) if only is None else frames <= only.frames):
            raise MsstsError(
                f"{gate.data}: clips of {video.name} are {clip}, outside the plan's shapes {profile.least} to "
                f"{profile.most}; choose other --min and --max, or other --data"
            )


def check_ap(
    source: Manifest, onnx_path: Path, plan: Path, gate: ApGate, plugins: bool
) -> tuple[dict[str, Any], list[Any]]:
    """`ApGate.measure` of the ONNX file and of the plan, each with its manifest beside it."""
    cure = "Build it with --no-plugins" if plugins else "Score it on more videos"
    if source.precision != "fp32":
        cure = "Export it in fp32"
    return gate.measure(Contender("onnx", onnx_path.parent), Contender("plan", plan.parent), cure)
