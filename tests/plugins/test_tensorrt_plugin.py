"""TensorRT's binding, driven through TensorRT's interfaces and a real runtime.

A small C++ program (tests/tensorrt_driver/driver.cpp) opens the lean runtime, which works without a GPU, loads the
plugin library as Triton, trtexec and TensorRT itself do, and makes the calls that the builder and an engine make.
`enqueue` runs for real, but without a GPU on host memory, with the emulated CUDA kernels or the CPU's in place of the
CUDA kernels.

Needed: a C++ compiler, CUDA's headers, TensorRT's headers (TENSORRT_INCLUDE_DIR; no package of PyPI has them) and a
TensorRT runtime of the same major version (the PyPI package tensorrt-lean-cu13-libs, or the file that TENSORRT_RUNTIME
names).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from support.tensorrt_driver import Built, Driver, Reply

from mssts import kernels

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# Error of the 16-bit kernels beyond the rounding of the result: none, as arithmetic is in fp32.
ROUNDING = {torch.float32: 2e-6, torch.float16: 2**-11, torch.bfloat16: 2**-8}


@pytest.fixture
def driver(built: Built, start: Callable[..., Driver]) -> Driver:
    """A process with runtime, plugins and a logger."""
    one = start()
    one("dlopen", built.library, "now", "local")
    one("logger")
    return one


NAMES = ("MSDeformAttn", "SplitTemporalAttn")
CREATORS = [["MSDeformAttn", "1", "", []], ["SplitTemporalAttn", "1", "", ["heads", "starts", "ends"]]]


# Triton opens with now and local, trtexec --staticPlugins with lazy and local, Python with now and either.
@pytest.mark.parametrize("when", ["lazy", "now"])
@pytest.mark.parametrize("scope", ["local", "global"])
def test_opening_the_library_registers_the_plugins(built, start, when, scope):
    driver = start()
    assert driver("creators", *NAMES).result == []
    driver("dlopen", built.library, when, scope)
    assert driver("creators", *NAMES).result == CREATORS
    driver("dlopen", built.library, when, scope)  # a second time changes nothing
    assert driver("register").result == 1
    assert driver("creators", *NAMES).result == CREATORS
    assert driver.close() == ""


def test_tensorrt_loads_it_as_a_plugin_library_too(built, start):
    """By the global registry, where opening the library has registered them."""
    driver = start()
    assert driver("loadLibrary", built.library).result is False
    assert driver("creators", *NAMES).result == CREATORS


def test_a_second_copy_of_the_library_does_no_harm(built, start, tmp_path):
    driver = start()
    driver("dlopen", built.library, "now", "local")
    driver("dlopen", shutil.copy(built.library, tmp_path / "copy.so"), "now", "local")
    assert driver("creators", *NAMES).result == CREATORS
    assert driver.close() == ""


def test_without_tensorrt_it_says_so_and_registers_later(built, start):
    driver = start(runtime=False)
    driver("dlopen", built.library, "now", "local")
    assert driver("register").result == 0
    driver("runtime", built.runtime)
    assert driver("register").result == 1
    assert driver("creators", *NAMES).result == CREATORS
    first, *_ = driver.close().splitlines()
    assert f"built for TensorRT {built.major}, but none is loaded" in first and "no plugin is registered" in first


def test_loaded_before_everything_it_brings_tensorrt_along(built, tmp_path):
    """LD_PRELOAD, the other way that Triton documents."""
    program = "import ctypes; print(ctypes.CDLL(None).mssts_register_tensorrt_plugins(None))"
    shutil.copy(built.runtime, tmp_path / built.runtime.name)
    environment = os.environ | {"LD_PRELOAD": str(built.library), "LD_LIBRARY_PATH": str(tmp_path)}
    answer = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert (answer.stdout.strip(), answer.stderr) == ("1", "")


def test_it_leaves_another_major_version_alone(built, start, tmp_path):
    """A stand-in for the other version, whose registry would crash its caller."""
    other = built.major + 1
    source = tmp_path / "other.cpp"
    functions = f"int getInferLibMajorVersion() {{ return {other}; }} void* getPluginRegistry() {{ return (void*)8; }}"
    source.write_text(f'extern "C" {{ {functions} }}')
    name = f"libnvinfer.so.{other}"
    subprocess.run(
        [built.flags[0], "-shared", "-fPIC", f"-Wl,-soname,{name}", source, "-o", tmp_path / name], check=True
    )
    driver = start(runtime=False)
    driver("dlopen", tmp_path / name, "now", "local")
    driver("dlopen", built.library, "now", "local")
    assert f"built for TensorRT {built.major}, but this process runs TensorRT {other} ({name})" in driver.close()


def test_it_depends_on_no_libnvinfer_and_exports_only_its_entry_point(built):
    """A dependency on one libnvinfer would shut the lean and the dispatch runtime out."""
    if shutil.which("nm") is None or shutil.which("readelf") is None:
        pytest.skip("no binutils")
    needed = subprocess.run(["readelf", "-d", built.library], capture_output=True, text=True, check=True).stdout
    assert "libnvinfer" not in needed and "libstdc++" not in needed and "NODELETE" in needed
    listing = subprocess.run(["nm", "-D", "--defined-only", built.library], capture_output=True, text=True, check=True)
    exported = {line.split()[-1] for line in listing.stdout.splitlines()}
    assert {"getCreators", "setLoggerFinder", "mssts_register_tensorrt_plugins", "mssts_tensorrt_build"} <= exported
    assert not any("deform_attn" in name or name.startswith("_Z") for name in exported)


def test_the_plugins_have_all_parts_and_the_names_of_the_onnx_nodes(driver, built):
    parts = ["PLUGIN", "PLUGIN_V3ONE_CORE", "PLUGIN_V3ONE_BUILD", "PLUGIN_V3ONE_RUNTIME"]
    driver("create", "MSDeformAttn", "build")
    assert driver("capabilities").result == [*parts, "MSDeformAttn", "1", ""]
    driver("create", "SplitTemporalAttn", "runtime", "heads:int32:4")
    assert driver("capabilities").result == [*parts, "SplitTemporalAttn", "1", ""]
    assert driver("outputs").result == 1
    assert driver("workspace").result == 0
    assert str(driver("build").result).startswith(f"TensorRT {built.major}.")


@pytest.mark.parametrize(
    ("fields", "heads"),
    [
        (["heads:int32:4"], 4),
        (["heads:int64:8"], 8),
        (["plugin_version:char:1", "heads:int32:2", "plugin_namespace:char:", "unknown:int64:7"], 2),
    ],
)
def test_heads_are_read_from_the_node(driver, fields, heads):
    assert driver("create", "SplitTemporalAttn", "build", *fields).result == 0
    assert driver("fields").result == [["heads", heads]]


def test_the_timing_caches_id_has_the_hash_of_the_kernels(driver, start):
    for op, *fields in (("MSDeformAttn",), ("SplitTemporalAttn", "heads:int32:4")):
        driver("create", op, "build", *fields)
        assert str(driver("timing").result).endswith(" kernels=0123")  # what the tests compile it with
    real = kernels.library("tensorrt")
    if real.path is None or real.reason:
        pytest.skip(f"the TensorRT plugins: {real.reason}")
    other = start()
    other("dlopen", real.path, "now", "local")
    other("create", "MSDeformAttn", "build")
    assert re.search(" kernels=[0-9a-f]{16}$", str(other("timing").result))


@pytest.mark.parametrize("kind", ["int32", "int64"])
def test_parts_are_read_from_the_node(driver, kind):
    parts = [f"starts:{kind}:0,16,32", f"ends:{kind}:16,32,48"]
    driver("create", "SplitTemporalAttn", "build", "heads:int32:2", *parts)
    fields = [["heads", 2], ["starts", 0, 16, 32], ["ends", 16, 32, 48]]
    assert driver("fields").result == fields
    identities = driver("timing"), driver("metadata")
    driver("recreate")
    driver("clone")
    assert (driver("timing"), driver("metadata"), driver("fields").result) == (*identities, fields)
    assert driver("shapes", "B,T,S,48", "B,T,S,48", "B,T,S,48").result == ["B", "T", "S", "16"]
    driver("create", "SplitTemporalAttn", "build", "heads:int32:2")
    assert driver("timing") != identities[0]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ([], "heads is missing"),
        (["heads:int32:2", "starts:int32:0,1"], "attribute starts must be three integers"),
        (["heads:int32:2", "starts:int32:0,4,4", "ends:int32:4,4,8"], "are 4 to 4 for key, expected a start"),
        (["heads:int32:0"], "heads is 0, expected 1 or more"),
        (["heads:int64:-3"], "heads is -3"),
        (["heads:int64:4294967296"], "heads is 4294967296"),
        (["heads:char:4"], "heads must be one integer"),
    ],
)
def test_a_node_without_usable_heads_is_refused(driver, fields, message):
    reply = driver("create", "SplitTemporalAttn", "build", *fields)
    assert reply.result is None and reply.says("SplitTemporalAttn", message)


def test_what_goes_through_a_plan_makes_an_equal_plugin(driver):
    driver("create", "SplitTemporalAttn", "build", "heads:int32:4")
    attributes = driver("fields"), driver("timing"), driver("metadata")
    for copy in ("recreate", "clone", "attach"):
        driver("use", 0)
        driver(copy)
        assert (driver("fields"), driver("timing"), driver("metadata")) == attributes, copy
    driver("use", 0)
    driver("delete")
    driver("use", 2)  # the clone does not point into what it was cloned from
    assert driver("fields").result == [["heads", 4]]
    driver("create", "SplitTemporalAttn", "build", "heads:int32:8")
    assert driver("timing") != attributes[1]  # else TensorRT would take the one's times for the other's
    driver("create", "MSDeformAttn", "build")
    assert driver("fields").result == []
    assert driver("timing").result and driver("timing") != attributes[1]
    assert driver("recreate").result is not None
    assert driver("tactic", 0).result == 0
    assert driver("tactic", 2).says("no tactic 2")


DEFORM = ["value", "shapes", "reference", "offsets", "logits", "out"]
DEFORM_TYPES = ["float16", "int64", "float32", "float16", "float16", "float16"]
TEMPORAL = ["query", "key", "value", "out"]
ALL_TYPES = ["float32", "float16", "bfloat16", "int32", "int64", "int8", "bool", "uint8", "fp8", "int4"]
FORMATS = ["linear", "chw2", "hwc8", "chw32", "hwc"]


@pytest.mark.parametrize("first", ["float32", "float16", "bfloat16"])
def test_every_combination_of_types_and_formats(driver, first):
    """For each tensor, exactly the contract's types and formats are accepted.

    All are tried, after good ones.
    """
    same, index = {first}, {"int32", "int64"}
    floats = {"float32", "float16", "bfloat16"}
    for op, names, allowed in (
        ("MSDeformAttn heads:int32:1", DEFORM, [floats, index, {"float32"}, same, same, same]),
        ("SplitTemporalAttn heads:int32:4", TEMPORAL, [floats, same, same, same]),
    ):
        name, *fields = op.split()
        driver("create", name, "build", *fields)
        good = [first if len(types) > 2 else sorted(types)[0] for types in allowed]
        for position, types in enumerate(allowed):
            tried = [(type_, "linear") for type_ in ALL_TYPES] + [(good[position], layout) for layout in FORMATS[1:]]
            for type_, layout in tried:
                # What comes after is not set yet when TensorRT asks: rubbish must not matter.
                tensors = [f"{t}:-" for t in good[:position]] + [f"{type_}:-:{layout}"]
                tensors += ["int4:-:chw32"] * (len(names) - position - 1)
                reply = driver("format", position, *tensors)
                expected = type_ in types and layout == "linear"
                assert reply.result is expected, (name, names[position], type_, layout)
                # A no while the builder tries combinations is no error, but the verbose log has the reason.
                assert [severity for severity, _ in reply.log] == ([] if expected else ["VERBOSE"])
                assert expected or names[position] in reply.log[0][1]


def test_output_types_follow_the_data(driver):
    driver("create", "MSDeformAttn", "build")
    for dtype in ("float32", "float16", "bfloat16"):
        for index in ("int32", "int64"):
            assert driver("types", dtype, index, "float32", dtype, dtype).result == dtype
    assert driver("types", "float16", "int64", "float16", "float16", "float16").says("reference is FP16", "FP32")
    assert driver("types", "float16", "float32", "float32", "float16", "float16").says("shapes is FP32", "INT64")
    assert driver("types", "float16", "int64", "float32", "float32", "float16").says("offsets is FP32", "FP16 as value")
    assert driver("types", "float16", "int64", "float32", "float16").says("4 inputs", "expected 5", "logits")
    driver("create", "SplitTemporalAttn", "build", "heads:int32:4")
    assert driver("types", "bfloat16", "bfloat16", "bfloat16").result == "bfloat16"
    assert driver("types", "int8", "int8", "int8").says("query is INT8, expected FP32, FP16 or BF16")
    assert driver("types", "float16", "float16", "float32").says("value is FP32, expected FP16 as query")


def test_output_shapes_stay_symbolic(driver):
    driver("create", "MSDeformAttn", "build")

    def shapes(value="N,S,8,32", levels="4,2", reference="N,Q,4,4", offsets="N,Q,8,4,4,2", logits="N,Q,8,4,4"):
        return driver("shapes", value, levels, reference, offsets, logits)

    assert shapes().result == ["N", "Q", "256"]
    assert shapes(value="5,S,M,D", offsets="5,300,M,L,P,2", logits="5,300,M,L,P").result == ["5", "300", "M*D"]
    assert shapes(levels="4,3").says("shapes is [4,3], expected [L,2]")
    assert shapes(reference="N,Q,4,3").says("reference has 3 coordinates, expected 2 or 4")
    assert shapes(logits="N,Q,8,3,4").says("logits is [?,?,8,3,4]", "L = 4 as in shapes")
    assert shapes(offsets="N,Q,8,4,4").says("offsets is [?,?,8,4,4], expected [N,Q,M,L,P,2]")
    driver("create", "SplitTemporalAttn", "build", "heads:int32:4")
    assert driver("shapes", "B,T,S,64", "B,U,S,64", "B,U,S,64").result == ["B", "T", "S", "64"]
    assert driver("shapes", "B,T,S,62", "B,U,S,62", "B,U,S,62").says("C = 62", "a multiple of heads = 4")
    assert driver("shapes", "B,T,S,64", "B,U,S,32", "B,U,S,64").says("key is", "C = 64 as in query")


GOOD = {
    "value": "float16:5,20,8,32",
    "shapes": "int64:4,2",
    "reference": "float32:5,7,4,2",
    "offsets": "float16:5,7,8,4,3,2",
    "logits": "float16:5,7,8,4,3",
    "out": "float16:5,7,256",
}


@pytest.mark.parametrize("call", ["configure", "change"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, ""),
        ({"reference": "float32:5,7,4,4"}, ""),
        ({"value": "float16:0,20,8,32", "reference": "float32:0,7,4,2", "offsets": "float16:0,7,8,4,3,2",
          "logits": "float16:0,7,8,4,3", "out": "float16:0,7,256"}, ""),
        ({"reference": "float32:5,0,4,2", "offsets": "float16:5,0,8,4,3,2", "logits": "float16:5,0,8,4,3",
          "out": "float16:5,0,256"}, ""),
        ({"value": "float16:4,20,8,32"}, "reference is [5,7,4,2], expected [N,Q,L,R] with N = 4 as in value"),
        ({"value": "float16:5,20,8"}, "value is [5,20,8], expected [N,S,M,D]"),
        ({"shapes": "int64:3,2"}, "reference is [5,7,4,2], expected [N,Q,L,R] with L = 3 as in shapes"),
        ({"shapes": "int64:8"}, "shapes is [8], expected [L,2]"),
        ({"reference": "float32:5,7,4,1"}, "reference has 1 coordinates, expected 2 or 4"),
        ({"offsets": "float16:5,7,8,4,3,1"}, "expected [N,Q,M,L,P,2]"),
        ({"logits": "float16:5,7,8,4,4"}, "P = 3 as in offsets"),
        ({"out": "float16:5,7,255"}, "out is [5,7,255], expected [N,Q,M*D] with M*D = 256"),
        ({"value": "float16:5,20,8,0", "out": "float16:5,7,0"}, "D is 0, expected 1 or more"),
        ({"reference": "float16:5,7,4,2"}, "reference is FP16, expected FP32"),
        ({"shapes": "float32:4,2"}, "shapes is FP32, expected INT32 or INT64"),
        ({"out": "float32:5,7,256"}, "out is FP32, expected FP16 as value"),
        ({"value": "float16:5,20,8,32:hwc8"}, "value must have linear format"),
    ],
)  # fmt: skip
def test_sizes_of_deformable_attention_are_checked(driver, call, changes, message):
    driver("create", "MSDeformAttn", "build")
    reply = driver(call, *(GOOD | changes).values())
    if message:
        assert reply.result != 0 and reply.says("mssts MSDeformAttn: ", message)
    else:
        assert reply == Reply(0, [])


@pytest.mark.parametrize("call", ["configure", "change"])
@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ("2,5,30,64 2,10,30,64 2,10,30,64 2,5,30,64", ""),
        ("0,5,30,64 0,5,30,64 0,5,30,64 0,5,30,64", ""),
        ("2,5,30,64 2,10,30,64 2,5,30,64 2,5,30,64", "value is [2,5,30,64], expected [B,U,S,C] with U = 10 as in key"),
        ("2,5,30,64 2,10,31,64 2,10,30,64 2,5,30,64", "S = 30 as in query"),
        ("2,5,30,62 2,10,30,62 2,10,30,62 2,5,30,62", "C = 62 channels, expected a multiple of heads = 4"),
        ("2,5,30,64 2,0,30,64 2,0,30,64 2,5,30,64", "U is 0, expected 1 or more"),
        ("2,5,30,64 2,10,30,64 2,10,30,64 2,10,30,64", "out is [2,10,30,64], expected [B,T,S,C] with T = 5"),
        ("2,5,30,64 2,10,30,64 2,5,30,64", "has 2 inputs and 1 outputs, expected 3 (query, key, value) and 1"),
    ],
)
def test_sizes_of_temporal_attention_are_checked(driver, call, tensors, message):
    driver("create", "SplitTemporalAttn", "build", "heads:int32:4")
    reply = driver(call, *(f"bfloat16:{sizes}" for sizes in tensors.split()))
    if message:
        assert reply.result != 0 and reply.says("mssts SplitTemporalAttn: ", message)
    else:
        assert reply == Reply(0, [])


def test_parts_that_a_tensor_does_not_have_are_refused(driver):
    driver("create", "SplitTemporalAttn", "build", "heads:int32:4", "starts:int32:0,0,64", "ends:int32:64,64,128")
    good = "bfloat16:2,5,30,64 bfloat16:2,10,30,128 bfloat16:2,10,30,128 bfloat16:2,5,30,64"
    assert driver("configure", *good.split()) == Reply(0, [])
    reply = driver("configure", *good.replace("2,10,30,128 bfloat16:2,5", "2,10,30,127 bfloat16:2,5").split())
    assert reply.says("value has 127 channels, but attributes starts and ends are 64 to 128")


def test_sizes_that_are_not_known_yet_pass(driver):
    driver("create", "MSDeformAttn", "build")
    wild = "float16:-1,-1,8,32 int64:4,2 float32:-1,-1,4,2 float16:-1,-1,8,4,3,2 float16:-1,-1,8,4,3 float16:-1,-1,256"
    assert driver("configure", *wild.split()) == Reply(0, [])
    assert driver("configure", *wild.replace("256", "255").split()).says("M*D = 256")


def test_a_kernel_that_fails_is_told_with_its_reason(driver, tmp_path):
    """Enqueue returns the kernel's status, with the kernel's message.

    There is no library of kernels here.
    """
    driver("create", "SplitTemporalAttn", "runtime", "heads:int32:1")
    file = tmp_path / "in"
    file.write_bytes(bytes(4))
    reply = driver("enqueue", *[f"float32:1,1,1,1@{file}"] * 3, f"float32:1,1,1,1@{tmp_path / 'out'}")
    assert reply.result == 2 and reply.says("SplitTemporalAttn: MSSTS_HOST_KERNELS names no library")


def test_messages_reach_stderr_where_no_logger_is(built, start):
    driver = start()
    driver("dlopen", built.library, "now", "local")
    assert driver("create", "SplitTemporalAttn", "build").result is None
    assert driver.close().strip() == "mssts SplitTemporalAttn: attribute heads is missing"
