"""The architecture's rules, checked on the source: who may import whom, and what stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("training", "export", "bench")


def imported(path: Path) -> set[str]:
    """Top-level packages that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("folder", ["mssts", *STAGES, "triton_repo"])
def test_imports_go_one_way(folder):
    forbidden = set(STAGES) - {folder}
    files = list((ROOT / folder).rglob("*.py"))
    assert files
    offenders = {str(file.relative_to(ROOT)): names for file in files if (names := imported(file) & forbidden)}
    assert offenders == {}


@pytest.mark.parametrize(
    "module",
    ["mssts.cli", "mssts.contract", "mssts.preprocessing", "mssts.postprocessing", "mssts.runners.onnx_runtime",
     "mssts.pipeline", "mssts.client", "mssts.predictor", "mssts.evaluation"],
)  # fmt: skip
def test_what_runs_inside_triton_or_on_a_client_does_not_load_torch(module):
    program = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_the_list_of_commands_loads_nothing_heavy():
    program = (
        "import sys; from mssts import cli; cli.parser(); "
        "print(sorted({'torch', 'onnx', 'onnxruntime', 'cv2', 'av', 'numpy', 'tritonclient'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_triton_repo_holds_models_alone():
    """Triton takes every folder in it for a model."""
    for folder in (ROOT / "triton_repo").iterdir():
        assert (folder / "config.pbtxt").is_file(), f"{folder.name} is no model"
