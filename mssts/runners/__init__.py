"""The engines, alike to whatever feeds them: see `mssts.runners.base.Runner`."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from mssts.errors import MsstsError
from mssts.kernels import library
from mssts.manifest import FILE_NAME, Manifest
from mssts.runners.base import Runner
from mssts.runners.fixed_shape import FixedShapeRunner

if TYPE_CHECKING:
    from mssts.runners.torch_runner import TorchRunner

_CHECKPOINT_SUFFIXES = frozenset({".safetensors", ".pth"})
# Who runs an ONNX file. "auto" is OpenVINO where it is installed and has our kernels, the faster of the two on the one
# processor that they were compared on (`mssts bench fps`), and else ONNX Runtime.
RUNNERS = ("auto", "onnxruntime", "openvino")


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


def load_runner(path: Path | str, threads: int | None = None, runner: str = "auto") -> Runner:
    """Loads the engine of a file, or of a folder with a manifest, with the runner of its kind.

    Args:
        path: the file or the folder.
        threads: cores one inference uses; all this process may use if None.
        runner: who runs an ONNX file, one of `RUNNERS`.

    Raises:
        MsstsError: the engine is absent, broken or of a kind no runner here takes, or the wanted runner is not here.
    """
    if runner not in RUNNERS:
        raise MsstsError(f"unknown runner {runner!r}; expected one of: {', '.join(RUNNERS)}")
    file = model_path(path)
    if is_checkpoint(file):
        return _torch_runner(file, threads)
    loaded = _engine_runner(file, threads, runner)
    shape = Manifest.read(file).shape if (file.parent / FILE_NAME).exists() else None
    return loaded if shape is None else FixedShapeRunner(loaded, shape, file)


def _engine_runner(file: Path, threads: int | None, runner: str) -> Runner:
    if file.suffix == ".onnx":
        # Imported here: which engine's library is installed depends on the machine.
        if runner == "openvino" or (runner == "auto" and _prefers_openvino(file)):
            from mssts.runners.openvino_runner import OpenVinoRunner

            return OpenVinoRunner(file, threads)
        from mssts.runners.onnx_runtime import OnnxRuntimeRunner

        return OnnxRuntimeRunner(file, threads)
    if file.suffix == ".plan":
        from mssts.runners.tensorrt_runner import TensorRtRunner

        return TensorRtRunner(file)
    kind = file.suffix or "file without a suffix"
    raise MsstsError(
        f"{file}: no runner takes a {kind}; expected a .onnx, a .plan, or a checkpoint as .safetensors or .pth"
    )


def load_engine(path: Path | str, threads: int | None = None, runner: str = "auto") -> tuple[Runner, Manifest]:
    """As `load_runner`, with the engine's manifest: the file beside it, or what a checkpoint says of itself.

    Raises:
        MsstsError: as `load_runner`, or the manifest is missing or broken.
    """
    file = model_path(path)
    if is_checkpoint(file):
        checkpoint = _torch_runner(file, threads)
        return checkpoint, checkpoint.manifest
    return load_runner(file, threads, runner), Manifest.read(file)


def _prefers_openvino(file: Path) -> bool:
    """Whether OpenVINO shall run a file: it is installed, and has our kernels or is alone in knowing the precision."""
    if importlib.util.find_spec("openvino") is None:
        return False
    has_manifest = (file.parent / FILE_NAME).exists()
    return not library("openvino").reason or (has_manifest and Manifest.read(file).precision == "bf16")


def _torch_runner(checkpoint: Path, threads: int | None) -> TorchRunner:
    try:
        from mssts.runners.torch_runner import TorchRunner
    except ImportError:
        raise MsstsError(
            f"{checkpoint}: a checkpoint needs PyTorch: `pip install 'mssts[train]'`, or pass its export"
        ) from None
    return TorchRunner(checkpoint, threads)
