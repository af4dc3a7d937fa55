"""Inference engines behind one interface: see `mssts.runners.base.Runner`.

`RUNNERS` is the one list of them. Nothing heavy is imported here: which library is installed depends on the machine.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mssts.artefact import Artefact, Kind
from mssts.errors import MsstsError
from mssts.kernels import library
from mssts.manifest import Manifest

if TYPE_CHECKING:
    from mssts.runners.base import Runner

AUTO = "auto"


@dataclass(frozen=True)
class RunnerEntry:
    """A runner of the table.

    Attributes:
        kind: what it takes.
        package: the Python package that it needs.
        load: takes an artefact and a number of threads, all that this process may use if None; `pytorch` has the
            further options of `mssts.runners.torch_runner.TorchRunner`.
    """

    kind: Kind
    package: str
    load: Callable[..., Runner]


def _onnxruntime(artefact: Artefact, threads: int | None) -> Runner:
    from mssts.runners.onnx_runtime import OnnxRuntimeRunner

    return OnnxRuntimeRunner(artefact, threads)


def _onnxruntime_cuda(artefact: Artefact, threads: int | None) -> Runner:
    from mssts.runners.onnx_runtime import CUDA, OnnxRuntimeRunner

    return OnnxRuntimeRunner(artefact, threads, CUDA)


def _openvino(artefact: Artefact, threads: int | None) -> Runner:
    from mssts.runners.openvino_runner import OpenVinoRunner

    return OpenVinoRunner(artefact, threads)


def _pytorch(artefact: Artefact, threads: int | None, **options: Any) -> Runner:
    try:
        from mssts.runners.torch_runner import TorchRunner
    except ImportError:
        raise MsstsError(
            f"{artefact.path}: a checkpoint needs PyTorch: `pip install 'mssts[train]'`, or pass its export"
        ) from None
    return TorchRunner(artefact, threads, **options)


def _pytorch_compiled(artefact: Artefact, threads: int | None, **options: Any) -> Runner:
    return _pytorch(artefact, threads, compiled=True, **options)


def _tensorrt(artefact: Artefact, threads: int | None) -> Runner:
    from mssts.runners.tensorrt_runner import TensorRtRunner

    return TensorRtRunner(artefact)


RUNNERS = {
    "onnxruntime": RunnerEntry(Kind.ONNX, "onnxruntime", _onnxruntime),
    "onnxruntime-cuda": RunnerEntry(Kind.ONNX, "onnxruntime", _onnxruntime_cuda),
    "openvino": RunnerEntry(Kind.ONNX, "openvino", _openvino),
    "pytorch": RunnerEntry(Kind.CHECKPOINT, "torch", _pytorch),
    "pytorch-compiled": RunnerEntry(Kind.CHECKPOINT, "torch", _pytorch_compiled),
    "tensorrt": RunnerEntry(Kind.PLAN, "tensorrt", _tensorrt),
}


def runners_of(kind: Kind) -> list[str]:
    """Names of the runners that take a kind of file, `auto`'s first choice first."""
    return [name for name, entry in RUNNERS.items() if entry.kind is kind]


def runner_help(*kinds: Kind) -> str:
    """The help of a command's `--runner` for kinds of files."""
    choices = "; ".join(f"for {kind.value} {', '.join(runners_of(kind))}" for kind in kinds)
    return f"{AUTO}; {choices} (default: %(default)s)"


def check_runner(name: str) -> None:
    """Raises MsstsError unless it is `auto` or the name of a runner."""
    if name != AUTO and name not in RUNNERS:
        raise MsstsError(f"unknown runner {name!r}; expected one of: {', '.join((AUTO, *RUNNERS))}")


