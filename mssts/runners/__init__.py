"""The engines, alike to whatever feeds them: see `mssts.runners.base.Runner`."""

from __future__ import annotations

import contextlib
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
# Who runs which kind of file. "auto" takes for an ONNX file ONNX Runtime's GPU provider where it works, then OpenVINO
# where it is installed and has our kernels, the faster of the two on the one processor that they were compared on
# (`mssts bench fps`), and else ONNX Runtime.
_ONNX = ("onnxruntime", "onnxruntime-cuda", "openvino")
_CHECKPOINT = ("pytorch", "pytorch-compiled")
_PLAN = ("tensorrt",)
RUNNERS = ("auto", *_ONNX, *_CHECKPOINT, *_PLAN)


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
    """Loads the engine of a file, or of a folder with a manifest, with a runner of its kind.

    Args:
        path: the file or the folder.
        threads: cores one inference uses; all this process may use if None.
        runner: one of `RUNNERS`, which must be of the file's kind.

    Raises:
        MsstsError: the engine is absent, broken or of a kind that the runner does not take, or the runner is not here.
    """
    file = model_path(path)
    runner = _fitting(file, runner)
    if runner in _CHECKPOINT:
        return _torch_runner(file, threads, runner)
    loaded = _engine_runner(file, threads, runner)
    shape = Manifest.read(file).shape if (file.parent / FILE_NAME).exists() else None
    return loaded if shape is None else FixedShapeRunner(loaded, shape, file)


def _fitting(file: Path, runner: str) -> str:
    """The runner that is meant for a file: itself, or what "auto" stands for."""
    if runner not in RUNNERS:
        raise MsstsError(f"unknown runner {runner!r}; expected one of: {', '.join(RUNNERS)}")
    possible: tuple[str, ...]
    if is_checkpoint(file):
        kind, possible = "a checkpoint", _CHECKPOINT
    elif file.suffix == ".onnx":
        kind, possible = "an ONNX file", _ONNX
    elif file.suffix == ".plan":
        kind, possible = "a TensorRT plan", _PLAN
    else:
        kind = file.suffix or "file without a suffix"
        raise MsstsError(
            f"{file}: no runner takes a {kind}; expected a .onnx, a .plan, or a checkpoint as .safetensors or .pth"
        )
    if runner == "auto":
        return "auto" if possible == _ONNX else possible[0]
    if runner not in possible:
        raise MsstsError(f"{file}: {kind}, which {runner} does not run; expected one of: auto, {', '.join(possible)}")
    return runner


def _engine_runner(file: Path, threads: int | None, runner: str) -> Runner:
    # Imported here: which engine's library is installed depends on the machine.
    if runner == "auto":
        if _has_cuda_provider():
            with contextlib.suppress(MsstsError):  # no GPU, or not the CUDA that this ONNX Runtime was built for
                return _engine_runner(file, threads, "onnxruntime-cuda")
        runner = "openvino" if _prefers_openvino(file) else "onnxruntime"
    if runner == "tensorrt":
        from mssts.runners.tensorrt_runner import TensorRtRunner

        return TensorRtRunner(file)
    if runner == "openvino":
        from mssts.runners.openvino_runner import OpenVinoRunner

        return OpenVinoRunner(file, threads)
    from mssts.runners.onnx_runtime import CPU, CUDA, OnnxRuntimeRunner

    return OnnxRuntimeRunner(file, threads, CUDA if runner == "onnxruntime-cuda" else CPU)


def load_engine(path: Path | str, threads: int | None = None, runner: str = "auto") -> tuple[Runner, Manifest]:
    """As `load_runner`, with the engine's manifest: the file beside it, or what a checkpoint says of itself.

    Raises:
        MsstsError: as `load_runner`, or the manifest is missing or broken.
    """
    loaded = load_runner(path, threads, runner)
    manifest = getattr(loaded, "manifest", None)  # a checkpoint's, which has no file of it
    return loaded, manifest or Manifest.read(path)


def best_precision() -> tuple[str, str]:
    """The precision of an export that this machine's processor runs fastest, and why: bf16 where it has instructions
    for that and OpenVINO with our kernels to use them, else fp32 (`mssts bench fps`)."""
    if importlib.util.find_spec("openvino") is None:
        return "fp32", "OpenVINO, which runs bf16 on a processor, is not installed"
    if library("openvino").reason:
        return "fp32", f"OpenVINO has no kernels of ours: {library('openvino').reason}"
    from mssts.runners.openvino_runner import has_bf16

    if not has_bf16():
        return "fp32", "this processor has no instructions for bf16"
    return "bf16", "this processor has instructions for bf16, and OpenVINO has our kernels"


def _has_cuda_provider() -> bool:
    """Whether the ONNX Runtime that is installed was built with its CUDA provider; a GPU may still be missing."""
    if importlib.util.find_spec("onnxruntime") is None:
        return False
    import onnxruntime

    return "CUDAExecutionProvider" in onnxruntime.get_available_providers()


def _prefers_openvino(file: Path) -> bool:
    """Whether OpenVINO shall run a file: it is installed, and has our kernels or is alone in knowing the precision; and
    the file was not quantised for ONNX Runtime."""
    if importlib.util.find_spec("openvino") is None:
        return False
    manifest = Manifest.read(file) if (file.parent / FILE_NAME).exists() else None
    if manifest is not None and manifest.provenance.get("quantization", {}).get("target") == "cpu-onnxruntime":
        return False
    return not library("openvino").reason or (manifest is not None and manifest.precision == "bf16")


def _torch_runner(checkpoint: Path, threads: int | None, runner: str) -> TorchRunner:
    try:
        from mssts.runners.torch_runner import TorchRunner
    except ImportError:
        raise MsstsError(
            f"{checkpoint}: a checkpoint needs PyTorch: `pip install 'mssts[train]'`, or pass its export"
        ) from None
    return TorchRunner(checkpoint, threads, compiled=runner == "pytorch-compiled")
