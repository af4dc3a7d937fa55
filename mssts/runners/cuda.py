"""CUDA for the TensorRT runner: memory, streams, graphs.

`open_cuda` takes cuda-python (its module `cuda.bindings.runtime`) where that is installed, and pycuda otherwise. One
of the two is enough. pycuda has no CUDA graphs.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import math
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from mssts.errors import MsstsError

_INSTALL = "pip install cuda-python (or pycuda)"


class CudaError(MsstsError):
    """A call of CUDA that failed, with CUDA's own reason."""


class Cuda(ABC):
    """The first GPU of this process, and one stream on it.

    Every call but `current` is made inside `with cuda.current():`, on any thread. Addresses are whole numbers.
    """

    name: str
    has_graphs: bool
    many_threads: bool  # whether several of these may be in use at once, each on a thread of its own

    @abstractmethod
    def current(self) -> Any:
        """A context manager in which the GPU's context is that of the calling thread."""

    @property
    @abstractmethod
    def stream(self) -> int:
        """The stream's handle."""

    @abstractmethod
    def allocate(self, size: int) -> int:
        """The address of so many bytes on the GPU.

        Raises:
            CudaError: there is not enough memory.
        """

    @abstractmethod
    def free(self, address: int) -> None:
        """Frees what `allocate` returned."""

    @abstractmethod
    def pagelocked(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        """An array in page-locked memory of the host, freed with its last view.

        Raises:
            CudaError: there is not enough memory.
        """

    @abstractmethod
    def copy_in(self, address: int, host: np.ndarray) -> None:
        """Puts a copy from the host to the GPU into the stream."""

    @abstractmethod
    def copy_out(self, host: np.ndarray, address: int) -> None:
        """Puts a copy from the GPU to the host into the stream."""

    @abstractmethod
    def synchronize(self) -> None:
        """Waits for everything in the stream.

        Raises:
            CudaError: a kernel in it failed.
        """

    @abstractmethod
    def close(self) -> None:
        """Frees the stream."""

    def begin_capture(self) -> None:
        """Starts recording what is put into the stream, instead of running it."""
        raise CudaError(f"{self.name} has no CUDA graphs")

    def end_capture(self) -> Any:
        """The recorded graph, ready for `launch`.

        Raises:
            CudaError: something that was put into the stream cannot be recorded.
        """
        raise CudaError(f"{self.name} has no CUDA graphs")

    def launch(self, graph: Any) -> None:
        """Puts a recorded graph into the stream."""
        raise CudaError(f"{self.name} has no CUDA graphs")

    def free_graph(self, graph: Any) -> None:
        """Frees a recorded graph."""
        raise CudaError(f"{self.name} has no CUDA graphs")


class _CudaPython(Cuda):
    """cuda-python's runtime API, for which the context is current on every thread."""

    name = "cuda-python"
    has_graphs = True
    many_threads = True

    def __init__(self, api: Any) -> None:
        self._api = api
        try:
            self._stream = self._checked(api.cudaStreamCreate())
        except RuntimeError as error:  # of the module itself, where it finds no libcudart or driver
            raise CudaError(f"CUDA cannot be used: {_one_line(error)}") from None

    @contextmanager
    def current(self) -> Iterator[None]:
        yield

    @property
    def stream(self) -> int:
        return int(self._stream)

    def allocate(self, size: int) -> int:
        return int(self._checked(self._api.cudaMalloc(size)))

    def free(self, address: int) -> None:
        self._checked(self._api.cudaFree(address))

    def pagelocked(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        count = math.prod(shape)
        size = max(1, count * np.dtype(dtype).itemsize)
        address = int(self._checked(self._api.cudaHostAlloc(size, 0)))
        block: Any = (ctypes.c_uint8 * size).from_address(address)
        weakref.finalize(block, self._api.cudaFreeHost, address).atexit = False  # arrays keep the block
        return np.frombuffer(block, dtype, count).reshape(shape)

    def copy_in(self, address: int, host: np.ndarray) -> None:
        kind = self._api.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._checked(self._api.cudaMemcpyAsync(address, host.ctypes.data, host.nbytes, kind, self._stream))

    def copy_out(self, host: np.ndarray, address: int) -> None:
        kind = self._api.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._checked(self._api.cudaMemcpyAsync(host.ctypes.data, address, host.nbytes, kind, self._stream))

    def synchronize(self) -> None:
        self._checked(self._api.cudaStreamSynchronize(self._stream))

    def close(self) -> None:
        self._checked(self._api.cudaStreamDestroy(self._stream))

    def begin_capture(self) -> None:
        mode = self._api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._checked(self._api.cudaStreamBeginCapture(self._stream, mode))

    def end_capture(self) -> Any:
        graph = self._checked(self._api.cudaStreamEndCapture(self._stream))
        try:
            return self._checked(self._api.cudaGraphInstantiate(graph, 0))
        finally:
            self._checked(self._api.cudaGraphDestroy(graph))

    def launch(self, graph: Any) -> None:
        self._checked(self._api.cudaGraphLaunch(graph, self._stream))

    def free_graph(self, graph: Any) -> None:
        self._checked(self._api.cudaGraphExecDestroy(graph))

    def _checked(self, result: tuple[Any, ...]) -> Any:
        """The value of a call, which returns (error, value) or (error,)."""
        error, *values = result
        if int(error) != 0:
            self._api.cudaGetLastError()  # else the next caller would find it
            _, text = self._api.cudaGetErrorString(error)
            raise CudaError(f"CUDA: {text.decode() if isinstance(text, bytes) else text}")
        return values[0] if values else None


class _PyCuda(Cuda):
    """pycuda's driver API, on the primary context, which TensorRT uses as well."""

    name = "pycuda"
    has_graphs = False
    many_threads = False  # its contexts keep track of the one thread that they are active on

    def __init__(self, driver: Any) -> None:
        self._driver = driver
        with self._errors():
            driver.init()
            self._context = _primary_context(driver)
        self._memory: dict[int, Any] = {}
        with self.current():
            self._stream = driver.Stream()

    @contextmanager
    def current(self) -> Iterator[None]:
        with self._errors():
            self._context.push()
        try:
            yield
        finally:
            # Not self._context.pop(): that is pycuda's static method for the topmost one, which ours is.
            self._driver.Context.pop()

    @property
    def stream(self) -> int:
        return int(self._stream.handle)

    def allocate(self, size: int) -> int:
        with self._errors():
            memory = self._driver.mem_alloc(size)
        self._memory[int(memory)] = memory
        return int(memory)

    def free(self, address: int) -> None:
        with self._errors():
            self._memory.pop(address).free()

    def pagelocked(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        with self._errors():
            array: np.ndarray = self._driver.pagelocked_empty(shape, dtype)
        return array

    def copy_in(self, address: int, host: np.ndarray) -> None:
        with self._errors():
            self._driver.memcpy_htod_async(address, host, self._stream)

    def copy_out(self, host: np.ndarray, address: int) -> None:
        with self._errors():
            self._driver.memcpy_dtoh_async(host, address, self._stream)

    def synchronize(self) -> None:
        with self._errors():
            self._stream.synchronize()

    def close(self) -> None:
        del self._stream

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except self._driver.Error as error:
            raise CudaError(f"CUDA: {_one_line(error)}") from None


class Scratch:
    """Memory of a GPU that grows with use.

    It is a `mssts.runners.device_logits.DeviceMemory`.

    Args:
        cuda: whose stream and memory it is.
    """

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._rooms: dict[str, tuple[int, int]] = {}  # address and size
        self._host = np.empty(0, np.uint8)

    @property
    def stream(self) -> int:
        """The stream's handle."""
        return self._cuda.stream

    def room(self, name: str, size: int) -> int:
        """The address of so many bytes."""
        address, before = self._rooms.get(name, (0, 0))
        if size > before:
            if before:
                self._cuda.synchronize()
                self._cuda.free(self._rooms.pop(name)[0])
            address = self._cuda.allocate(size)
            self._rooms[name] = (address, size)
        return address

    def read(self, address: int, size: int) -> bytes:
        """Bytes on the GPU, after everything that is in the stream."""
        if size > len(self._host):
            self._host = self._cuda.pagelocked((size,), "uint8")
        self._cuda.copy_out(self._host[:size], address)
        self._cuda.synchronize()
        return self._host[:size].tobytes()

    def close(self) -> None:
        """Frees it."""
        while self._rooms:
            self._cuda.free(self._rooms.popitem()[1][0])


@functools.cache
def _primary_context(driver: Any) -> Any:
    """pycuda's primary context of the first GPU, kept for the life of the process.

    Letting it go would push it once more and leave it on the stack of that thread.
    """
    return driver.Device(0).retain_primary_context()


def open_cuda() -> Cuda:
    """CUDA by the first of the two packages that is installed.

    Raises:
        MsstsError: neither is.
        CudaError: there is no GPU, or no driver for this CUDA.
    """
    bindings: dict[str, Callable[[Any], Cuda]] = {"cuda.bindings.runtime": _CudaPython, "pycuda.driver": _PyCuda}
    for module, kind in bindings.items():
        try:
            found = importlib.import_module(module)
        except ImportError:
            continue
        return kind(found)
    raise MsstsError(f"neither cuda-python nor pycuda is installed; `{_INSTALL}`")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
