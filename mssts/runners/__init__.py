"""The engines, alike to whatever feeds them: see `mssts.runners.base.Runner`."""

from __future__ import annotations

from pathlib import Path

from mssts.errors import MsstsError
from mssts.manifest import Manifest
from mssts.runners.base import Runner


def model_path(path: Path | str) -> Path:
    """The engine's file: `path` itself, or the artefact that the manifest in the folder `path` names.

    Raises:
        MsstsError: there is no such file, or the folder's manifest is missing or broken.
    """
    path = Path(path)
    return path / Manifest.read(path).artefact if path.is_dir() else path


def load_runner(path: Path | str, threads: int | None = None) -> Runner:
    """Loads the engine of a file, or of a folder with a manifest, with the runner of its kind.

    Raises:
        MsstsError: the engine is absent, broken or of a kind no runner here takes.
    """
    file = model_path(path)
    if file.suffix == ".onnx":
        # Imported here: which engine's library is installed depends on the machine.
        from mssts.runners.onnx_runtime import OnnxRuntimeRunner

        return OnnxRuntimeRunner(file, threads)
    raise MsstsError(f"{file}: no runner takes a {file.suffix or 'file without a suffix'}; expected a .onnx")
