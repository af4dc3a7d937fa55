"""Plugins in the global registry of TensorRT and in local ones.

Needed, beside what test_tensorrt_plugin.py needs: the PyPI packages of TensorRT-RTX.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
from support.tensorrt_driver import Built, Driver

from mssts import kernels
from mssts.errors import MsstsError
from mssts.runners.tensorrt_library import load_plugins

# Registries of a runtime, as trtexec --dynamicPlugins and a plan that carries its plugins use them, exist without a GPU
# in TensorRT-RTX alone. In one process with it is TensorRT itself, whose global registry is that of Triton's plugins.
LOCAL = """
import ctypes, sys
import tensorrt_rtx_bindings as rtx
runtime, library, asking = sys.argv[1:]
def registry_of(path):
    found = ctypes.CDLL(path).getPluginRegistry
    found.restype = ctypes.c_void_p
    return ctypes.c_void_p(found())
tensorrt = registry_of(runtime)
has = ctypes.CDLL(asking).has
plugins = ctypes.CDLL(library)
log = rtx.Logger(rtx.Logger.ERROR)
one, other = rtx.Runtime(log), rtx.Runtime(log)
def found(registry):
    return registry.get_creator("MSDeformAttn", "1", "") is not None
print(has(tensorrt), found(one.get_plugin_registry()), found(other.get_plugin_registry()))
print(one.get_plugin_registry().load_library(library) is not None)
print(has(tensorrt), found(one.get_plugin_registry()), found(other.get_plugin_registry()))
path = next(line.split()[-1] for line in open("/proc/self/maps") if "libtensorrt_rtx.so" in line)
plugins.mssts_register_tensorrt_plugins(registry_of(path))
print(found(other.get_plugin_registry()), found(rtx.Builder(log).get_plugin_registry()))
"""
ASKING = """#include <NvInferRuntime.h>
extern "C" int has(void* registry) {
  return static_cast<nvinfer1::IPluginRegistry*>(registry)->getCreator("MSDeformAttn", "1", "") != nullptr;
}
"""


@pytest.fixture
def local(built, tmp_path):
    """Runs a program with TensorRT-RTX, and gets the lines that it prints."""
    pytest.importorskip("tensorrt_rtx_bindings")
    (tmp_path / "asking.cpp").write_text(ASKING)
    asking = tmp_path / "asking.so"
    command = [built.flags[0], "-std=c++17", "-shared", "-fPIC", *built.flags[5:]]
    subprocess.run([*command, tmp_path / "asking.cpp", "-o", asking], check=True)
    program = [sys.executable, "-c", LOCAL, built.runtime, built.library, asking]
    done = subprocess.run(program, capture_output=True, text=True, check=True, timeout=60)
    return [line for line in done.stdout.splitlines() if not line.startswith("[")]  # not TensorRT's log


def test_a_library_loaded_by_one_runtime_is_taken_from_no_other(local):
    """A runtime has its own plugins and the global ones, and takes none away."""
    assert local == ["1 False False", "True", "1 True False", "True True"]


def test_another_tensorrt_does_not_find_the_plugins_and_the_message_says_why(built, monkeypatch):
    rtx = pytest.importorskip("tensorrt_rtx_bindings")
    monkeypatch.setattr(kernels, "library", lambda name: kernels.Library(name, built.library, ""))
    registry = rtx.Runtime(rtx.Logger(rtx.Logger.ERROR)).get_plugin_registry()
    with pytest.raises(MsstsError, match=rf"does not find MSDeformAttn.*built for TensorRT {built.major}\."):
        load_plugins(registry)


@pytest.fixture
def with_plugins(built: Built, start: Callable[..., Driver]) -> Driver:
    """A process with TensorRT and the plugins in its global registry."""
    driver = start()
    driver("dlopen", built.library, "now", "local")
    return driver


def has_plugins(driver: Driver) -> bool:
    return len(driver("creators", "MSDeformAttn", "SplitTemporalAttn").result) == 2


def test_without_a_driver_of_cuda_there_is_no_runtime_and_tensorrt_says_why(with_plugins):
    """`createInferRuntime` of the lean library asks for CUDA first.

    So what a runtime would find stays open. It logs its reason. Its code (11.1.0.106) ends in an `add $0x228` to
    whatever pointer it got, so that a caller gets 0x228 for null, takes it for a runtime and crashes in its first call.
    The registry is still whole after it.
    """
    reply = with_plugins("createRuntime")
    if reply.result is not None:
        pytest.skip("CUDA's driver is here, and a runtime: the test that needs a GPU is of that")
    assert all(severity == "ERROR" for severity, _ in reply.log)
    assert "CUDA initialization failure with error" in reply.log[0][1]
    assert has_plugins(with_plugins)


@pytest.mark.gpu
def test_a_runtime_finds_the_plugins_of_the_global_registry_and_refuses_what_is_no_plan(with_plugins):
    reply = with_plugins("createRuntime")
    assert reply.result == [True, False]
    assert "ERROR" in [severity for severity, _ in reply.log]
    assert has_plugins(with_plugins)
