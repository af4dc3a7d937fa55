"""`bench/gpu_session.sh` on a processor: its parts, files and failing steps."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mssts.bench import gpu_summary
from mssts.bench.kernels import stock_extension
from mssts.errors import MsstsError

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "bench" / "gpu_session.sh"
SMI = """#!/bin/sh
case "$*" in
  *timestamp*) echo "timestamp, clocks.current.sm [MHz], clocks.current.memory [MHz]"
               echo "2026/11/26 01:00:00.000, 1755 MHz, 2619 MHz"; sleep 60 ;;
  *query-gpu*) echo "GPU A, 9.0, 580.00, 345 MHz, 1980 MHz" ;;
  *) echo "a table" ;;
esac
"""
# A tool that keeps what it was asked, and fails for the race checker.
TOOL = """#!/bin/sh
echo "$(basename "$0") $* | $PYTORCH_NO_CUDA_MEMORY_CACHING"
case "$*" in *racecheck*) echo "========= RACECHECK SUMMARY: 1 hazard displayed"; exit 9 ;; esac
"""


@pytest.fixture
def session(tmp_path):
    """Runs the script with stubs of NVIDIA's tools first on PATH."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in (("nvidia-smi", SMI), ("ncu", TOOL), ("compute-sanitizer", TOOL)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)

    def run(*words: object, path: Path = tools, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PATH": f"{path}:{os.environ['PATH']}", "PYTHON": sys.executable, **variables}
        environment.update(DRY_RUN="1", MSSTS_COMMIT="abc123", OMP_NUM_THREADS="1")
        program = ["bash", str(SCRIPT), *map(str, words)]
        return subprocess.run(program, env=environment, capture_output=True, text=True, timeout=300, check=False)

    return run


def test_a_failing_step_stops_nothing_and_files_say_whence_they_are(session, tmp_path):
    """The tests fail, as there is no GPU, and so does the race checker."""
    out = tmp_path / "out"
    done = session(
        out, "kernels", "counters", "engines", STEPS="tests encoder_warm ncu_forward memcheck racecheck fps_batch1"
    )
    assert done.returncode == 1, done.stdout + done.stderr
    steps = [line for line in done.stdout.splitlines() if " after " in line and not line.startswith(" ")]
    found = dict(line.partition(": ")[::2] for line in steps)
    assert {name: text.split()[0] for name, text in found.items()} == {
        "tests": "FAILED", "encoder_warm": "done", "ncu_forward": "done", "memcheck": "done", "racecheck": "FAILED",
        "fps_batch1": "done",
    }  # fmt: skip
    for part in ("kernels", "counters", "engines"):
        files = {path.name for path in (out / part).iterdir()}
        assert {"session.log", "summary.txt", "clocks.csv"} <= files and len(files) <= 8
        assert "1755 MHz" in (out / part / "clocks.csv").read_text()
        assert "commit abc123" in (out / part / "session.log").read_text()
    kernels, fps = (
        json.loads((out / name).read_text()) for name in ("kernels/encoder_warm.json", "engines/fps_batch1.json")
    )
    assert all(row["cache"] == "warm" and row["ms_median"] > 0 for row in kernels["rows"])
    assert [(row["runner"], row["scope"], row["in_flight"]) for row in fps["rows"]] == [
        ("pytorch", "model", 1), ("pytorch", "pipeline", 1), ("pytorch", "pipeline", 3)
    ]  # fmt: skip
    assert "fp32 pipeline 3 in flight" in (out / "engines" / "summary.txt").read_text()
    for report in (kernels, fps):
        assert set(report["libraries"]) <= {"cpu", "cuda", "onnxruntime", "openvino", "tensorrt"}
        assert all(len(digest) == 64 for digest in report["libraries"].values())
    for path in out.rglob("*.*"):
        if path.suffix in (".log", ".txt"):
            assert "commit abc123" in path.read_text(), path
        if path.suffix == ".log" or path.name == "ncu.txt":
            assert "libmssts_" in path.read_text() or not list((ROOT / "mssts" / "lib").glob("*.so")), path
    profiled = (out / "counters" / "ncu.txt").read_text()
    for counter in ("l1tex__data_pipe_lsu_wavefronts_mem_lg.sum", "lts__t_sectors_op_red.sum", "regex:deform_forward"):
        assert counter in profiled
    assert (out / "counters" / "memcheck.log").read_text().strip().endswith("| 1")
    assert "racecheck.log: RACECHECK SUMMARY: 1 hazard displayed" in (out / "counters" / "summary.txt").read_text()


def test_every_test_of_the_kernels_is_run_on_the_gpu():
    """A file of them that is not named in the script would be left out in silence."""
    text = SCRIPT.read_text(encoding="utf-8")
    files = {
        path.name for path in (ROOT / "tests" / "plugins").glob("test_*.py") if ": Backend" in path.read_text("utf-8")
    }
    assert "test_cuda_encoder.py" in files
    assert {name for name in files if f"tests/plugins/{name}" not in text} == set()


BARE = """
import sys
sys.path[:0] = [f"tests/{folder}" for folder in ("", "plugins", "ops")]
absent = ("av", "scipy", "tritonclient", "openvino", "tensorrt", "tensorrt_rtx", "cuda", "pycuda", "onnxscript")
of_masks = ("pycocotools", "rlemasklib")
sys.modules.update(dict.fromkeys((*absent, *of_masks)))
import conftest, test_cuda_encoder, test_cuda_kernels, test_torch_model, mssts.bench.kernels.rounds
for name in of_masks:
    del sys.modules[name]
import test_mask_rle, mssts.bench.fps.command, mssts.bench.fps.measuring
"""


def test_what_a_bare_machine_has_is_enough():
    """It has PyTorch, onnx and pytest.

    For masks and engines there are pycocotools and rlemasklib too.
    """
    done = subprocess.run(
        [sys.executable, "-c", BARE], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_tools_of_an_environment_that_is_not_active_are_found(session, tmp_path):
    """Ninja, which builds the stock extension, is one.

    The interpreter may be named by a relative path.
    """
    environment = tmp_path / "environment" / "bin"
    environment.mkdir(parents=True)
    for name, text in (("python", f'#!/bin/sh\nexec {sys.executable} "$@"\n'), ("ncu", TOOL)):
        (environment / name).write_text(text)
        (environment / name).chmod(0o755)
    smi = tmp_path / "tools" / "nvidia-smi"
    (tmp_path / "driver").mkdir()
    smi.rename(tmp_path / "driver" / "nvidia-smi")
    python = os.path.relpath(environment / "python")
    done = session(tmp_path / "out", "counters", path=tmp_path / "driver", PYTHON=python, STEPS="ncu_forward")
    assert done.returncode == 0 and "ncu_forward: done" in done.stdout, done.stdout + done.stderr


STEPS = {
    "kernels": ["tests", "masks", "encoder", "encoder_warm", "encoder_fma", "others"],
    "counters": ["ncu_forward", "ncu_backward", "ncu_temporal", "memcheck", "racecheck", "synccheck", "initcheck"],
    "engines": ["fps_batch1", "fps_batch8"],
}


def test_where_no_time_is_left_each_step_says_so(session, tmp_path):
    done = session(tmp_path, *STEPS, SECONDS_OF_PART="0")
    for part, names in STEPS.items():
        summary = (tmp_path / part / "summary.txt").read_text()
        assert re.findall("^(.*): LEFT OUT, no time was left$", summary, re.MULTILINE) == names
    assert done.returncode == 0


def test_where_there_is_no_gpu_it_says_so(session, tmp_path):
    (tmp_path / "none").mkdir()
    smi = tmp_path / "none" / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'No devices were found'\nexit 6\n")
    smi.chmod(0o755)
    done = session(tmp_path / "out", "kernels", path=tmp_path / "none")
    assert done.returncode == 2 and "nvidia-smi finds no GPU: No devices were found" in done.stderr
    done = session(tmp_path / "out", "speed")
    assert done.returncode == 2 and "no part speed; expected kernels, counters or engines" in done.stderr


def test_the_summary_takes_what_is_there(tmp_path):
    (tmp_path / "broken.json").write_text('{"rows": [')
    (tmp_path / "tests.log").write_text("...\n===== 3 failed, 40 passed in 12.1s =====\n")
    steps = tmp_path / "steps"
    steps.write_text("tests: FAILED with 1 after 13 s\n")
    reason = "==ERROR== ERR_NVGPUCTRPERM - The user does not have permission to access NVIDIA GPU Performance Counters"
    (tmp_path / "ncu.txt").write_text(f"== ncu_forward (at most 40 s): ncu\n{reason}\n")
    text = "\n".join(gpu_summary.lines(tmp_path, steps))
    assert "ncu.txt: ERROR== ERR_NVGPUCTRPERM" in text
    assert "tests: FAILED" in text and "3 failed, 40 passed" in text and "broken.json: not whole" in text
    assert "no step was run" in "\n".join(gpu_summary.lines(tmp_path, tmp_path / "absent"))


def test_the_stock_extension_is_brought_to_todays_names(tmp_path):
    source = tmp_path / "checkout" / "models" / "ops" / "src"
    (source / "cuda").mkdir(parents=True)
    kernel = """#include <THC/THC.h>
#include <THC/THCAtomics.cuh>
AT_ASSERTM(value.type().is_cuda(), "value must be a CUDA tensor");
AT_DISPATCH_FLOATING_TYPES(value.type(), "f", ([&] { value.data<scalar_t>(); shapes.data<int64_t>(); }));
"""
    (source / "cuda" / "ms_deform_attn_cuda.cu").write_text(kernel)
    copied = stock_extension.copy_patched(tmp_path / "checkout", tmp_path / "copy")
    assert copied[-1] == tmp_path / "copy" / "cuda" / "ms_deform_attn_cuda.cu"
    assert (
        copied[-1].read_text()
        == """#include <ATen/cuda/Atomic.cuh>
TORCH_CHECK(value.is_cuda(), "value must be a CUDA tensor");
AT_DISPATCH_FLOATING_TYPES(value.scalar_type(), "f", ([&] { value.data_ptr<scalar_t>(); shapes.data_ptr<int64_t>(); }));
"""
    )
    assert (source / "cuda" / "ms_deform_attn_cuda.cu").read_text() == kernel
    with pytest.raises(MsstsError, match="expected a checkout of Deformable-DETR"):
        stock_extension.copy_patched(tmp_path / "copy", tmp_path / "other")
