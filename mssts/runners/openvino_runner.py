"""Runs `model.onnx` in OpenVINO, in bf16 on processors with AMX or AVX-512 BF16."""

from __future__ import annotations

import ctypes
import functools
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from mssts import contract
from mssts import kernels as built
from mssts.artefact import Artefact
from mssts.errors import MsstsError
from mssts.machine import cpu_count, return_freed_memory, return_mapped_pages
from mssts.runners.base import EngineOutput, NodeTime, Runner
from mssts.runners.contract_check import check_contract

try:
    import openvino
    from openvino import opset13 as opset
except ImportError:
    raise MsstsError("OpenVINO is not installed; `pip install openvino`") from None

PRECISIONS = ("fp32", "bf16")
# Our ops, each with the inputs that have the type of its output. Reference points stay in fp32.
_NARROWED_INPUTS = {"MSDeformAttn": (0, 3, 4), "SplitTemporalAttn": (0, 1, 2)}
_OPS = frozenset(_NARROWED_INPUTS)
# Graphs compiled for one input shape each: several times faster than one for all, and seconds to compile.
_KEPT_SHAPES = 2


class OpenVinoRunner(Runner):
    """A loaded `model.onnx`, as `mssts.runners.base.Runner`.

    Threads may share it; they take turns.

    The graph is compiled for each new input shape, of which the last two are kept: the first clip of a size takes some
    seconds longer. The file is mapped while the runner lives: replace it by another, but do not write into it.

    Args:
        model: as `Artefact.open` takes it: unchanged, where a manifest names it.
        threads: cores one inference uses; all this process may use if None.
        precision: None: as it is written in the file. "bf16" runs a file in fp32 with almost everything in bf16,
            references and boxes included, which a file that was exported in bf16 keeps in fp32.
        kernels: whether our ops run on our kernels (True), or as the function bodies that are in the file (False). If
            None, on the kernels where those can be used, and `describe` tells why where they cannot.
        profile: whether `node_times` is to tell the time of each node, which costs a little time itself.

    Raises:
        MsstsError: the file is absent or broken, was changed after its export, or is not an engine of this project;
            the processor has no bf16; `kernels` is True and they cannot be used.
    """

    def __init__(
        self,
        model: Artefact | Path | str,
        threads: int | None = None,
        precision: str | None = None,
        kernels: bool | None = None,
        profile: bool = False,
    ) -> None:
        artefact = Artefact.open(model)
        self._path = artefact.path
        written = artefact.manifest.precision if artefact.manifest else "unknown"
        if precision not in (None, *PRECISIONS):
            raise MsstsError(f"OpenVINO runs in {' or '.join(PRECISIONS)} here; got {precision!r}")
        if precision == "fp32" and written not in ("fp32", "unknown"):
            raise MsstsError(f"{self._path}: exported in {written}; export it in fp32 to run it in fp32")
        self._core = _core()
        self._precision = precision or written
        if self._precision == "bf16" and not has_bf16():
            raise MsstsError("this processor has no instructions for bf16; export and run the model in fp32")
        self._threads = threads or cpu_count()
        self._options: dict[str, Any] = {"INFERENCE_NUM_THREADS": self._threads, "PERFORMANCE_HINT": "LATENCY"}
        if profile:
            self._options["PERF_COUNT"] = True
        # What of an int8 file is not in 8 bits runs in bf16 too where the processor has it.
        if (precision == "bf16" and written != "bf16") or (precision is None and written == "int8" and has_bf16()):
            self._options["INFERENCE_PRECISION_HINT"] = "bf16"
        elif self._precision == "bf16":
            self._options["EXECUTION_MODE_HINT"] = "ACCURACY"  # each op in the type that the file gives it
        else:
            self._options["INFERENCE_PRECISION_HINT"] = "f32"  # OpenVINO's own default is bf16 where there is AMX
        self._reason = "switched off" if kernels is False else self._use_kernels()
        if kernels and self._reason:
            raise MsstsError(f"{self._path}: cannot be loaded with our kernels: {self._reason}")
        graph = self._read()
        check_contract(self._path, "input", map(_signature, graph.inputs), contract.ENGINE_INPUTS)
        check_contract(self._path, "output", map(_signature, graph.outputs), contract.ENGINE_OUTPUTS)
        self._kernels = sorted({op.get_type_name() for op in graph.get_ops()} & _OPS)
        self._requests: OrderedDict[tuple[int, ...], openvino.InferRequest] = OrderedDict()
        self._lock = threading.Lock()

    def _use_kernels(self) -> str:
        """Registers our kernels and returns the reason if they cannot be used."""
        found = built.library("openvino")
        if found.path is None or found.reason:
            return found.reason
        self._isa, reason = register_kernels(found.path)
        return reason

    _isa = ""

    def _read(self) -> openvino.Model:
        try:
            model = self._core.read_model(_inlined(self._path) if self._reason else str(self._path))
        except MsstsError:
            raise
        except Exception as error:  # OpenVINO raises RuntimeError and others
            raise MsstsError(
                f"{self._path}: OpenVINO cannot load it; export the model again ({_reason(error)})"
            ) from None
        if self._options.get("INFERENCE_PRECISION_HINT") == "bf16":
            _put_our_ops_in_bf16(model)
        return model

    def _request(self, shape: tuple[int, ...]) -> openvino.InferRequest:
        if shape not in self._requests:
            while len(self._requests) >= _KEPT_SHAPES:
                self._requests.popitem(last=False)
            # Read again: a model that is kept would hold all weights a second time.
            model = self._read()
            model.reshape({contract.FRAMES.name: list(shape), contract.SIZES.name: [shape[0], 2]})
            return_freed_memory()
            self._requests[shape] = self._core.compile_model(model, "CPU", self._options).create_infer_request()
            # OpenVINO keeps the weights that it read beside its own packed copy, and seldom looks at them again.
            del model
            return_mapped_pages(self._path.with_name(f"{self._path.name}.data"))
            return_freed_memory()
        self._requests.move_to_end(shape)
        return self._requests[shape]

    def infer(self, frames_BTHWC: np.ndarray, sizes_B2: np.ndarray) -> EngineOutput:
        """Runs the engine, see `Runner.infer`.

        Raises:
            MsstsError: OpenVINO failed; the message holds its reason.
        """
        feeds = {contract.FRAMES.name: np.ascontiguousarray(frames_BTHWC), contract.SIZES.name: sizes_B2}
        with self._lock:
            try:
                request = self._request(tuple(frames_BTHWC.shape))
                # `infer` drops every error where there is one thread, and leaves the outputs as they were (2026.4).
                request.start_async(feeds)
                request.wait()
                outputs = [request.get_tensor(spec.name).data.copy() for spec in contract.ENGINE_OUTPUTS]
            except MsstsError:
                raise
            except Exception as error:  # as above
                shape = list(frames_BTHWC.shape)
                raise MsstsError(f"{self._path}: the engine failed on frames {shape}: {_reason(error)}") from None
        return EngineOutput(*outputs)

    def node_times(self) -> list[NodeTime]:
        """The time of each node in the last inference.

        The runner must have been made with `profile`. Nodes that OpenVINO made itself, as for norms, bear the name of
        the node that they read before their own.
        """
        request = next(reversed(self._requests.values()))
        nodes = request.get_compiled_model().get_runtime_model().get_ops()
        reads = {
            node.get_friendly_name(): node.input_value(0).get_node().get_friendly_name()
            for node in nodes
            if node.get_input_size()
        }
        found = []
        for node in request.profiling_info:
            name = maker = node.node_name
            while "/" not in maker and maker in reads:
                maker = reads[maker]
            if maker != name:
                name = f"{maker} {name}"
            found.append(NodeTime(name, node.node_type, 1e3 * node.real_time.total_seconds()))
        return found

    def describe(self) -> dict[str, Any]:
        """What runs.

        `kernels` are our ops that run on our kernels; where it is empty the function bodies run, and `kernels_reason`
        tells why.
        """
        return {
            "name": "openvino",
            "version": openvino.__version__.partition("-")[0],
            "device": "cpu",
            "precision": self._precision,
            "threads": self._threads,
            "kernels": self._kernels,
            "kernels_isa": self._isa if self._kernels else "",
            "kernels_reason": self._reason,
        }

    def close(self) -> None:
        """Frees the compiled graphs."""
        self._requests.clear()


