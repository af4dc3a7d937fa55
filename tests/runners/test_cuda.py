"""CUDA by cuda-python and by pycuda, and whether their stand-ins are like them."""

from __future__ import annotations

import importlib
import inspect

import numpy as np
import pytest
from support.cuda_stand_in import Gpu

from mssts.errors import MsstsError
from mssts.runners import cuda
from mssts.runners.cuda import CudaError, open_cuda


@pytest.fixture(params=["cuda.bindings.runtime", "pycuda.driver"])
def opened(request, monkeypatch):
    """(the stand-in's GPU, CUDA by one of the two packages)."""
    gpu = Gpu()
    found = gpu.cuda_python() if request.param.startswith("cuda.") else gpu.pycuda()

    def import_module(name: str):
        if name != request.param:
            raise ImportError(name=name)
        return found

    monkeypatch.setattr(cuda.importlib, "import_module", import_module)
    return gpu, open_cuda()


def test_data_go_to_the_gpu_and_back(opened):
    gpu, api = opened
    with api.current():
        host = api.pagelocked((2, 3), "float32")
        host[:] = np.arange(6).reshape(2, 3)
        address = api.allocate(host.nbytes)
        assert type(address) is int and type(api.stream) is int
        api.copy_in(address, host)
        back = api.pagelocked((2, 3), "float32")
        api.copy_out(back, address)
        api.synchronize()
        assert (back == host).all()
        api.free(address)
        api.close()
    del host, back
    assert gpu.memory == {}


def test_page_locked_memory_lives_as_long_as_a_view_of_it(opened):
    _, api = opened
    with api.current():
        part = api.pagelocked((4, 4), "int32")[1:]
        part[:] = 7
        assert (part == 7).all()


def test_errors_are_cudas_own_words(opened):
    gpu, api = opened
    gpu.has_memory = False
    with api.current(), pytest.raises(CudaError, match=r"^CUDA: .*out of memory$"):
        api.allocate(1 << 20)


def test_without_graphs_it_says_so(opened):
    _, api = opened
    if not api.has_graphs:
        with pytest.raises(CudaError, match="pycuda has no CUDA graphs"):
            api.begin_capture()


def test_one_of_the_two_must_be_installed(monkeypatch):
    def import_module(name: str):
        raise ImportError(name=name)

    monkeypatch.setattr(cuda.importlib, "import_module", import_module)
    with pytest.raises(MsstsError, match="neither cuda-python nor pycuda is installed"):
        open_cuda()


def test_the_stand_in_has_the_arguments_of_cuda_python():
    real = pytest.importorskip("cuda.bindings.runtime", exc_type=ImportError)
    for name, function in vars(Gpu().cuda_python()).items():
        if not inspect.isfunction(function) or name.startswith("_"):
            continue
        assert list(inspect.signature(function).parameters) == list(
            inspect.signature(getattr(real, name)).parameters
        ), name


def test_cuda_python_without_a_gpu_is_one_line():
    try:
        importlib.import_module("cuda.bindings.runtime")
    except ImportError:
        pytest.skip("cuda-python is not installed")
    try:
        open_cuda()
    except CudaError as error:
        assert "\n" not in str(error) and str(error).startswith("CUDA")
