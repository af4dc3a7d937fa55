"""A stand-in for TensorRT, with as much as the builder and the runner call.

It models what decides whether a plan can be built and loaded: a global registry of plugins and local ones of each
builder and runtime, which look into the global one as well; a runtime that knows no plugin that nobody loaded; a plan
that carries code of the host. Its outputs are one more than the first byte of the frames.
"""

from __future__ import annotations

import json
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import onnx

from mssts import description
from mssts.export.tensorrt import builder as tensorrt_builder
from mssts.ops.exporting import DOMAIN
from mssts.runners import tensorrt_library, tensorrt_runner
from mssts.runners.tensorrt_library import Gpu
from support.cuda_stand_in import Gpu as CudaGpu

PLUGINS = ("MSDeformAttn", "SplitTemporalAttn")
_OUTPUTS = {"scores": "float32", "labels": "int32", "boxes": "float32", "mask_logits": "float32"}


class Registry:
    """A registry of plugins, and the one that it looks into as well."""

    def __init__(self, parent: Registry | None = None) -> None:
        self.creators: set[str] = set()
        self.parent = parent

    def load_library(self, plugin_path: str) -> str:
        """Registers the library's plugins here, and nowhere else."""
        self.creators.update(PLUGINS)
        return "handle"

    def get_creator(self, type: str, version: str, plugin_namespace: str = "") -> object | None:
        found = type in self.creators and (version, plugin_namespace) == ("1", "")
        return object() if found else self.parent and self.parent.get_creator(type, version, plugin_namespace)


