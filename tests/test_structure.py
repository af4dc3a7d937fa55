"""The architecture's rules, checked on the source: imports, and light modules."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("training", "export", "bench")


def imported(path: Path) -> set[str]:
    """This project's packages that a file imports, such as `model`.

    `mssts.model.config` is imported from that one. Imports anywhere in the file count.
    """
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    names = [name.split(".") for name in found]
    return {name[1] for name in names if name[0] == "mssts" and len(name) > 1} | {name[0] for name in names} & {*STAGES}


def files_of(folder: str) -> list[Path]:
    """The Python files of a top-level folder.

    Links, which `mssts` has to the stages, are not followed.
    """
    found = [Path(root) / name for root, _, names in os.walk(ROOT / folder) for name in names if name.endswith(".py")]
    assert found
    return found


@pytest.mark.parametrize("folder", ["mssts", *STAGES, "triton_repo"])
def test_imports_go_one_way(folder):
    forbidden = set(STAGES) - {folder}
    offenders = {
        str(file.relative_to(ROOT)): names for file in files_of(folder) if (names := imported(file) & forbidden)
    }
    assert offenders == {}


def test_the_check_of_imports_sees_a_stage(tmp_path):
    file = tmp_path / "module.py"
    for line in (
        "import mssts.export",
        "from mssts import export",
        "from mssts.export.graph import x",
        "import export",
    ):
        file.write_text(line, encoding="utf-8")
        assert imported(file) & set(STAGES) == {"export"}, line


def test_stages_are_imported_by_their_name_in_the_package():
    """Modules are imported by one name only.

    A checkout has `export/` on its path too, and two copies of a module would be two sets of classes.
    """
    everywhere = [file for folder in ("mssts", *STAGES, "tests") for file in files_of(folder)]
    offenders = [
        f"{file.relative_to(ROOT)}:{number}"
        for file in everywhere
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if line.lstrip().startswith(
            tuple(f"{word} {stage}{end}" for word in ("from", "import") for stage in STAGES for end in (".", " "))
        )
    ]
    assert offenders == []


@pytest.mark.parametrize(
    "module",
    [
        "mssts.cli",
        "mssts.contract",
        "mssts.segmenters.preprocessing",
        "mssts.segmenters.postprocessing",
        "mssts.runners.onnx_runtime",
        "mssts.segmenters.local",
        "mssts.segmenters.triton",
        "mssts.prediction.predictor",
        "mssts.streaming.stream",
        "mssts.evaluation",
    ],
)
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


def test_no_two_headers_have_one_name():
    """An include names one file, whichever folders the compiler searches."""
    folders = (ROOT / "plugins", ROOT / "tests")
    names = [path.name for folder in folders for path in folder.rglob("*") if path.suffix in (".h", ".cuh", ".inl")]
    assert names and sorted(set(names)) == sorted(names)


def test_test_modules_have_names_of_their_own() -> None:
    """Pytest imports them by their base names."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []
