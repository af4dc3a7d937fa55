"""A checkpoint becomes an artefact: exported, checked against PyTorch, and only then written."""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx

import mssts
from export.existing import source_sha256
from export.graph import export_graph
from export.parity import measure
from mssts.errors import MsstsError
from mssts.files import sha256
from mssts.manifest import Manifest
from mssts.model.checkpoint import load_checkpoint
from mssts.model.engine import Engine
from mssts.provenance import commit, provenance
from mssts.runners.onnx_runtime import OnnxRuntimeRunner

ARTEFACT = "model.onnx"


def export_checkpoint(
    checkpoint: Path, out: Path, expected_preset: str | None = None, top_k: int | None = None
) -> Manifest:
    """Writes `out/model.onnx` and `out/manifest.json`, or nothing.

    Raises:
        MsstsError: the checkpoint is absent, broken or of another preset; `top_k` is out of range.
        CheckFailed: the exported graph does not compute what PyTorch computes.
    """
    loaded = load_checkpoint(checkpoint, expected_preset)
    preset = loaded.preset
    kept = preset.top_k if top_k is None else top_k
    candidates = preset.model.queries * preset.model.classes
    if not 1 <= kept <= candidates:
        raise MsstsError(
            f"--top-k is {kept}; expected 1 to {candidates}, the queries times the classes of {preset.name}"
        )
    engine = Engine(loaded.build(), kept)
    metadata = {
        "version": mssts.__version__,
        "preset": preset.name,
        "commit": commit(),
        "classes": ", ".join(category.name for category in loaded.categories),
        "license": "Apache-2.0",
    }
    graph = export_graph(engine, metadata)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=out) as temporary:
        candidate = Path(temporary) / ARTEFACT
        onnx.save(graph, candidate)
        runner = OnnxRuntimeRunner(candidate)
        report = measure(engine, runner)
        report.check(str(out / ARTEFACT))
        manifest = loaded.manifest(
            candidate,
            top_k=kept,
            checks={"parity": report.to_json()},
            provenance={
                "checkpoint_sha256": sha256(checkpoint),
                "source_sha256": source_sha256(),
                "checked_with": runner.describe(),
                **provenance(),
            },
        )
        runner.close()
        # The artefact first: a manifest whose hash does not fit is refused, a missing artefact is.
        candidate.replace(out / ARTEFACT)
        manifest.write(out)
    return manifest
