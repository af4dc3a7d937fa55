"""Runs a checkpoint in PyTorch, without an export: for research, and wherever there is torch but no engine yet."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mssts.errors import MsstsError, first_line
from mssts.kernels import library
from mssts.machine import cpu_count
from mssts.manifest import Manifest
from mssts.model.checkpoint import load_checkpoint
from mssts.model.deployment import deployed
from mssts.model.engine import Engine
from mssts.ops import why_no_kernel
from mssts.runners.base import EngineOutput, Runner


class TorchRunner(Runner):
    """A checkpoint as `mssts.runners.base.Runner`, in fp32: what its export computes.

    Args:
        checkpoint: one of `mssts train` (.safetensors), or of the released code (.pth).
        threads: cores one inference uses, which PyTorch sets for the whole process; all it may use if None.
        device: as PyTorch names it; if None, a GPU if there is one.
        compiled: whether `torch.compile` makes one program of the model, with norms folded into convolutions. It does
            so for each new input shape, in a minute or more, and needs a C++ compiler (on a GPU, Triton).

    Raises:
        MsstsError: the checkpoint is absent or broken; PyTorch has no such device.
    """

    def __init__(
        self, checkpoint: Path | str, threads: int | None = None, device: str | None = None, compiled: bool = False
    ) -> None:
        self._path = Path(checkpoint)
        loaded = load_checkpoint(self._path)
        self._manifest = loaded.manifest(self._path)
        # torchrun numbers the processes of a node: they share its cores, and each takes a GPU of its own.
        self._threads = threads or max(cpu_count() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)), 1)
        torch.set_num_threads(self._threads)
        gpu = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
        name = device or (gpu if torch.cuda.is_available() else "cpu")
        try:
            self._device = torch.device(name)
            engine = Engine(loaded.build(), self._manifest.top_k).eval()
            self._switches = engine.model.config.switches
            engine = deployed(engine, "fp32") if compiled else engine
            self._engine = engine.to(self._device)
        except (RuntimeError, AssertionError) as error:  # the latter where PyTorch was built without CUDA
            raise MsstsError(f"PyTorch cannot use the device {name!r}: {first_line(error)}") from None
        self._compiled = compiled
        self._run = torch.compile(self._engine, dynamic=False) if compiled else self._engine

    @property
    def manifest(self) -> Manifest:
        """What an export's manifest would say: classes, input and windows, as the checkpoint and its preset have them;
        the artefact is the checkpoint."""
        return self._manifest

    def infer(self, frames_BTHWC: np.ndarray, sizes_B2: np.ndarray) -> EngineOutput:
        """Runs uint8 RGB frames [B, T, H, W, 3] with the valid sizes int32 [B, 2] (height, width) of the clips.

        Raises:
            MsstsError: PyTorch failed, as where memory does not suffice; the message holds its reason.
        """
        try:
            # Copies, as PyTorch takes neither read-only arrays nor reversed ones.
            frames, sizes = (torch.from_numpy(array.copy("C")).to(self._device) for array in (frames_BTHWC, sizes_B2))
            with torch.inference_mode():
                outputs = self._run(frames, sizes)
            return EngineOutput(*(output.cpu().numpy() for output in outputs))
        except (RuntimeError, MemoryError) as error:
            shape = list(frames_BTHWC.shape)
            raise MsstsError(f"{self._path}: the model failed on frames {shape}: {first_line(error)}") from None

    def describe(self) -> dict[str, Any]:
        """What runs. `kernels` are our ops that run on our kernels; where it is empty their definitions in PyTorch do,
        and `kernels_reason` tells why."""
        device, reason = self._device.type, why_no_kernel(self._device.type)
        switches = self._switches
        over_time = switches.intra_scale or switches.inter_scale or switches.temporal_decoder
        ops = ["MSDeformAttn", "SplitTemporalAttn"] if over_time else ["MSDeformAttn"]
        isa = library("cpu").handle.mssts_cpu_isa().decode() if device == "cpu" and not reason else ""
        return {
            "name": "pytorch-compiled" if self._compiled else "pytorch",
            "version": torch.__version__,
            "device": str(self._device),
            "precision": self._manifest.precision,
            "threads": self._threads,
            "kernels": [] if reason else ops,
            "kernels_isa": isa,
            "kernels_reason": reason,
        }

    def close(self) -> None:
        """Frees the model; the runner cannot be used afterwards."""
        del self._engine, self._run