class Machine:
    """A machine with a GPU, TensorRT and CUDA's packages, none of them real.

    Attributes:
        loads: whether a plan can be deserialised at all.
        refuses: names of tensors that an execution context refuses.
        most_contexts: execution contexts that memory suffices for.
        needs_plugins, needs_host_code: what the plan needs of a runtime.
        breaks_capture: TensorRT's reason why it cannot be recorded, empty if it can.
        convolution_type: how the layer report names the input of the convolution.
        opened: the plugin libraries that were opened.
    """

    def __init__(self) -> None:
        self.gpu = CudaGpu()
        self.global_registry = Registry()
        self.loads = True
        self.refuses: tuple[str, ...] = ()
        self.most_contexts = 99
        self.needs_plugins = self.needs_host_code = False
        self.breaks_capture = ""
        self.convolution_type = "Row major linear FP32"
        self.opened: list[str] = []

    @property
    def calls(self) -> list[str]:
        """The calls that the tests look at, in order."""
        return self.gpu.calls

    def install(
        self, monkeypatch: Any, version: str = "11.1.0", gpu: Gpu | None = None, cuda: str = "cuda-python"
    ) -> Machine:
        """Puts TensorRT and the CUDA package that `cuda` names where imports are."""
        gpu = gpu or Gpu("GPU A", "8.9")
        for module in (tensorrt_library, tensorrt_runner, tensorrt_builder, description):
            monkeypatch.setattr(module, "first_gpu", lambda: gpu)
        monkeypatch.setattr(tensorrt_library, "open_library", self.open_library)
        self.cuda_python, self.pycuda = self.gpu.cuda_python(), self.gpu.pycuda()
        modules = {
            "tensorrt": self._tensorrt(version),
            "cuda.bindings.runtime": self.cuda_python if cuda == "cuda-python" else None,
            "pycuda.driver": self.pycuda if cuda == "pycuda" else None,
        }
        for name, module in modules.items():
            for depth in range(1, name.count(".") + 1):
                parent = ".".join(name.split(".")[:depth])
                monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
            monkeypatch.setitem(sys.modules, name, module)
        return self

    def open_library(self, path: Any) -> SimpleNamespace:
        """Our library, which registers its plugins globally when it is opened."""
        self.opened.append(str(path))
        self.global_registry.creators.update(PLUGINS)
        return SimpleNamespace(
            mssts_register_tensorrt_plugins=lambda registry: 1, mssts_tensorrt_build=lambda: b"TensorRT 11.1.0"
        )

    def _tensorrt(self, version: str) -> ModuleType:
        machine, gpu = self, self.gpu

        class ILogger:
            ERROR, INTERNAL_ERROR = 1, 0

            def __init__(self) -> None:
                pass

        class IProgressMonitor:
            def __init__(self) -> None:
                pass

        class Context:
            def __init__(self, log: Any) -> None:
                self.log, self.addresses = log, {}

            def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
                self.frames = shape if name == "frames" else getattr(self, "frames", ())
                return self.accepts(name)

            def accepts(self, name: str) -> bool:
                if name in machine.refuses:
                    self.log.log(ILogger.ERROR, f"cannot take {name}")
                return name not in machine.refuses

            def infer_shapes(self) -> list[str]:
                return []

            def get_tensor_shape(self, name: str) -> tuple[int, ...]:
                B, T, H, W, _ = self.frames
                sizes = {"frames": self.frames, "sizes": (B, 2), "boxes": (B, 4, T, 4),
                         "mask_logits": (B, 4, T, H // 4, W // 4)}  # fmt: skip
                return sizes.get(name, (B, 4))

            def set_tensor_address(self, name: str, address: int) -> bool:
                assert address in gpu.memory
                self.addresses[name] = address
                return self.accepts(f"{name} address")

            def execute_async_v3(self, stream_handle: int) -> bool:
                assert type(stream_handle) is int
                gpu.calls.append("record" if stream_handle in gpu.captures else "run")
                if machine.breaks_capture and stream_handle in gpu.captures:
                    gpu.capture_breaks = True
                    self.log.log(ILogger.ERROR, machine.breaks_capture)
                    return False
                for name, dtype in _OUTPUTS.items():
                    gpu.fill(self.addresses[name], dtype, self.addresses["frames"], stream_handle)
                return True

        class Inspector:
            def get_engine_information(self, format: int) -> str:
                convolution = {"Name": "model.backbone.conv1/Conv", "LayerType": "CaskConvolution",
                               "Inputs": [{"Format/Datatype": machine.convolution_type}]}  # fmt: skip
                plugins = [{"Name": name, "LayerType": "PluginV3"} for name in machine.plugin_nodes]
                return json.dumps({"Layers": [convolution, *plugins]})

        class Engine:
            device_memory_size_v2 = 3 << 20

            def __init__(self, log: Any) -> None:
                self.log = log

            def create_execution_context(self) -> Context | None:
                if gpu.calls.count("context") >= machine.most_contexts:
                    self.log.log(ILogger.ERROR, "no memory for activations")
                    return None
                gpu.calls.append("context")
                return Context(self.log)

            def create_engine_inspector(self) -> Inspector:
                return Inspector()

            def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
                return [(1, 1, 64, 64, 3), (1, 2, 64, 64, 3), (1, 4, 128, 128, 3)]

        class Runtime:
            def __init__(self, logger: Any) -> None:
                self.log, self.registry = logger, Registry(machine.global_registry)
                self.engine_host_code_allowed = False

            def get_plugin_registry(self) -> Registry:
                return self.registry

            def deserialize_cuda_engine(self, serialized_engine: bytes) -> Engine | None:
                reason = "" if machine.loads else "Serialization assertion\nfailed"
                if machine.needs_plugins and self.registry.get_creator("MSDeformAttn", "1", "") is None:
                    reason = "Cannot find creator for MSDeformAttn version 1"
                if machine.needs_host_code and not self.engine_host_code_allowed:
                    reason = "Attempting to deserialize an engine with host code that is not allowed"
                if reason:
                    self.log.log(ILogger.ERROR, reason)
                return None if reason else Engine(self.log)

        module = ModuleType("tensorrt")
        module.__dict__.update(
            __version__=version,
            ILogger=ILogger,
            IProgressMonitor=IProgressMonitor,
            Runtime=Runtime,
            LayerInformationFormat=SimpleNamespace(JSON=1),
            **_builder(machine),
        )
        return module

    plugin_nodes: tuple[str, ...] = ()


def _builder(machine: Machine) -> dict[str, Any]:
    """The part of the module that builds."""

    class Builder:
        def __init__(self, logger: Any) -> None:
            self.registry = Registry(machine.global_registry)

        def get_plugin_registry(self) -> Registry:
            return self.registry

        def create_network(self, flags: int) -> SimpleNamespace:
            return SimpleNamespace(builder=self, layers=[])

        def create_builder_config(self) -> Any:
            return SimpleNamespace(
                add_optimization_profile=lambda profile: 0,
                set_flag=lambda flag: None,
                clear_flag=lambda flag: None,
            )

        def create_optimization_profile(self) -> Any:
            return SimpleNamespace(set_shape=lambda name, least, best, most: None)

        def build_serialized_network(self, network: Any, config: Any) -> bytes:
            machine.needs_plugins = any(layer.type == 1 for layer in network.layers)
            return bytes(4096)

    class OnnxParser:
        def __init__(self, network: Any, logger: Any) -> None:
            self.network = network

        def parse_from_file(self, model: str) -> bool:
            graph = onnx.load(model).graph
            layers = []
            for node in graph.node:
                plugin = node.domain == DOMAIN and self.network.builder.registry.get_creator(node.op_type, "1", "")
                kind = 1 if plugin else {"Conv": 2, "MatMul": 3}.get(node.op_type, 0)
                first = SimpleNamespace(dtype="FLOAT")
                layers.append(
                    SimpleNamespace(name=node.name, type=kind, metadata="", get_input=lambda _, first=first: first)
                )
            machine.plugin_nodes = tuple(layer.name for layer in layers if layer.type == 1)
            ports = (graph.input, graph.output)
            inputs, outputs = ([SimpleNamespace(name=value.name) for value in values] for values in ports)
            self.network.__dict__.update(
                layers=layers, num_layers=len(layers), get_layer=layers.__getitem__,
                num_inputs=len(inputs), get_input=inputs.__getitem__,
                num_outputs=len(outputs), get_output=outputs.__getitem__,
            )  # fmt: skip
            return True

    return {
        "Builder": Builder,
        "OnnxParser": OnnxParser,
        "NetworkDefinitionCreationFlag": SimpleNamespace(STRONGLY_TYPED=1),
        "ProfilingVerbosity": SimpleNamespace(DETAILED=2),
        "BuilderFlag": SimpleNamespace(VERSION_COMPATIBLE=3, TF32=4),
        "LayerType": SimpleNamespace(PLUGIN_V3=1, CONVOLUTION=2, MATRIX_MULTIPLY=3),
        "DataType": SimpleNamespace(FLOAT="FLOAT", HALF="HALF", BF16="BF16"),
    }
