"""The engines, alike to whatever feeds them: see `mssts.runners.base.Runner`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mssts.errors import MsstsError
from mssts.manifest import Manifest
from mssts.runners.base import Runner

if TYPE_CHECKING:
    from mssts.runners.torch_runner import TorchRunner

_CHECKPOINT_SUFFIXES = frozenset({".safetensors", ".pth"})


def is_checkpoint(path: Path | str) -> bool:
    """Whether a path names a checkpoint, ours or a released one, rather than an exported engine."""
    return Path(path).suffix in _CHECKPOINT_SUFFIXES


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
    if is_checkpoint(file):
        return _torch_runner(file, threads)
    if file.suffix == ".onnx":
        # Imported here: which engine's library is installed depends on the machine.
        from mssts.runners.onnx_runtime import OnnxRuntimeRunner

        return OnnxRuntimeRunner(file, threads)
    kind = file.suffix or "file without a suffix"
    raise MsstsError(f"{file}: no runner takes a {kind}; expected a .onnx, or a checkpoint as .safetensors or .pth")


def load_engine(path: Path | str, threads: int | None = None) -> tuple[Runner, Manifest]:
    """As `load_runner`, with the engine's manifest: the file beside it, or what a checkpoint says of itself.

    Raises:
        MsstsError: as `load_runner`, or the manifest is missing or broken.
    """
    file = model_path(path)
    if is_checkpoint(file):
        checkpoint = _torch_runner(file, threads)
        return checkpoint, checkpoint.manifest
    return load_runner(file, threads), Manifest.read(file)


def _torch_runner(checkpoint: Path, threads: int | None) -> TorchRunner:
    try:
        from mssts.runners.torch_runner import TorchRunner
    except ImportError:
        raise MsstsError(
            f"{checkpoint}: a checkpoint needs PyTorch: `pip install 'mssts[train]'`, or pass its export"
        ) from None
    return TorchRunner(checkpoint, threads)
