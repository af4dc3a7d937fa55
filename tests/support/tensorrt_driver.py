"""Builds and talks to a driver that calls a plugin library as TensorRT does.

It is tests/tensorrt_driver/driver.cpp.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLUGINS, DRIVER = ROOT / "plugins", ROOT / "tests" / "tensorrt_driver"


@dataclass
class Reply:
    """The driver's answer: the call's result, and what was logged meanwhile."""

    result: object
    log: list[tuple[str, str]]

    def says(self, *parts: str) -> bool:
        """Whether one error is logged, and has these parts."""
        return [name for name, _ in self.log] == ["ERROR"] and all(part in self.log[0][1] for part in parts)


class Driver:
    """One process with a TensorRT runtime. A crash of it is a failure of the test."""

    def __init__(self, program: Path, kernel_library: Path | None = None):
        environment = {name: value for name, value in os.environ.items() if name != "MSSTS_HOST_KERNELS"}
        if kernel_library is not None:
            environment["MSSTS_HOST_KERNELS"] = str(kernel_library)
        self.process = subprocess.Popen(
            [program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def __call__(self, *words: object) -> Reply:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the driver ended at {words}: {self.close()}")
        reply = json.loads(line)
        if "error" in reply:
            raise RuntimeError(reply["error"])
        return Reply(reply["result"], [tuple(entry) for entry in reply["log"]])

    def close(self) -> str:
        """Ends the process and returns what it wrote to stderr."""
        return self.process.communicate()[1] if self.process.poll() is None or self.process.stdout else ""


@dataclass
class Built:
    """The compiled files of the tests, and the runtime that they run against."""

    driver: Path
    library: Path
    runtime: Path
    major: int
    cuda_headers: Path
    flags: list[str]


def headers(variable: str, file: str, folders: list[Path]) -> Path:
    named = os.environ.get(variable)
    for folder in [Path(named)] if named else folders:
        if (folder / file).is_file():
            return folder
    pytest.skip(f"no {file}{f' in {variable}={named}' if named else f'; {variable} names its folder'}")


def tensorrt_headers() -> Path:
    multiarch = sysconfig.get_config_var("MULTIARCH") or ""
    roots = [Path(root, "include") for root in ("/usr", "/usr/local/tensorrt", "/opt/tensorrt")]
    return headers("TENSORRT_INCLUDE_DIR", "NvInferRuntime.h", [Path("/usr/include", multiarch), *roots])


def cuda_headers() -> Path:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    wheels = Path(sysconfig.get_path("purelib"), "nvidia")
    folders = [Path(home, "include")] if home else []
    folders += [Path("/usr/local/cuda/include"), wheels / "cu13/include", wheels / "cuda_runtime/include"]
    return headers("CUDA_INCLUDE_DIR", "cuda_runtime_api.h", [*folders, Path("/usr/include")])


def runtime_library(major: int) -> Path:
    """A TensorRT runtime.

    It is the file that TENSORRT_RUNTIME names, or comes from a Python package.
    """
    if named := os.environ.get("TENSORRT_RUNTIME"):
        return Path(named)
    for package, name in (("tensorrt_lean_libs", "libnvinfer_lean.so"), ("tensorrt_libs", "libnvinfer.so")):
        found = importlib.util.find_spec(package)
        for folder in (found.submodule_search_locations or []) if found else []:
            if (file := Path(folder, f"{name}.{major}")).is_file():
                return file
    pytest.skip(f"no TensorRT {major} runtime; the PyPI package tensorrt-lean-cu13-libs=={major}.* has one")


def compile_all(folder: Path) -> Built:
    """Compiles the driver and the plugins over host_kernels.cpp in place of CUDA.

    Skips the test where it cannot.
    """
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        pytest.skip("no C++ compiler")
    tensorrt, cuda = tensorrt_headers(), cuda_headers()
    version = (tensorrt / "NvInferVersion.h").read_text()
    major = int(re.findall(r"^#define (?:NV_TENSORRT_MAJOR|TRT_MAJOR_ENTERPRISE) +(\d+)", version, re.MULTILINE)[0])
    runtime = runtime_library(major)
    binding = PLUGINS / "tensorrt"
    flags = [compiler, "-std=c++17", "-O0", "-Wall", "-Wextra", "-Werror", '-DMSSTS_KERNELS_HASH="0123"']
    flags += [f"-I{folder}" for folder in (binding, PLUGINS, PLUGINS / "include")]
    # As system headers, but after the compiler's own folders: one of these may be among them.
    flags += ["-idirafter", str(tensorrt), "-idirafter", str(cuda)]
    result = Built(folder / "driver", folder / "libmssts_tensorrt.so", runtime, major, cuda, flags)
    shared = ["-shared", "-fPIC", "-fvisibility=hidden", "-Wl,--no-undefined", "-Wl,-z,nodelete"]
    shared += [f"-Wl,--version-script={binding / 'exports.map'}", "-static-libstdc++", "-static-libgcc"]
    sources = [*sorted(binding.glob("*.cpp")), PLUGINS / "common/node.cpp", DRIVER / "host_kernels.cpp"]
    subprocess.run([*flags, *shared, *sources, "-o", result.library, "-ldl"], check=True)
    subprocess.run([*flags, DRIVER / "driver.cpp", "-o", result.driver, "-ldl"], check=True)
    return result


def compile_for_gpu(built: Built) -> Path:
    """The driver with tensors in GPU memory."""
    program = built.driver.with_name("driver_cuda")
    folders = [f"-L{built.cuda_headers.parent / name}" for name in ("lib64", "lib")]
    libraries = ["-lcudart_static", "-ldl", "-lpthread", "-lrt"]
    source = DRIVER / "driver.cpp"
    subprocess.run([*built.flags, "-DMSSTS_DRIVER_CUDA", source, "-o", program, *folders, *libraries], check=True)
    return program
