"""The engines of `mssts bench fps`: how each is made, and where it cannot run."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mssts.artefact import Artefact, Kind
from mssts.commands import run_command
from mssts.data.moving_shapes import MovingShapesConfig, render_video, write_dataset
from mssts.errors import MsstsError
from mssts.model.config import Preset, Switches
from mssts.runners import RUNNERS
from mssts.runners.base import Runner
from mssts.runners.tensorrt_library import first_gpu, tensorrt_module


@dataclass(frozen=True)
class Measured:
    """A row of the benchmark's table of runners.

    Attributes:
        runner: of `mssts.runners.RUNNERS`, which says what it takes and which package it needs.
        precisions: those that it has.
        device: cpu or cuda.
        package: where it is another than the runner's.
    """

    runner: str
    precisions: tuple[str, ...]
    device: str = "cpu"
    package: str = ""

    @property
    def takes(self) -> Kind:
        """The kind of file that the runner loads."""
        return RUNNERS[self.runner].kind

    @property
    def needs(self) -> str:
        """The Python package."""
        return self.package or RUNNERS[self.runner].package


PRECISIONS = ("fp32", "tf32", "fp16", "bf16", "int8")
_ON_GPU = PRECISIONS[:4]
# The released code on a GPU is not among them: its attention is a CUDA extension there, and `grid_sample` no fair copy.
_RELEASED = "released"
MEASURED = {
    _RELEASED: Measured("pytorch", ("fp32",)),
    "pytorch": Measured("pytorch", ("fp32", "bf16")),
    "pytorch-compiled": Measured("pytorch-compiled", ("fp32", "bf16")),
    "onnxruntime-cpu": Measured("onnxruntime", ("fp32",)),
    "openvino": Measured("openvino", ("fp32", "bf16", "int8")),
    "pytorch-cuda": Measured("pytorch", _ON_GPU, "cuda"),
    "pytorch-compiled-cuda": Measured("pytorch-compiled", _ON_GPU, "cuda"),
    "onnxruntime-cuda": Measured("onnxruntime-cuda", ("fp32", "fp16"), "cuda"),
    "tensorrt": Measured("tensorrt", ("fp32", "fp16", "bf16"), "cuda"),
    "tensorrt-rtx": Measured("tensorrt", ("fp32", "fp16", "bf16"), "cuda", "tensorrt_rtx_bindings"),
}


@dataclass(frozen=True)
class Candidate:
    """One engine of the comparison.

    `path` is what it loads: a checkpoint, or a folder with an exported model."""

    runner: str
    variant: str
    precision: str
    path: str

    def __str__(self) -> str:
        return f"{self.runner} {self.precision} ({self.variant})"


@dataclass(frozen=True)
class Setting:
    """The setting of a run: frame size and number, clips at once, threads."""

    size: tuple[int, int]
    frames: int
    batch: int
    threads: int

    def clip(self) -> tuple[np.ndarray, np.ndarray]:
        """Frames [B, T, H, W, 3] of moving shapes and their sizes, one clip B times."""
        height, width = self.size
        video = render_video(MovingShapesConfig(width=width, height=height, length=self.frames), seed=0, index=0)
        sizes = np.array([[height, width]] * self.batch, np.int32)
        return np.stack([video.frames_THWC] * self.batch), sizes


def load(candidate: Candidate, threads: int) -> Runner:
    """The engine of a candidate.

    Raises:
        MsstsError: it cannot run here; the message says why.
    """
    measured, artefact = MEASURED[candidate.runner], Artefact.open(candidate.path)
    if candidate.runner == _RELEASED:
        from mssts.bench.fps.released import ReleasedRunner

        return ReleasedRunner(artefact, threads)
    options: dict[str, Any] = {}
    if measured.takes is Kind.CHECKPOINT:
        options = {"device": measured.device, "precision": candidate.precision, "channels_last": True}
    return RUNNERS[measured.runner].load(artefact, threads, **options)


def saved_random_checkpoint(preset: Preset, folder: Path, seed: int = 0) -> Path:
    """A file with `mssts.model.random_weights.random_checkpoint`, written once."""
    import torch

    from mssts.model.checkpoint import save_checkpoint
    from mssts.model.random_weights import random_checkpoint

    recipe = inspect.getsource(random_checkpoint)
    key = hashlib.sha256(f"{preset} {seed} {torch.__version__} {recipe}".encode()).hexdigest()[:12]
    path = folder / f"{preset.name}-{_variant(preset.model.switches)}-{key}.safetensors"
    if not path.is_file():
        checkpoint = random_checkpoint(preset, seed)
        folder.mkdir(parents=True, exist_ok=True)
        save_checkpoint(path, checkpoint.weights, preset, checkpoint.categories)
    return path


def _variant(switches: Switches) -> str:
    return "all" if switches.intra_scale and switches.inter_scale and switches.temporal_decoder else "baseline"


def export(checkpoint: Path, precision: str, folder: Path) -> Path:
    """The folder of the checkpoint's export, made by `mssts export` if need be.

    Raises:
        MsstsError: the export failed; the message holds its reason.
    """
    out = folder / f"{checkpoint.stem}-{precision}"
    _mssts("export", str(checkpoint), "--precision", precision, "--out", str(out), "--reuse")
    return out


def quantise(exported: Path) -> Path:
    """The folder of the export in int8, made by `mssts quantize` if need be.

    It is calibrated on MovingShapes.

    Raises:
        MsstsError: it failed; the message holds its reason.
    """
    calibration = exported.with_name("calibration")
    if not calibration.is_dir():
        write_dataset(calibration, _CALIBRATION_VIDEOS, _CALIBRATION_SEED, MovingShapesConfig(), progress=False)
    out = exported.with_name(f"{exported.name.removesuffix('-fp32')}-int8")
    _mssts("quantize", str(exported), "--calibrate", str(calibration / "instances.json"), "--out", str(out), "--reuse")
    return out


_CALIBRATION_VIDEOS, _CALIBRATION_SEED = 16, 7777


def build(exported: Path, target: str, shape: str) -> Path:
    """The folder of a plan for one shape, made by `mssts build-engine` if need be.

    Raises:
        MsstsError: the build failed; the message holds its reason.
    """
    out = exported.with_name(f"{exported.name}-{target}-{shape}")
    shapes = [word for option in ("--min", "--opt", "--max") for word in (option, shape)]
    _mssts("build-engine", str(exported), "--target", target, *shapes, "--out", str(out), "--reuse")
    return out


def _mssts(*words: str) -> None:
    done = run_command(*words, capture=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        raise MsstsError(f"`mssts {' '.join(words)}` failed: {lines[-1]}")


# Where it is not the module's name. The package tensorrt-rtx-cu13 brings these bindings too.
_PACKAGES = {
    "tensorrt": "mssts[gpu]",
    "tensorrt_rtx_bindings": "tensorrt-rtx-cu13-bindings tensorrt-rtx-cu13-libs",
}


def why_not_installed(runner: str) -> str:
    """The reason why a runner cannot run here, empty if it can."""
    measured = MEASURED[runner]
    if not importlib.util.find_spec(measured.needs):
        return f"{measured.needs} is not installed; `pip install {_PACKAGES.get(measured.needs, measured.needs)}`"
    if measured.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            return "PyTorch finds no NVIDIA GPU here"
    if runner == "tensorrt-rtx":
        return _why_not_rtx()
    return ""


def _why_not_rtx() -> str:
    """The reason why TensorRT-RTX cannot run on this GPU, before a plan is built."""
    gpu, trt = first_gpu(), tensorrt_module("tensorrt-rtx")
    if gpu is None or hasattr(trt.ComputeCapability, "SM" + gpu.capability.replace(".", "")):
        return ""
    return f"TensorRT-RTX {trt.__version__} knows no compute capability {gpu.capability}, that of the {gpu.name}"


def check_names(kind: str, names: Sequence[str], known: Sequence[str]) -> None:
    """Raises MsstsError for a name that is not among the known ones."""
    for name in names:
        if name not in known:
            raise MsstsError(f"--{kind}: there is no {name!r}; expected some of: {', '.join(known)}")
