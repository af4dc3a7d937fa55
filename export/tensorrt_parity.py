"""Does a plan compute what the ONNX file computes that it was built from?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from export.parity import Case, cases, compare
from export.reference_runner import ReferenceRunner
from export.tensorrt_options import Profile
from mssts.manifest import FixedShape, Manifest
from mssts.runners.base import Runner
from mssts.runners.onnx_runtime import OnnxRuntimeRunner
from mssts.runners.tensorrt_runner import TensorRtRunner


def fitting_cases(source: Manifest, profile: Profile) -> list[Case]:
    """The export's own cases that a profile takes; those of its best shape where none fits."""
    found = [case for case in cases(shape=source.shape) if profile.holds(FixedShape(*case.frames_BTHWC.shape[:4]))]
    return found or cases(shape=profile.best)


def check_parity(source: Manifest, onnx_path: Path, plan: Path, profile: Profile, shown: str) -> dict[str, Any]:
    """Runs both on the same cases; returns the report for the manifest.

    Raises:
        CheckFailed: an output is further from the ONNX file's than the bounds of its export allow.
    """
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
