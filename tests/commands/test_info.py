"""`mssts info`: what works here, from where, and why the rest does not."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mssts import kernels
from mssts.commands import info
from mssts.kernels import library

ROOT = Path(__file__).resolve().parents[2]
BUILT = library("cpu")

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler (cc)")


@pytest.fixture
def libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that libraries are looked for in, empty at first, for this test alone."""
    folder = tmp_path / "libraries"
    folder.mkdir()
    monkeypatch.setenv(kernels.FOLDER_VARIABLE, str(folder))
    library.cache_clear()
    yield folder
    library.cache_clear()


@pytest.fixture
def reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[[], tuple[dict[str, Any], str]]:
    """Runs the command and returns the JSON it wrote and what it printed.

    The printed text is joined into one line.
    """

    def run() -> tuple[dict[str, Any], str]:
        parser = argparse.ArgumentParser()
        info.add_arguments(parser)
        file = tmp_path / "info.json"
        assert info.run(parser.parse_args(["--json", str(file)])) is None
        return json.loads(file.read_text()), " ".join(capsys.readouterr().out.split())

    return run


def compile_library(path: Path, functions: dict[str, str]) -> None:
    """A library whose functions, which take nothing, return these C expressions."""
    source = path.with_suffix(".c")
    lines = []
    for name, value in functions.items():
        result = "const char*" if value.startswith('"') else "long"
        lines.append(f"{result} {name}(void) {{ return {value}; }}")
    source.write_text("\n".join(lines))
    subprocess.run(["cc", "-shared", "-fPIC", "-o", path, source], check=True)


def stub(name: str, **answers: str) -> dict[str, str]:
    """Every function that a library of the C ABI must have, each doing nothing."""
    functions = dict.fromkeys((function for function, _, _ in kernels._declarations(name)), "0")
    return {"mssts_abi_version": str(kernels.ABI_VERSION), **functions, **answers}


# ------------------------------------------------------------------------------------------------------- libraries


def test_a_missing_library_says_where_it_was_looked_for(libraries):
    found = library("cpu")
    assert found.reason == f"no libmssts_cpu.so in {libraries}; `make plugins` in a checkout builds it"
    assert found.path is found.handle is None


def test_an_empty_variable_switches_all_off(libraries, monkeypatch):
    monkeypatch.setenv(kernels.FOLDER_VARIABLE, "")
    assert {library(name).reason for name in kernels.FILES} == {"switched off by an empty MSSTS_LIBRARIES"}


def test_a_variable_that_names_no_folder_is_pointed_out(libraries, monkeypatch):
    monkeypatch.setenv(kernels.FOLDER_VARIABLE, str(libraries / "gone"))
    assert (
        library("cpu").reason == f"MSSTS_LIBRARIES names {libraries / 'gone'}, which is no folder; unset or correct it"
    )


def test_a_broken_library_is_a_reason_not_a_crash(libraries):
    (libraries / "libmssts_cpu.so").write_bytes(b"\x7fELF, but not really")
    found = library("cpu")
    assert found.reason.startswith("cannot be loaded (") and found.reason.endswith("rebuilds it")
    assert found.path == libraries / "libmssts_cpu.so"


@needs_compiler
def test_a_library_of_another_abi_is_not_used(libraries):
    compile_library(libraries / "libmssts_cpu.so", stub("cpu", mssts_abi_version="99"))
    assert library("cpu").reason == (
        f"has ABI 99, this package wants {kernels.ABI_VERSION}; `make plugins` in a checkout rebuilds it"
    )
    assert library("cpu").handle is None


@needs_compiler
def test_a_library_that_lacks_a_function_is_not_used(libraries):
    functions = stub("cpu")
    del functions["mssts_cpu_temporal_attn_backward"]
    compile_library(libraries / "libmssts_cpu.so", functions)
    assert "undefined symbol: mssts_cpu_temporal_attn_backward" in library("cpu").reason


@needs_compiler
def test_the_structs_are_those_of_the_header(tmp_path):
    program = tmp_path / "sizes.c"
    structs = {"mssts_deform_attn": kernels.DeformAttnCall, "mssts_temporal_attn": kernels.TemporalAttnCall}
    structs["mssts_executor"] = kernels.Executor
    lines = ["#include <stddef.h>", "#include <stdio.h>", "#include <mssts/kernels.h>", "int main(void) {"]
    expected = []
    for name, struct in structs.items():
        lines.append(f'printf("%zu ", sizeof({name}));')
        expected.append(kernels.ctypes.sizeof(struct))
        for field, *_ in struct._fields_:
            lines.append(f'printf("%zu ", offsetof({name}, {field}));')
            expected.append(getattr(struct, field).offset)
    program.write_text("\n".join([*lines, "}"]))
    executable = tmp_path / "sizes"
    subprocess.run(["cc", f"-I{ROOT / 'plugins' / 'include'}", "-o", executable, program], check=True)
    printed = subprocess.run([executable], capture_output=True, text=True, check=True).stdout
    assert [int(word) for word in printed.split()] == expected


