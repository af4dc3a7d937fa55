"""Parity of a plan with the ONNX file that it was built from, and its AP."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mssts.artefact import Artefact
from mssts.errors import MsstsError
from mssts.export.average_precision import ApGate, Scored
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
    """The export's own cases that fit a profile, else cases of its best shape."""
    found = [case for case in cases(shape=source.shape) if profile.holds(FixedShape(*case.frames_BTHWC.shape[:4]))]
    found = found or cases(shape=profile.best)
    if not source.input.in_engine:
        return found
    # Both resize the frames, and take the valid size after that.
    fitting = []
    for case in found:
        clips, _, height, width, _ = case.frames_BTHWC.shape
        sizes_B2 = np.array([input_size(height, width, source.input)] * clips, np.int32)
        fitting.append(replace(case, sizes_B2=sizes_B2))
    return fitting


def check_parity(source: Artefact, plan: Path, profile: Profile, shown: str) -> dict[str, Any]:
    """Runs an export and a plan on the same cases and returns the manifest's report.

    Raises:
        CheckFailed: an output is further from the ONNX file's than the bounds of its export allow.
    """
    manifest = source.described()
    if "parity" not in manifest.checks:
        return {
            "holds": None,
            "reason": "a quantized export has no bounds derived from PyTorch; --data scores it by AP",
        }
    inputs = fitting_cases(manifest, profile)
    # ONNX Runtime has no bf16 kernels for processors.
    reference: Runner = ReferenceRunner(source.path) if manifest.precision == "bf16" else OnnxRuntimeRunner(source)
    runner = TensorRtRunner(plan)
    try:
        report = compare(reference, runner, inputs, manifest.checks["parity"])
        name = reference.describe()["name"]
        report.check(shown, name)
        return {**report.to_json(), "reference": f"{source.path.name} in {name}"}
    finally:
        reference.close()
        runner.close()


def check_data(source: Manifest, profile: Profile, gate: ApGate) -> None:
    """Fails early if the plan cannot be scored on the data.

    Raises:
        MsstsError: as `ApGate.check_data`, or clips of a video do not fit into the profile.
    """
    gate.check_data(source.categories)
    only = profile.best if profile.least == profile.most else None  # smaller clips are padded to it
    for video in open_source(gate.data, gate.exif).videos:
        frames = min(video.length or source.clip_frames, source.clip_frames)
        size = video.size if source.input.in_engine else input_size(*video.size, source.input, only)
        clip = FixedShape(1, frames, *size)
        if not (profile.holds(clip) if only is None else frames <= only.frames):
            raise MsstsError(
                f"{gate.data}: clips of {video.name} are {clip}, outside the plan's shapes {profile.least} to "
                f"{profile.most}; choose other --min and --max, or other --data"
            )


def check_ap(source: Artefact, plan: Path, gate: ApGate, plugins: bool) -> tuple[dict[str, Any], list[Any]]:
    """`ApGate.measure` of an export and of the plan in a folder."""
    hint = "Build it with --no-plugins" if plugins else "Score it on more videos"
    if source.described().precision != "fp32":
        hint = "Export it in fp32"
    return gate.measure(Scored("onnx", source.path.parent), Scored("plan", plan), hint)
