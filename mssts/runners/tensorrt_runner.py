"""Runs `model.plan` in TensorRT 10, 11 or TensorRT-RTX, on a GPU.

It was not run on a GPU yet: its tests drive it with a stand-in for TensorRT and CUDA.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mssts import contract
from mssts.artefact import Artefact
from mssts.errors import MsstsError
from mssts.manifest import FixedShape
from mssts.runners.base import DeviceOutput, EngineOutput, Runner
from mssts.runners.context_pool import ContextPool, MemoryShort
from mssts.runners.cuda import Cuda, CudaError, Scratch, open_cuda
from mssts.runners.device_logits import DeviceLogits, encodes_on_gpu
from mssts.runners.tensorrt_library import deserialised, first_gpu, message_log, tensorrt_module

_LOG = logging.getLogger(__name__)
# Most of the output, which is encoded on the GPU or copied after the rest.
_MASKS = contract.MASK_LOGITS
_SMALL_OUTPUTS = tuple(spec for spec in contract.ENGINE_OUTPUTS if spec is not _MASKS)


@dataclass(eq=False)
class _Bound:
    """Execution context, stream, buffers and CUDA graph for one input shape."""

    cuda: Cuda
    context: Any
    host: dict[str, np.ndarray]  # page-locked
    device: dict[str, int]  # addresses
    scratch: Scratch
    graph: Any = None


class TensorRtRunner(Runner):
    """A loaded plan, which threads may share.

    Two clips run at once, each in a context of its own, and others wait.

    Args:
        plan: as `Artefact.open` takes it; its manifest lies beside it.
        cuda_graphs: whether an inference is recorded once a shape and replayed, which saves the CPU's share of it.

    Raises:
        MsstsError: the plan is absent, truncated or not the one of its manifest; TensorRT, the plugin library or the
            GPU is not what the plan needs; CUDA cannot be used.
    """

    def __init__(self, plan: Artefact | Path | str, cuda_graphs: bool = True) -> None:
        artefact = Artefact.open(plan)
        self._path, self._manifest = artefact.path, artefact.described()
        built = self._manifest.provenance.get("engine")
        if not isinstance(built, dict):
            raise MsstsError(f"{self._path}: its manifest does not say how it was built; build it again")
        self._trt = tensorrt_module(built["target"])
        _check_machine(self._path, built, self._trt)
        self._log = message_log(self._trt)
        try:
            self._cuda = open_cuda()
        except MsstsError as error:
            raise MsstsError(f"{self._path}: {error}") from None
        self._contexts = ContextPool(str(self._path), self._bind, self._release, 2 if self._cuda.many_threads else 1)
        # Empty where graphs are used.
        self._no_graphs = "" if cuda_graphs else "switched off"
        if cuda_graphs and not self._cuda.has_graphs:
            self._no_graphs = f"{self._cuda.name} has none; install cuda-python"
        with self._cuda.current():
            self._runtime, self._engine = deserialised(
                self._trt,
                self._log,
                self._path.read_bytes(),
                plugins=built["plugin_sha256"] is not None,
                version_compatible=built["options"]["version_compatible"],
            )
        if self._engine is None:
            raise MsstsError(f"{self._path}: TensorRT cannot load it; build it again here ({self._log.last()})")

    def infer(self, frames_BTHWC: np.ndarray, sizes_B2: np.ndarray) -> EngineOutput:
        """Runs the engine, see `Runner.infer`.

        Raises:
            MsstsError: the shape is outside the plan's profile, or TensorRT failed; the message holds its reason.
        """
        with self._run(frames_BTHWC, sizes_B2) as bound:
            bound.cuda.copy_out(bound.host[_MASKS.name], bound.device[_MASKS.name])
            bound.cuda.synchronize()
            return EngineOutput(*(bound.host[spec.name].copy() for spec in contract.ENGINE_OUTPUTS))

    @contextmanager
    def inference(self, frames_BTHWC: np.ndarray, sizes_B2: np.ndarray) -> Iterator[EngineOutput | DeviceOutput]:
        """Runs the engine, see `Runner.inference`."""
        if not encodes_on_gpu():
            yield self.infer(frames_BTHWC, sizes_B2)
            return
        with self._run(frames_BTHWC, sizes_B2) as bound:
            scores, labels, boxes = (bound.host[spec.name].copy() for spec in _SMALL_OUTPUTS)
            address, shape = bound.device[_MASKS.name], bound.host[_MASKS.name].shape
            yield DeviceOutput(scores, labels, boxes, DeviceLogits.dense(address, shape, bound.scratch))

    @contextmanager
    def _run(self, frames_BTHWC: np.ndarray, sizes_B2: np.ndarray) -> Iterator[_Bound]:
        """One inference, whose mask logits are on the GPU alone."""
        expected = (len(frames_BTHWC), 2)
        if sizes_B2.shape != expected:
            raise MsstsError(f"sizes are {list(sizes_B2.shape)}; expected {list(expected)}, one for each clip")
        feeds = {contract.FRAMES.name: frames_BTHWC, contract.SIZES.name: sizes_B2}
        shape = tuple(frames_BTHWC.shape)
        try:
            with self._contexts.hold(shape) as bound, self._cuda.current():
                for name, values in feeds.items():
                    np.copyto(bound.host[name], values)
                if bound.graph is not None:
                    bound.cuda.launch(bound.graph)
                    bound.cuda.synchronize()
                else:
                    self._enqueue(bound)
                    bound.cuda.synchronize()
                    if not self._no_graphs:  # after a first run, in which TensorRT still sets things up
                        bound.graph = self._record(bound)
                yield bound
        except CudaError as error:
            raise MsstsError(f"{self._path}: the engine failed on frames {list(shape)}: {error}") from None

    def warm(self, shape: FixedShape) -> float:
        """Runs black frames of a shape in each context, see `Runner.warm`."""
        start = time.perf_counter()
        self._contexts.fill((shape.clips, shape.frames, shape.height, shape.width, 3))
        for _ in range(self.in_flight):  # they are used in turn
            super().warm(shape)
        return time.perf_counter() - start

    @property
    def in_flight(self) -> int:
        """Clips that it works on at once, see `Runner.in_flight`."""
        return self._contexts.at_once

    def _bind(self, shape: tuple[int, ...]) -> _Bound:
        """A context for an input shape [B, T, H, W, 3], with all that it needs."""
        self._check_shape(shape)
        with self._cuda.current():
            # A recorded graph holds on to its context's memory: hence one context for each.
            context = self._engine.create_execution_context()
            if context is None:
                raise MemoryShort(
                    f"{self._path}: the GPU's memory does not suffice for frames {list(shape)} ({self._log.last()})"
                )
            for name, size in ((contract.FRAMES.name, shape), (contract.SIZES.name, (shape[0], 2))):
                if not context.set_input_shape(name, size):
                    raise MsstsError(f"{self._path}: TensorRT refuses {name} {list(size)}: {self._log.last()}")
            missing = context.infer_shapes()
            if missing:
                raise MsstsError(f"{self._path}: frames {list(shape)} leave shapes open: {', '.join(missing)}")
            cuda = open_cuda()
            bound = _Bound(cuda, context, {}, {}, Scratch(cuda))
            try:
                for spec in (*contract.ENGINE_INPUTS, *contract.ENGINE_OUTPUTS):
                    host = cuda.pagelocked(tuple(context.get_tensor_shape(spec.name)), spec.dtype)
                    bound.host[spec.name], bound.device[spec.name] = host, cuda.allocate(max(host.nbytes, 1))
                    if not context.set_tensor_address(spec.name, bound.device[spec.name]):
                        raise MsstsError(f"{self._path}: TensorRT refuses memory for {spec.name}: {self._log.last()}")
            except MsstsError:
                self._release(bound)
                raise
            return bound

    def _check_shape(self, shape: tuple[int, ...]) -> None:
        least, _, most = self._engine.get_tensor_profile_shape(contract.FRAMES.name, 0)
        inside = len(shape) == 5 and all(a <= n <= b for a, n, b in zip(least, shape, most, strict=True))
        if not inside:
            raise MsstsError(
                f"{self._path}: frames {list(shape)} are outside the plan's profile, {list(least)} to {list(most)}; "
                "build it with other --min and --max"
            )

    def _enqueue(self, bound: _Bound) -> None:
        """Puts one inference into the stream, with all copies but that of the mask logits."""
        for spec in contract.ENGINE_INPUTS:
            bound.cuda.copy_in(bound.device[spec.name], bound.host[spec.name])
        if not bound.context.execute_async_v3(bound.cuda.stream):
            raise MsstsError(f"{self._path}: the engine failed: {self._log.last()}")
        for spec in _SMALL_OUTPUTS:
            bound.cuda.copy_out(bound.host[spec.name], bound.device[spec.name])

    def _record(self, bound: _Bound) -> Any:
        """One inference as a CUDA graph, None where it cannot be recorded.

        TensorRT documents layers that cannot be. Inference then goes on without graphs, and `describe` has the reason.
        """
        reason, graph = "", None
        try:
            bound.cuda.begin_capture()
            try:
                self._enqueue(bound)
            except MsstsError as error:
                reason = str(error)
            # Always ended, or the stream would stay in capture.
            graph = bound.cuda.end_capture()
        except CudaError as error:
            reason = reason or str(error)  # TensorRT's says more than "the capture was invalidated"
        if not reason:
            return graph
        if graph is not None:
            bound.cuda.free_graph(graph)
        self._no_graphs = reason
        _LOG.warning("%s: runs without CUDA graphs, which it could not record (%s)", self._path, reason)
        return None

    def _release(self, bound: _Bound) -> None:
        with self._cuda.current():
            if bound.graph is not None:
                bound.cuda.free_graph(bound.graph)
            bound.scratch.close()
            for address in bound.device.values():
                bound.cuda.free(address)
            bound.cuda.close()

    def describe(self) -> dict[str, Any]:
        """Runtime, version, device, precision and active kernels.

        `kernels` are our ops that run as plugins, as the build checked. The others run as function bodies."""
        built = self._manifest.provenance["engine"]
        nodes = self._manifest.checks.get("network", {}).get("plugins", [])
        gpu = first_gpu()
        return {
            "name": built["target"],
            "version": self._trt.__version__,
            "device": gpu.name if gpu else "unknown",
            "precision": self._manifest.precision,
            "threads": 1,
            "kernels": sorted({node.rpartition("/")[2].partition("_")[0] for node in nodes}),
            "kernels_reason": "" if nodes else "the plan was built without plugins",
            "cuda": self._cuda.name,
            "cuda_graphs": not self._no_graphs,
            "cuda_graphs_reason": self._no_graphs,
            "in_flight": self.in_flight,
        }

    def close(self) -> None:
        """Frees the plan and its memory."""
        with self._cuda.current():
            self._contexts.close()
            del self._engine, self._runtime
            self._cuda.close()


def _check_machine(path: Path, built: dict[str, Any], trt: Any) -> None:
    """The TensorRT and the GPU here are those of the plan, or compatible ones."""
    options = built["options"]
    wanted, here = str(built["tensorrt"]), str(trt.__version__)
    same = wanted.split(".")[0] == here.split(".")[0]
    if not same or (wanted != here and not options["version_compatible"] and built["target"] == "tensorrt"):
        raise MsstsError(
            f"{path}: was built by TensorRT {wanted}, this is {here}; install that one, or build the plan again"
            + ("" if not same else " (--version-compatible makes one for later releases of the major)")
        )
    gpu = first_gpu()
    if gpu is None:
        raise MsstsError(f"{path}: a plan needs an NVIDIA GPU and its driver, and there is none here")
    if built["target"] == "tensorrt-rtx":
        capabilities = options["compute_capabilities"]
        if capabilities and gpu.capability not in capabilities:
            raise MsstsError(
                f"{path}: was built for compute capability {', '.join(capabilities)}, this {gpu.name} has "
                f"{gpu.capability}; build it with --compute-capability {gpu.capability}"
            )
        return
    compatible = {
        "none": gpu.name == built["gpu"]["name"],
        "same": gpu.capability == built["gpu"]["capability"],
        "ampere+": float(gpu.capability) >= 8.0,
    }
    if not compatible[options["hardware_compatible"]]:
        raise MsstsError(
            f"{path}: was built on {built['gpu']['name']}, this is {gpu.name}; build it here, or with "
            "--hardware-compatible same or ampere+"
        )
