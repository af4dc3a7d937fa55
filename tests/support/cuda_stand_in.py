"""Stand-ins for cuda-python and pycuda on a machine without a GPU.

Their functions have the names, arguments and results of the real ones (tests/runners/test_cuda.py compares them with
cuda-python where that is installed). Memory of the GPU is memory of the host, and what is put into a stream runs at
once; waiting for a stream is where a test may hold a clip up. Each stream records for itself.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable
from enum import IntEnum
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np


class Error(IntEnum):
    """Some of CUDA's errors."""

    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorStreamCaptureInvalidated = 901


_TEXTS = {Error.cudaErrorMemoryAllocation: b"out of memory", Error.cudaErrorStreamCaptureInvalidated: b"not captured"}


class Gpu:
    """Memory and streams, with the errors that a test asks for.

    Attributes:
        memory: what is allocated, by address.
        has_memory: whether there is any left.
        captures: what streams have recorded, of those that record.
        waits: called while a thread waits for a stream, with its handle.
        capture_breaks: whether something in the recorded work cannot be recorded.
        instantiates: whether a recorded graph can be made ready.
        graphs: graphs that are not freed.
    """

    def __init__(self) -> None:
        self.memory: dict[int, Any] = {}
        self.has_memory = True
        self.captures: dict[int, list[Callable[[], None]]] = {}
        self.waits: Callable[[int], None] = lambda stream: None
        self.streams = itertools.count(7)
        self.capture_breaks = False
        self.instantiates = True
        self.graphs: list[str] = []
        self.calls: list[str] = []

    def allocate(self, size: int) -> int:
        """The address of new memory, 0 if there is none left."""
        if not self.has_memory:
            return 0
        whole = ctypes.create_string_buffer(size + 255)
        start = -ctypes.addressof(whole) % 256  # as cudaMalloc's
        buffer = (ctypes.c_char * size).from_buffer(whole, start)
        self.memory[ctypes.addressof(buffer)] = buffer
        return ctypes.addressof(buffer)

    def free(self, address: int) -> None:
        del self.memory[address]
        self.calls.append("free")

    def run(self, work: Callable[[], None], stream: int) -> None:
        """Runs what is put into a stream, or records it."""
        if stream in self.captures:
            self.captures[stream].append(work)
        else:
            work()

    def fill(self, address: int, dtype: str, source: int, stream: int) -> None:
        """A kernel that writes one more than the first byte at `source`."""
        buffer, given = self.memory[address], self.memory[source]
        self.run(lambda: np.frombuffer(buffer, dtype).fill(1 + given.raw[0]), stream)

    def cuda_python(self) -> ModuleType:
        """`cuda.bindings.runtime`."""
        recorded: dict[str, list[Callable[[], None]]] = {}
        numbers = itertools.count()

        class Stream:
            def __init__(stream) -> None:
                stream.handle = next(self.streams)

            def __int__(stream) -> int:
                return stream.handle

        def malloc(size: int) -> tuple[Any, ...]:
            address = self.allocate(size)
            return (Error.cudaSuccess, address) if address else (Error.cudaErrorMemoryAllocation, None)

        def free(devPtr: int) -> tuple[Any, ...]:
            self.free(devPtr)
            return (Error.cudaSuccess,)

        def host_alloc(size: int, flags: int) -> tuple[Any, ...]:
            return malloc(size)

        def free_host(ptr: int) -> tuple[Any, ...]:
            del self.memory[ptr]
            return (Error.cudaSuccess,)

        def copy(dst: int, src: int, count: int, kind: int, stream: Stream) -> tuple[Any, ...]:
            assert kind in (1, 2) and isinstance(stream, Stream)
            self.run(lambda: ctypes.memmove(dst, src, count), int(stream))
            return (Error.cudaSuccess,)

        def wait(stream: Stream) -> tuple[Any, ...]:
            assert int(stream) not in self.captures
            self.waits(int(stream))
            return (Error.cudaSuccess,)

        def begin(stream: Stream, mode: int) -> tuple[Any, ...]:
            self.captures[int(stream)] = []
            return (Error.cudaSuccess,)

        def end(stream: Stream) -> tuple[Any, ...]:
            work = self.captures.pop(int(stream))
            if self.capture_breaks:
                return (Error.cudaErrorStreamCaptureInvalidated, None)
            name = f"graph {next(numbers)}"
            recorded[name] = work
            return (Error.cudaSuccess, name)

        def instantiate(graph: str, flags: int) -> tuple[Any, ...]:
            if not self.instantiates:
                return (Error.cudaErrorMemoryAllocation, None)
            name = f"executable {next(numbers)}"
            recorded[name] = recorded[graph]
            self.graphs.append(name)
            return (Error.cudaSuccess, name)

        def launch(graphExec: str, stream: Stream) -> tuple[Any, ...]:
            self.calls.append("replay")
            for work in recorded[graphExec]:
                work()
            return (Error.cudaSuccess,)

        def destroy_graph(graph: str) -> tuple[Any, ...]:
            del recorded[graph]
            return (Error.cudaSuccess,)

        def destroy_executable(graphExec: str) -> tuple[Any, ...]:
            self.graphs.remove(graphExec)
            return (Error.cudaSuccess,)

        def destroy_stream(stream: Stream) -> tuple[Any, ...]:
            self.calls.append("stream closed")
            return (Error.cudaSuccess,)

        module = ModuleType("cuda.bindings.runtime")
        module.__dict__.update(
            cudaStreamCaptureMode=SimpleNamespace(cudaStreamCaptureModeThreadLocal=1),
            cudaMemcpyKind=SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2),
            cudaMalloc=malloc,
            cudaFree=free,
            cudaHostAlloc=host_alloc,
            cudaFreeHost=free_host,
            cudaMemcpyAsync=copy,
            cudaStreamCreate=lambda: (Error.cudaSuccess, Stream()),
            cudaStreamSynchronize=wait,
            cudaStreamDestroy=destroy_stream,
            cudaStreamBeginCapture=begin,
            cudaStreamEndCapture=end,
            cudaGraphInstantiate=instantiate,
            cudaGraphDestroy=destroy_graph,
            cudaGraphExecDestroy=destroy_executable,
            cudaGraphLaunch=launch,
            cudaGetLastError=lambda: (Error.cudaSuccess,),
            cudaGetErrorString=lambda error: (Error.cudaSuccess, _TEXTS[error]),
        )
        return module

    def pycuda(self) -> ModuleType:
        """`pycuda.driver`. Its calls fail where no context is current."""
        stack: list[Any] = []

        class PyCudaError(Exception):
            pass

        class LogicError(PyCudaError):
            pass

        class OutOfMemory(PyCudaError):
            pass

        def needs_context() -> None:
            if not stack:
                raise LogicError("cuMemAlloc failed: invalid device context")

        class Context:
            def push(self) -> None:
                stack.append(self)

            @staticmethod
            def pop() -> None:
                needs_context()
                stack.pop()

        class DeviceAllocation:
            def __init__(allocation, size: int) -> None:
                needs_context()
                allocation.address = self.allocate(size)
                if not allocation.address:
                    raise OutOfMemory("cuMemAlloc failed: out of memory")

            def __int__(allocation) -> int:
                return allocation.address

            def free(allocation) -> None:
                needs_context()
                self.free(allocation.address)

        class Stream:
            def __init__(stream) -> None:
                needs_context()
                stream.handle = next(self.streams)

            def synchronize(stream) -> None:
                needs_context()
                self.waits(stream.handle)

        def to_device(dest: int, src: np.ndarray, stream: Stream) -> None:
            needs_context()
            self.run(lambda: ctypes.memmove(dest, src.ctypes.data, src.nbytes), stream.handle)

        def to_host(dest: np.ndarray, src: int, stream: Stream) -> None:
            needs_context()
            self.run(lambda: ctypes.memmove(dest.ctypes.data, src, dest.nbytes), stream.handle)

        def pagelocked_empty(shape: tuple[int, ...], dtype: str) -> np.ndarray:
            needs_context()
            return np.zeros(shape, dtype)

        context = Context()
        module = ModuleType("pycuda.driver")
        module.__dict__.update(
            init=lambda: None,
            Error=PyCudaError,
            Context=Context,
            Device=lambda number: SimpleNamespace(retain_primary_context=lambda: context),
            Stream=Stream,
            pagelocked_empty=pagelocked_empty,
            mem_alloc=DeviceAllocation,
            memcpy_htod_async=to_device,
            memcpy_dtoh_async=to_host,
            context_stack=stack,
        )
        return module
