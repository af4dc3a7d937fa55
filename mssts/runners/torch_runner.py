"""Runs a checkpoint in PyTorch, without an export."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mssts.artefact import Artefact
from mssts.errors import MsstsError, first_line
from mssts.kernels import library
from mssts.machine import cpu_count
from mssts.manifest import Manifest
from mssts.model.checkpoint import Checkpoint, load_checkpoint
from mssts.model.deployment import PRECISIONS, deployed
from mssts.model.engine import Engine
from mssts.ops import why_no_kernel
from mssts.runners.base import DeviceOutput, EngineOutput, Runner
from mssts.runners.device_logits import DeviceLogits, encodes_on_gpu

_TF32 = "tf32"


class TorchRunner(Runner):
    """A checkpoint as `mssts.runners.base.Runner`: what its export computes.

    Args:
        checkpoint: one of `mssts train` (.safetensors), or of the released code (.pth).
        threads: cores one inference uses, which PyTorch sets for the whole process; all it may use if None.
        device: as PyTorch names it; if None, a GPU if there is one.
        compiled: whether `torch.compile` makes one program of the model, with norms folded into convolutions. It does
            so for each new input shape, in a minute or more, and needs a C++ compiler (on a GPU, Triton).
        precision: fp32, fp16, bf16, or tf32 (matrix products in fp32 on a GPU); the model is as in an export of that
            precision, with norms folded. If None, fp32 and as it was trained.
        channels_last: whether the weights of convolutions are stored channels last.

    Raises:
        MsstsError: the checkpoint is absent or broken; PyTorch has no such device; there is no such precision.
    """

    def __init__(
        self,
        checkpoint: Artefact | Path | str,
        threads: int | None = None,
        device: str | None = None,
        compiled: bool = False,
        precision: str | None = None,
        channels_last: bool = False,
    ) -> None:
        self._path = Artefact.open(checkpoint).path
        if precision not in (None, _TF32, *PRECISIONS):
            raise MsstsError(f"unknown precision {precision!r}; expected one of: {', '.join((*PRECISIONS, _TF32))}")
        self._precision, self._folded = precision or "fp32", compiled or precision is not None
        loaded = load_checkpoint(self._path)
        self._manifest = loaded.manifest(self._path)
        self._switches = loaded.preset.model.switches
        # torchrun numbers the processes of a node: they share its cores, and each takes a GPU of its own.
        self._threads = threads or max(cpu_count() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)), 1)
        gpu = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
        name = device or (gpu if torch.cuda.is_available() else "cpu")
        try:
            self._device = torch.device(name)
            self._engine = self._build(loaded).eval().to(self._device)
        except (RuntimeError, AssertionError) as error:  # the latter where PyTorch was built without CUDA
            raise MsstsError(f"PyTorch cannot use the device {name!r}: {first_line(error)}") from None
        if channels_last:
            for module in self._engine.modules():
                if isinstance(module, nn.Conv2d):
                    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._compiled = compiled
        self._run = torch.compile(self._engine, dynamic=False) if compiled else self._engine

    def _build(self, loaded: Checkpoint) -> nn.Module:
        """The module that runs: frames and sizes in, `contract.ENGINE_OUTPUTS` out."""
        engine = Engine(loaded.build(), self._manifest.top_k)
        return deployed(engine, "fp32" if self._precision == _TF32 else self._precision) if self._folded else engine

    @property
    def manifest(self) -> Manifest:
        """The manifest that an export would have, with the checkpoint as its artefact."""
        return self._manifest

    @property
    def module(self) -> nn.Module:
        """The module that runs."""
        return self._engine

    def infer(self, frames_BTHWC: np.ndarray, sizes_B2: np.ndarray) -> EngineOutput:
        """Runs the engine, see `Runner.infer`.

        Raises:
            MsstsError: PyTorch failed, as where memory does not suffice; the message holds its reason.
        """
        with self._named_failures(frames_BTHWC):
            return EngineOutput(*(output.cpu().numpy() for output in self._outputs(frames_BTHWC, sizes_B2)))

    @contextlib.contextmanager
    def inference(self, frames_BTHWC: np.ndarray, sizes_B2: np.ndarray) -> Iterator[EngineOutput | DeviceOutput]:
        """Runs the engine, see `Runner.inference`."""
        if self._device.type != "cuda" or not encodes_on_gpu():
            yield self.infer(frames_BTHWC, sizes_B2)
            return
        with torch.cuda.device(self._device):
            with self._named_failures(frames_BTHWC):
                *others, logits = self._outputs(frames_BTHWC, sizes_B2)
                scores, labels, boxes = (output.cpu().numpy() for output in others)
            stream = torch.cuda.current_stream().cuda_stream
            yield DeviceOutput(scores, labels, boxes, device_logits(logits, stream))

    def _outputs(self, frames_BTHWC: np.ndarray, sizes_B2: np.ndarray) -> tuple[torch.Tensor, ...]:
        torch.set_num_threads(self._threads)  # each time: another runner of this process may have another number
        # Copies, as PyTorch takes neither read-only arrays nor reversed ones.
        frames, sizes = (torch.from_numpy(array.copy("C")).to(self._device) for array in (frames_BTHWC, sizes_B2))
        with torch.inference_mode(), _tf32(self._device, self._precision == _TF32):
            outputs: tuple[torch.Tensor, ...] = self._run(frames, sizes)
            return outputs

    @contextlib.contextmanager
    def _named_failures(self, frames_BTHWC: np.ndarray) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            shape = list(frames_BTHWC.shape)
            raise MsstsError(f"{self._path}: the model failed on frames {shape}: {first_line(error)}") from None

    def describe(self) -> dict[str, Any]:
        """Runtime, version, device, precision and active kernels.

        `kernels` are the ops that run on our kernels. If it is empty, their references in PyTorch run, and
        `kernels_reason` says why.
        """
        device, reason = self._device.type, why_no_kernel(self._device.type)
        switches = self._switches
        over_time = switches.intra_scale or switches.inter_scale or switches.temporal_decoder
        ops = ["MSDeformAttn", "SplitTemporalAttn"] if over_time else ["MSDeformAttn"]
        isa = library("cpu").handle.mssts_cpu_isa().decode() if device == "cpu" and not reason else ""
        return {
            "name": "pytorch-compiled" if self._compiled else "pytorch",
            "version": torch.__version__,
            "device": str(self._device),
            "precision": self._precision,
            "threads": self._threads,
            "kernels": [] if reason else ops,
            "kernels_isa": isa,
            "kernels_reason": reason,
        }

    def close(self) -> None:
        """Frees the model."""
        del self._engine, self._run


class _Memory:
    """PyTorch's memory of a GPU, for `DeviceLogits`, which keeps their tensor too."""

    def __init__(self, logits: torch.Tensor, stream: int) -> None:
        self.stream = stream
        self._logits = logits
        self._rooms: dict[str, torch.Tensor] = {}

    def room(self, name: str, size: int) -> int:
        self._rooms[name] = torch.empty(size, dtype=torch.uint8, device=self._logits.device)
        return self._rooms[name].data_ptr()

    def read(self, address: int, size: int) -> bytes:
        found = next(room for room in self._rooms.values() if room.data_ptr() == address)
        return found[:size].cpu().numpy().tobytes()


def device_logits(logits: torch.Tensor, stream: int) -> DeviceLogits:
    """A tensor of mask logits [B, K, T, h, w], to be encoded where it is."""
    dense = logits.float().contiguous()
    return DeviceLogits.dense(dense.data_ptr(), dense.shape, _Memory(dense, stream))


@contextlib.contextmanager
def _tf32(device: torch.device, allowed: bool) -> Iterator[None]:
    """Sets whether a GPU computes fp32 products in TF32.

    PyTorch's convolutions do by default, but fp32 means fp32."""
    if device.type != "cuda":
        yield
        return
    places: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [place.allow_tf32 for place in places]
    try:
        for place in places:
            place.allow_tf32 = allowed
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.allow_tf32 = value