def load_runner(model: Artefact | Path | str, threads: int | None = None, runner: str = AUTO) -> Runner:
    """Loads a model with a runner of its kind.

    Args:
        model: as `mssts.artefact.Artefact.open` takes it.
        threads: cores one inference uses; all this process may use if None.
        runner: `auto` or one of `RUNNERS`, which must be of the model's kind.

    Raises:
        MsstsError: the model is absent, broken or of a kind that the runner does not take; the runner's library is not
            installed, or cannot be used here.
    """
    check_runner(runner)
    artefact = Artefact.open(model)
    possible = runners_of(artefact.kind)
    if runner not in (AUTO, *possible):
        raise MsstsError(
            f"{artefact.path}: {artefact.kind.value}, which {runner} does not run; expected one of: {AUTO}, "
            f"{', '.join(possible)}"
        )
    loaded = _load_best(artefact, threads) if runner == AUTO else RUNNERS[runner].load(artefact, threads)
    shape = artefact.manifest.shape if artefact.manifest else None
    if shape is None:
        return loaded
    from mssts.runners.fixed_shape import FixedShapeRunner

    return FixedShapeRunner(loaded, shape, artefact.path)


def load_engine(
    model: Artefact | Path | str, threads: int | None = None, runner: str = AUTO
) -> tuple[Runner, Manifest]:
    """Loads a runner with the model's manifest, which a checkpoint brings itself.

    Raises:
        MsstsError: as `load_runner`, or there is no manifest that names the file.
    """
    artefact = Artefact.open(model)
    if artefact.kind is not Kind.CHECKPOINT:
        manifest = artefact.described()  # before the seconds that loading takes
        return load_runner(artefact, threads, runner), manifest
    loaded: Any = load_runner(artefact, threads, runner)
    return loaded, loaded.manifest


def _load_best(artefact: Artefact, threads: int | None) -> Runner:
    """The runner that `auto` stands for.

    For an ONNX file that is the runner it was made for, where that can run here, else ONNX Runtime's GPU provider where
    it works, then OpenVINO where it is installed and has our kernels, the faster of the two on the one processor that
    they were compared on (`mssts bench fps`), and else ONNX Runtime.
    """
    possible = runners_of(artefact.kind)
    if artefact.kind is not Kind.ONNX:
        return RUNNERS[possible[0]].load(artefact, threads)
    meant = artefact.manifest.runner if artefact.manifest else AUTO
    if meant == "openvino" and not _has_openvino(artefact):
        meant = AUTO
    if meant in possible:
        return RUNNERS[meant].load(artefact, threads)
    if _has_cuda_provider():
        with contextlib.suppress(MsstsError):  # no GPU, or not the CUDA that this ONNX Runtime was built for
            return RUNNERS["onnxruntime-cuda"].load(artefact, threads)
    return RUNNERS["openvino" if _has_openvino(artefact) else "onnxruntime"].load(artefact, threads)


def _has_openvino(artefact: Artefact) -> bool:
    """Whether OpenVINO is installed and better than ONNX Runtime for the file.

    It has our kernels, or is the only runtime for the precision."""
    if importlib.util.find_spec("openvino") is None:
        return False
    precision = artefact.manifest.precision if artefact.manifest else ""
    return not library("openvino").reason or precision == "bf16"


def _has_cuda_provider() -> bool:
    """Whether the installed ONNX Runtime has its CUDA provider (a GPU may be missing)."""
    if importlib.util.find_spec("onnxruntime") is None:
        return False
    import onnxruntime

    return "CUDAExecutionProvider" in onnxruntime.get_available_providers()


def best_precision() -> tuple[str, str]:
    """The precision of an export that this machine's processor runs fastest, and why.

    That is bf16 where the processor has instructions for it and OpenVINO has our kernels to use them, else fp32
    (`mssts bench fps`).
    """
    if importlib.util.find_spec("openvino") is None:
        return "fp32", "OpenVINO, which runs bf16 on a processor, is not installed"
    if library("openvino").reason:
        return "fp32", f"OpenVINO cannot use our kernels: {library('openvino').reason}"
    from mssts.runners.openvino_runner import has_bf16

    if not has_bf16():
        return "fp32", "this processor has no instructions for bf16"
    return "bf16", "this processor has instructions for bf16, and OpenVINO has our kernels"
