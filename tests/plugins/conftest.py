"""Fixtures of the tests of the kernels and their bindings."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.cuda_backends import (
    ORDERS,
    Backend,
    DeviceMemory,
    GuardedMemory,
    build_emulation,
    gpu_library,
    missing_tool,
)
from support.tensorrt_driver import Built, Driver, compile_all


@pytest.fixture(scope="session")
def emulation() -> Path:
    """The folder of the emulated library."""
    if tool := missing_tool():
        pytest.skip(f"the emulation is built with {tool}, which is not installed")
    return build_emulation()


@pytest.fixture(scope="session", params=["emulated", pytest.param("gpu", marks=pytest.mark.gpu)])
def backend(request: pytest.FixtureRequest) -> Backend:
    """The kernels in emulation, or on a GPU."""
    if request.param == "gpu":
        handle, reason = gpu_library()
        if reason:
            pytest.skip(reason)
        return Backend(handle, DeviceMemory)
    folder = request.getfixturevalue("emulation")
    return Backend(ctypes.CDLL(str(folder / "libmssts_cuda_emulated.so")), GuardedMemory)


@pytest.fixture(params=ORDERS)
def any_order(request: pytest.FixtureRequest, backend: Backend) -> Iterator[None]:
    """Races show where the order of the threads changes the result."""
    if not backend.emulated and request.param != 0:
        pytest.skip("a GPU chooses the order itself")
    with backend.order(request.param):
        yield


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The driver and the plugins, compiled once a session."""
    return compile_all(tmp_path_factory.mktemp("tensorrt"))


@pytest.fixture
def start(built: Built) -> Iterator[Callable[..., Driver]]:
    """Starts drivers, and ends them with the test."""
    started: list[Driver] = []

    def start_one(kernels: Path | None = None, runtime: bool = True, program: Path | None = None) -> Driver:
        started.append(Driver(program or built.driver, kernels))
        if runtime:
            started[-1]("runtime", built.runtime)
        return started[-1]

    yield start_one
    for driver in started:
        if driver.process.poll() is None:
            driver.process.kill()
            driver.process.communicate()
