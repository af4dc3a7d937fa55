"""The engines that `mssts bench fps` measures: how each is made from a checkpoint, and where it cannot run."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mssts.errors import MsstsError
from mssts.model.config import Preset, Switches
from mssts.runners.base import EngineOutput, Runner


@dataclass(frozen=True)
class Kind:
    """A runner: the precisions it has, the package it needs, and what it takes (checkpoint, export or plan)."""

    precisions: tuple[str, ...]
    module: str
    takes: str
    device: str = "cpu"


_ALL = ("fp32", "tf32", "fp16", "bf16")
# The released code on a GPU is not among them: its attention is a CUDA extension there, and `grid_sample` no fair copy.
RUNNERS = {
    "released": Kind(("fp32",), "torch", "checkpoint"),
    "pytorch": Kind(("fp32", "bf16"), "torch", "checkpoint"),
    "pytorch-compiled": Kind(("fp32", "bf16"), "torch", "checkpoint"),
    "onnxruntime-cpu": Kind(("fp32",), "onnxruntime", "export"),
    "openvino": Kind(("fp32", "bf16"), "openvino", "export"),
    "pytorch-cuda": Kind(_ALL, "torch", "checkpoint", "cuda"),
    "pytorch-compiled-cuda": Kind(_ALL, "torch", "checkpoint", "cuda"),
    "onnxruntime-cuda": Kind(("fp32", "fp16"), "onnxruntime", "export", "cuda"),
    "tensorrt": Kind(("fp32", "fp16", "bf16"), "tensorrt", "plan", "cuda"),
    "tensorrt-rtx": Kind(("fp32", "fp16", "bf16"), "tensorrt_rtx", "plan", "cuda"),
}
PRECISIONS = _ALL


@dataclass(frozen=True)
class Candidate:
    """One engine of the comparison. `path` is what it loads: a checkpoint, or a folder with an exported model."""

    runner: str
    variant: str
    precision: str
    path: str

    def __str__(self) -> str:
        return f"{self.runner} {self.precision} ({self.variant})"


def clip(size: tuple[int, int], frames: int, seed: int = 0, batch: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Frames [B, T, H, W, 3] of moving shapes, and their sizes; all clips are the same one."""
    from mssts.data.moving_shapes import MovingShapesConfig, render_video

    height, width = size
    video = render_video(MovingShapesConfig(width=width, height=height, length=frames), seed, 0)
    return np.stack([video.frames_THWC] * batch), np.array([[height, width]] * batch, np.int32)


def load(candidate: Candidate, threads: int) -> Runner:
    """The engine of a candidate.

    Raises:
        MsstsError: it cannot run here; the message says why.
    """
    path = Path(candidate.path)
    if candidate.runner == "onnxruntime-cpu":
        from mssts.runners.onnx_runtime import OnnxRuntimeRunner

        return OnnxRuntimeRunner(path / "model.onnx", threads)
    if candidate.runner == "onnxruntime-cuda":
        from mssts.runners.onnx_runtime import CUDA, OnnxRuntimeRunner

        return OnnxRuntimeRunner(path / "model.onnx", threads, CUDA)
    if RUNNERS[candidate.runner].takes == "plan":
        from mssts.runners.tensorrt_runner import TensorRtRunner

        return TensorRtRunner(path / "model.plan")
    if candidate.runner == "openvino":
        from mssts.runners.openvino_runner import OpenVinoRunner

        return OpenVinoRunner(path / "model.onnx", threads)
    return _torch_engine(candidate, threads)


def _torch_engine(candidate: Candidate, threads: int) -> Runner:
    import torch

    from mssts.bench.fps.released import ReleasedEngine
    from mssts.model.checkpoint import load_checkpoint
    from mssts.model.deployment import deployed
    from mssts.model.engine import Engine

    checkpoint = load_checkpoint(Path(candidate.path))
    model, kept = checkpoint.build().eval(), checkpoint.preset.top_k
    if candidate.runner == "released":
        return TorchForward(ReleasedEngine(model, kept), candidate, threads)
    engine = deployed(Engine(model, kept), "fp32" if candidate.precision == "tf32" else candidate.precision)
    for module in engine.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return TorchForward(engine, candidate, threads, compiled="compiled" in candidate.runner)