# --------------------------------------------------------------------------------------------------------- the command


def test_without_libraries_every_line_says_what_to_do(libraries, reported):
    found, printed = reported()
    assert set(found["kernels"]) == {
        "PyTorch, CPU", "PyTorch, CUDA", "ONNX Runtime, CPU", "ONNX Runtime, CUDA", "OpenVINO, CPU", "TensorRT"
    }  # fmt: skip
    assert not any(entry["active"] for entry in found["kernels"].values())
    assert all("`make plugins` in a checkout builds it" in entry["detail"] for entry in found["kernels"].values())
    assert found["library_folder"] == str(libraries)
    assert {"machine", "versions", "commit", "gpus", "engines"} <= set(found)
    assert f"no libmssts_cuda.so in {libraries}" in printed


def test_engines_are_those_that_can_be_imported(libraries, reported, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    found, printed = reported()
    assert found["engines"]["ONNX Runtime"]["facts"]["providers"]
    assert not found["engines"]["OpenVINO"]["active"]
    assert "no OpenVINO not installed; `pip install openvino`" in printed


@pytest.mark.skipif(bool(BUILT.reason), reason=f"the CPU kernels: {BUILT.reason}")
def test_active_kernels_are_shown_with_their_origin(reported):
    found, printed = reported()
    entry = found["kernels"]["PyTorch, CPU"]
    assert entry["active"] and entry["path"] == str(BUILT.path)
    assert entry["facts"]["instruction_set"] in ("avx512", "avx2", "portable")
    assert f"yes PyTorch, CPU {entry['facts']['instruction_set']}" in printed
    assert str(BUILT.path) in printed


@pytest.mark.skipif(bool(BUILT.reason), reason=f"the CPU kernels: {BUILT.reason}")
def test_kernels_without_their_runtime_are_not_active(reported, monkeypatch):
    for module in ("torch", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, module, None)
    found, _ = reported()
    assert not any(entry["active"] for entry in found["engines"].values())
    assert not any(entry["active"] for entry in found["kernels"].values())
    assert found["kernels"]["PyTorch, CPU"]["detail"].endswith("but PyTorch is not installed; `pip install torch`")


@needs_compiler
def test_cuda_kernels_without_a_gpu_tell_what_they_were_built_for(libraries, reported):
    answers = {"mssts_cuda_build": '"sm_80 sm_90, CUDA 13.0"', "mssts_cuda_devices": "0"}
    compile_library(libraries / "libmssts_cuda.so", stub("cuda", **answers))
    entry = reported()[0]["kernels"]["PyTorch, CUDA"]
    assert not entry["active"]
    assert entry["detail"] == "built for sm_80 sm_90, CUDA 13.0, but no GPU that it can run on, or no driver"
    assert entry["facts"]["build"] == "sm_80 sm_90, CUDA 13.0"


@needs_compiler
def test_a_pytorch_without_cuda_does_not_use_cuda_kernels(libraries, reported):
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this PyTorch has CUDA")
    answers = {"mssts_cuda_build": '"sm_90"', "mssts_cuda_devices": "1"}
    compile_library(libraries / "libmssts_cuda.so", stub("cuda", **answers))
    entry = reported()[0]["kernels"]["PyTorch, CUDA"]
    assert not entry["active"]
    assert entry["detail"].startswith("built for sm_90, but this PyTorch is built without CUDA")


def test_a_broken_library_of_onnx_runtimes_is_reported(libraries, reported):
    (libraries / "libmssts_onnxruntime.so").write_bytes(b"no library")
    entry = reported()[0]["kernels"]["ONNX Runtime, CPU"]
    assert not entry["active"]
    assert "cannot be loaded (" in entry["detail"] and "rebuilds it" in entry["detail"]


@pytest.mark.parametrize(
    ("script", "gpus", "expected"),
    [
        ("echo 'NVIDIA H200, 143771 MiB, 570.1, 9.0'", ["NVIDIA H200"], "H200, 143771 MiB, compute capability 9.0"),
        ("echo 'driver is not loaded'; exit 9", [], "none found (nvidia-smi: driver is not loaded)"),
    ],
)
def test_gpus_are_those_that_the_driver_lists(libraries, reported, tmp_path, monkeypatch, script, gpus, expected):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    found, printed = reported()
    assert [gpu["name"] for gpu in found["gpus"]] == gpus
    assert expected in printed


def test_a_file_that_cannot_be_written_is_one_line(libraries, reported, tmp_path):
    from mssts.errors import MsstsError

    (tmp_path / "info.json").mkdir()
    with pytest.raises(MsstsError, match="is a folder; expected the name of a file"):
        reported()