def has_bf16() -> bool:
    """Whether this processor computes in bf16, by OpenVINO."""
    return "BF16" in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


@functools.cache
def _core() -> openvino.Core:
    """The one core of this process, which is never freed.

    On a processor with AMX, OpenVINO (seen in 2026.4) changes the stack that signals are handled on. It leaves a freed
    one where cores are freed in another order than the reverse of their creation, or in another thread: the next signal
    then kills the process.
    """
    return openvino.Core()


@functools.cache
def register_kernels(path: Path) -> tuple[str, str]:
    """Registers our kernels with the core: instruction set, and the reason if not."""
    try:
        _core().add_extension(str(path))
        handle = ctypes.CDLL(str(path))
        handle.mssts_cpu_isa.restype = ctypes.c_char_p
        return handle.mssts_cpu_isa().decode(), ""
    except Exception as error:  # OpenVINO's, or the loader's where it was built for another release
        reason = f"{path} does not fit OpenVINO {openvino.__version__} ({_reason(error)}); run `make plugins` again"
        return "", reason


def _put_our_ops_in_bf16(model: openvino.Model) -> None:
    """Gives our ops bf16 where the hint gives it to the layers around them.

    By itself OpenVINO leaves nodes that it does not know in fp32, and converts all that they read and write.
    """
    narrowed: dict[tuple[str, int], Any] = {}  # once, where an op reads parts of one tensor
    for op in model.get_ordered_ops():
        if op.get_type_name() not in _OPS:
            continue
        readers = op.output(0).get_target_inputs()
        for index in _NARROWED_INPUTS[op.get_type_name()]:
            source = op.input_value(index)
            key = source.get_node().get_name(), source.get_index()
            if key not in narrowed:
                narrowed[key] = opset.convert(source, "bf16").output(0)
            op.input(index).replace_source_output(narrowed[key])
        op.validate_and_infer_types()
        wide = opset.convert(op.output(0), "f32")
        for reader in readers:
            reader.replace_source_output(wide.output(0))
    model.validate_nodes_and_infer_types()


def _inlined(path: Path) -> bytes:
    """The file with the function bodies of our ops in place of their nodes.

    OpenVINO's reader does not know functions.
    """
    try:
        import onnx
        from onnx import inliner
    except ImportError:
        raise MsstsError(
            f"{path}: OpenVINO needs our kernels (`make plugins` with OpenVINO installed), or the package onnx to run "
            "the file without them (`pip install onnx`)"
        ) from None
    return inliner.inline_local_functions(onnx.load(path)).SerializeToString()


def _signature(port: Any) -> tuple[str, str, int]:
    rank = port.get_partial_shape().rank.get_length()
    return port.get_any_name(), port.get_element_type().to_dtype().name, rank


def _reason(error: Exception) -> str:
    """The reason in a message of OpenVINO, which begins with its source files.

    It may end with a list of ops, after what ours found wrong.
    """
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    found = [line for line in lines if line.startswith("mssts: ")] or lines
    return found[-1] if found else type(error).__name__