class TorchForward(Runner):
    """A PyTorch engine, as `mssts.runners.base.Runner`."""

    def __init__(self, engine: Any, candidate: Candidate, threads: int, compiled: bool = False) -> None:
        import torch

        self._device = RUNNERS[candidate.runner].device
        self._engine = engine.eval().to(self._device)
        if compiled:
            self._engine = torch.compile(self._engine, dynamic=False)
        self._candidate, self._threads = candidate, threads

    def infer(self, frames_BTHWC: np.ndarray, sizes_B2: np.ndarray) -> EngineOutput:
        """As every runner's."""
        import torch

        torch.set_num_threads(self._threads)
        # Of the process, and PyTorch's own choice for convolutions is TF32.
        tf32 = self._candidate.precision == "tf32"
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        with torch.inference_mode():
            inputs = (torch.from_numpy(array).to(self._device) for array in (frames_BTHWC, sizes_B2))
            outputs = self._engine(*inputs)
        return EngineOutput(*(output.cpu().numpy() for output in outputs))

    def describe(self) -> dict[str, Any]:
        """What runs; the released code's computation knows no kernels of ours."""
        import torch

        from mssts.kernels import library
        from mssts.ops import why_no_kernel

        released = self._candidate.runner == "released"
        reason = "the released code has none" if released else why_no_kernel(self._device)
        isa = "" if reason or self._device != "cpu" else library("cpu").handle.mssts_cpu_isa().decode()
        return {
            "name": self._candidate.runner,
            "version": torch.__version__,
            "device": self._device,
            "precision": self._candidate.precision,
            "threads": self._threads,
            "kernels": [] if reason else ["MSDeformAttn", "SplitTemporalAttn"],
            "kernels_isa": isa,
            "kernels_reason": reason,
        }

    def close(self) -> None:
        """Frees the model."""
        del self._engine


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
    """The folder of the checkpoint's export: made by `mssts export`, unless this very export is there already.

    Raises:
        MsstsError: the export failed; the message holds its reason.
    """
    out = folder / f"{checkpoint.stem}-{precision}"
    _mssts("export", str(checkpoint), "--precision", precision, "--out", str(out), "--reuse")
    return out


def build(exported: Path, target: str, shape: str) -> Path:
    """The folder of the plan of an export, for one input shape: built by `mssts build-engine`, or kept where it was.

    Raises:
        MsstsError: the build failed; the message holds its reason.
    """
    out = exported.with_name(f"{exported.name}-{target}-{shape}")
    shapes = [word for option in ("--min", "--opt", "--max") for word in (option, shape)]
    _mssts("build-engine", str(exported), "--target", target, *shapes, "--out", str(out))
    return out


def _mssts(*words: str) -> None:
    done = subprocess.run([sys.executable, "-m", "mssts.cli", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        raise MsstsError(f"`mssts {' '.join(words)}` failed: {lines[-1]}")


def difference(reference: EngineOutput, found: EngineOutput) -> dict[str, float]:
    """How far an engine's answer is from the reference's, over the instances that are among the best K of both.

    `compared` is their share of K; `boxes` the greatest difference; `masks` the rms difference of mask logits relative
    to their spread. Two engines that round differently may differ in the last of the K, and in their order.
    """
    spread = float(reference.mask_logits.std())
    scores, boxes, masks = [], [], []
    taken: set[int] = set()
    for k in range(reference.scores.shape[1]):
        apart = np.abs(found.boxes[0] - reference.boxes[0, k]).max((1, 2))
        apart = apart + np.abs(found.scores[0] - reference.scores[0, k])
        apart[found.labels[0] != reference.labels[0, k]] = np.inf
        apart[list(taken)] = np.inf
        j = int(apart.argmin())
        if not apart[j] < 0.1:
            continue
        taken.add(j)
        scores.append(abs(float(found.scores[0, j] - reference.scores[0, k])))
        boxes.append(float(np.abs(found.boxes[0, j] - reference.boxes[0, k]).max()))
        masks.append(float(np.sqrt(np.mean((found.mask_logits[0, j] - reference.mask_logits[0, k]) ** 2))) / spread)
    return {
        "compared": len(taken) / reference.scores.shape[1],
        "scores": max(scores, default=np.inf),
        "boxes": max(boxes, default=np.inf),
        "masks": float(np.median(masks)) if masks else np.inf,
    }


_PACKAGES = {"tensorrt": "mssts[gpu]", "tensorrt_rtx": "tensorrt-rtx-cu13"}  # where it is not the module's name
# An engine that computes something else is off by the size of the values themselves. fp32 engines differ by what some
# hundred layers make of 2⁻²⁴, fp16 and TF32 by what they make of 2⁻¹², bf16 by what they make of 2⁻⁹.
_BF16 = {"scores": 5e-2, "boxes": 5e-2, "masks": 2e-1}
_BOUNDS = {
    "fp32": {"scores": 1e-3, "boxes": 1e-3, "masks": 1e-3},
    "tf32": {name: bound / 8 for name, bound in _BF16.items()},
    "fp16": {name: bound / 8 for name, bound in _BF16.items()},
    "bf16": _BF16,
}


def why_refused(difference: dict[str, float], precision: str) -> str:
    """What is out of bounds; empty if nothing is."""
    wrong = [
        f"{name} differ by {difference[name]:.1e} (bound {bound:.0e})"
        for name, bound in _BOUNDS[precision].items()
        if not difference[name] <= bound
    ]
    if difference["compared"] < 0.5:
        wrong.append(f"of the best instances only {difference['compared']:.0%} are the reference's")
    return "computes something else than PyTorch in fp32: " + ", ".join(wrong) if wrong else ""


def why_not_installed(runner: str) -> str:
    """Why a runner cannot run here, its package or its device being absent; empty if it may."""
    kind = RUNNERS[runner]
    if not importlib.util.find_spec(kind.module):
        return f"{kind.module} is not installed; `pip install {_PACKAGES.get(kind.module, kind.module)}`"
    if kind.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            return "PyTorch finds no NVIDIA GPU here"
    return ""


def check_names(kind: str, names: Sequence[str], known: Sequence[str]) -> None:
    """Raises MsstsError for a name that is not among the known ones."""
    for name in names:
        if name not in known:
            raise MsstsError(f"--{kind}: there is no {name!r}; expected some of: {', '.join(known)}")
