"""Which GPUs the CUDA library says that it runs on."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

PLUGINS = Path(__file__).resolve().parents[2] / "plugins"
PROGRAM = """#include "cuda/capability.h"
#include <cstdio>
#include <cstdlib>
int main(int, char** words) {
  for (char** word = words + 1; *word != nullptr; ++word) {
    const int capability = std::atoi(*word);
    const bool discrete = mssts::runs_on({80, 86, 90, 120}, 120, capability);
    std::printf("%d %d %d\\n", discrete, mssts::runs_on({80, 87}, 0, capability), mssts::runs_on({}, 90, capability));
  }
}
"""


def test_binaries_of_discrete_gpus_do_not_run_on_orin(tmp_path):
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    (tmp_path / "program.cpp").write_text(PROGRAM)
    program = tmp_path / "program"
    subprocess.run([compiler, "-std=c++17", f"-I{PLUGINS}", tmp_path / "program.cpp", "-o", program], check=True)
    expected = {
        "75": "0 0 0", "80": "1 1 0", "86": "1 1 0", "87": "0 1 0", "89": "1 1 0", "90": "1 0 1", "100": "0 0 1",
        "110": "0 0 1", "120": "1 0 1", "121": "1 0 1",
    }  # fmt: skip
    done = subprocess.run([program, *expected], capture_output=True, text=True, check=True)
    assert dict(zip(expected, done.stdout.splitlines(), strict=True)) == expected
