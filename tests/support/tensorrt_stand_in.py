"""Stand-ins for TensorRT, pycuda and cuda-python.

They have as much as the runner calls, and compute nothing.
"""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from mssts.runners import tensorrt_library, tensorrt_runner
from mssts.runners.tensorrt_library import Gpu


class Machine:
    """The calls of the stand-ins, in order, and their answers."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.loads = True
        self.has_memory = True
        self.plugins: list[str] = []
        self.capturing = False

    def install(self, monkeypatch: Any, version: str = "11.1.0", gpu: Gpu | None = None) -> Machine:
        """Puts the modules where imports find them."""
        gpu = gpu or Gpu("GPU A", "8.9")
        for module in (tensorrt_library, tensorrt_runner):
            monkeypatch.setattr(module, "first_gpu", lambda: gpu)
        for name, module in (("tensorrt", self._tensorrt(version)), ("pycuda.driver", self._pycuda()),
                             ("cuda.bindings.runtime", self._cuda_python())):  # fmt: skip
            for depth in range(1, name.count(".") + 1):
                parent = ".".join(name.split(".")[:depth])
                monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
            monkeypatch.setitem(sys.modules, name, module)
        return self

    def allocate(self, kind: type) -> Any:
        if not self.has_memory:
            raise MemoryError("cuMemAlloc failed: out of memory")
        return kind()

    def _tensorrt(self, version: str) -> ModuleType:
        machine = self

        class ILogger:
            ERROR, INTERNAL_ERROR = 1, 0

        class Context:
            def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
                self.frames = shape if name == "frames" else getattr(self, "frames", ())
                return True

            def infer_shapes(self) -> list[str]:
                return []

            def get_tensor_shape(self, name: str) -> tuple[int, ...]:
                B, T, H, W, _ = self.frames
                sizes = {"frames": self.frames, "sizes": (B, 2), "boxes": (B, 4, T, 4),
                         "mask_logits": (B, 4, T, H // 4, W // 4)}  # fmt: skip
                return sizes.get(name, (B, 4))

            def set_tensor_address(self, name: str, address: int) -> bool:
                return True

            def execute_async_v3(self, stream: int) -> bool:
                machine.calls.append("record" if machine.capturing else "run")
                return True

        class Engine:
            device_memory_size_v2 = 3 << 20

            def create_execution_context(self) -> Context:
                machine.calls.append("context")
                return Context()

            def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
                return [(1, 1, 64, 64, 3), (1, 2, 64, 64, 3), (1, 4, 128, 128, 3)]

        class Runtime:
            def __init__(self, log: Any) -> None:
                self.log = log

            def get_plugin_registry(self) -> SimpleNamespace:
                return SimpleNamespace(load_library=lambda path: machine.plugins.append(path) or "handle")

            def deserialize_cuda_engine(self, data: bytes) -> Engine | None:
                if not machine.loads:
                    self.log.log(ILogger.ERROR, "Serialization assertion\nfailed")
                return Engine() if machine.loads else None

        module = ModuleType("tensorrt")
        module.__dict__.update(__version__=version, ILogger=type("ILogger", (ILogger,), {"__init__": lambda _: None}),
                               Runtime=Runtime)  # fmt: skip
        return module

    def _pycuda(self) -> ModuleType:
        machine = self
        context = SimpleNamespace(push=lambda: None, pop=lambda: None, detach=lambda: machine.calls.append("detach"))
        stream = SimpleNamespace(handle=7, synchronize=lambda: None)

        class Memory:
            def __int__(self) -> int:
                return 42

            def free(self) -> None:
                machine.calls.append("free")

        module = ModuleType("pycuda.driver")
        module.__dict__.update(
            init=lambda: None,
            Error=MemoryError,
            Device=lambda _: SimpleNamespace(retain_primary_context=lambda: context),
            Stream=lambda: stream,
            pagelocked_empty=lambda shape, dtype: np.zeros(shape, dtype),
            mem_alloc=lambda _: machine.allocate(Memory),
            memcpy_htod_async=lambda *_: None,
            memcpy_dtoh_async=lambda host, *_: host.fill(1),
        )
        return module

    def _cuda_python(self) -> ModuleType:
        def capture(on: bool, value: Any = None) -> tuple[Any, ...]:
            self.capturing = on
            return (0,) if on else (0, value)

        def launch(*_: Any) -> tuple[int]:
            self.calls.append("replay")
            return (0,)

        module = ModuleType("cuda.bindings.runtime")
        module.__dict__.update(
            cudaStreamCaptureMode=SimpleNamespace(cudaStreamCaptureModeThreadLocal=1),
            cudaStreamBeginCapture=lambda *_: capture(True),
            cudaStreamEndCapture=lambda *_: capture(False, "graph"),
            cudaGraphInstantiate=lambda *_: (0, "executable"),
            cudaGraphDestroy=lambda *_: (0,),
            cudaGraphExecDestroy=lambda *_: (0,),
            cudaGraphLaunch=launch,
        )
        return module
