"""The wheel: its contents, and the main job in an environment without a checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path
from typing import Any

import numpy
import pytest

from mssts.kernels import library

ROOT = Path(__file__).resolve().parents[1]
BUILT = library("cpu")
# What git does not track, and what a clean clone does not have.
_LEFT_OUT = shutil.ignore_patterns(
    ".*", "__pycache__", "*.so", "*.egg-info", "build", "dist", "runs", "golden", "node_modules"
)

pytestmark = pytest.mark.slow


def clean_copy(destination: Path) -> Path:
    """The tree of a fresh clone, links included, without the tests' large files."""
    return Path(shutil.copytree(ROOT, destination, symlinks=True, ignore=_LEFT_OUT))


def build_wheel(source: Path, out: Path) -> Path:
    """The wheel of a source tree or archive.

    It is built without the network where setuptools is installed, as pip says.
    """
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(out), str(source)]
    offline = subprocess.run(
        [*command, "--no-build-isolation", "--no-index"], capture_output=True, text=True, check=False
    )
    if offline.returncode:
        isolated = subprocess.run(command, capture_output=True, text=True, check=False)
        if isolated.returncode:
            pytest.skip(f"neither setuptools 77 here nor a package index: {isolated.stderr.strip().splitlines()[-1:]}")
    (wheel,) = out.glob("*.whl")
    return wheel


def build_sdist(source: Path, out: Path) -> Path:
    """The source distribution of a tree."""
    pytest.importorskip("setuptools", "77")
    build = "import sys, setuptools.build_meta as build; build.build_sdist(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(out)], cwd=source, check=True, capture_output=True)
    (archive,) = out.glob("*.tar.gz")
    return archive


def contents(wheel: Path) -> set[str]:
    """The files in a wheel."""
    return set(zipfile.ZipFile(wheel).namelist())


class Environment:
    """A new environment that holds one wheel.

    On request it borrows the packages of the running one.
    """

    def __init__(self, folder: Path, wheel: Path) -> None:
        venv.create(folder, with_pip=False)
        self.folder = folder
        python = folder / "bin" / "python"
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        self.site_packages = folder / "lib" / version / "site-packages"
        before = {path.name for path in self.site_packages.iterdir()}
        pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
        subprocess.run([*pip, str(wheel)], check=True)
        self.installed = {path.name for path in self.site_packages.iterdir()} - before

    def borrow_packages(self) -> None:
        """Makes the running environment's packages importable, after ours.

        Its own .pth files are not read, so an editable install of this checkout is not seen.
        """
        folders = dict.fromkeys([sysconfig.get_path("purelib"), str(Path(numpy.__file__).parents[1])])
        (self.site_packages / "borrowed.pth").write_text("\n".join(folders))

    def mssts(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Runs the installed command in the environment's folder.

        The folder is outside the checkout.
        """
        ours = ("PYTHONPATH", "MSSTS_LIBRARIES")
        variables = {name: value for name, value in os.environ.items() if name not in ours}
        command = [str(self.folder / "bin" / "mssts"), *map(str, arguments)]
        return subprocess.run(command, cwd=self.folder, env=variables, capture_output=True, text=True, check=False)

    def info(self) -> tuple[dict[str, Any], str]:
        """The output of `mssts info`, written and printed."""
        done = self.mssts("info", "--json", "info.json")
        assert done.returncode == 0, done.stderr
        return json.loads((self.folder / "info.json").read_text()), done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean copy of the tree with the kernels built here.

    It has leftovers of older builds in `build/`.
    """
    tree = clean_copy(tmp_path_factory.mktemp("wheel") / "source")
    libraries = tree / "mssts" / "lib"
    libraries.mkdir(exist_ok=True)
    if BUILT.path is not None and not BUILT.reason:
        for file in BUILT.path.parent.glob("*.so"):
            shutil.copy(file, libraries)
    else:  # any file does: it is packed, found and judged
        (libraries / "libmssts_cpu.so").write_text("no library")
    for lib in ("lib", f"lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}"):
        for name in ("training/old.py", "mssts/old.py", "mssts/lib/libmssts_old.so"):
            leftover = tree / "build" / lib / name
            leftover.parent.mkdir(parents=True, exist_ok=True)
            leftover.write_text("")
    return tree


@pytest.fixture(scope="module")
def wheel(source: Path) -> Path:
    """The wheel with the kernels."""
    return build_wheel(source, source.parent / "with")


def test_a_wheel_holds_the_package_and_nothing_else(wheel, source):
    names = contents(wheel)
    assert {name.split("/")[0].split("-")[0] for name in names} == {"mssts"}
    assert {
        "mssts/py.typed",
        "mssts/training/checkpoints/tiny.safetensors",
        "mssts/export/quantization/exclusions/default.txt",
        "mssts/triton_repo/mssts_vis/config.pbtxt",
        "mssts/lib/libmssts_cpu.so",
    } <= names
    for stage in ("preprocess", "engine", "postprocess"):
        assert {f"mssts/triton_repo/{stage}/config.pbtxt", f"mssts/triton_repo/{stage}/1/model.py"} <= names
    # Every module, and none that an older build left.
    modules = {str(file.relative_to(source)) for file in source.glob("mssts/**/*.py")}
    for link in ("training", "export", "bench"):
        modules |= {f"mssts/{file.relative_to(source)}" for file in (source / link).glob("**/*.py")}
    modules |= {f"mssts/{file.relative_to(source)}" for file in (source / "triton_repo").glob("*/1/model.py")}
    assert {name for name in names if name.endswith(".py")} == modules
    assert not [name for name in names if "old" in Path(name).stem.split("_")]
    # What lies beside the modules for people, not for programs.
    kinds = {".py", ".typed", ".so", ".pbtxt", ".txt", ".safetensors", ".html"}
    assert {Path(name).suffix for name in names if name.startswith("mssts/")} == kinds


def test_the_way_over_a_source_distribution_gives_the_same_wheel(wheel, source):
    archive = build_sdist(source, source.parent)
    with tarfile.open(archive) as file:
        assert not [name for name in file.getnames() if name.endswith(".so") or "/tests" in name]
    rebuilt = build_wheel(archive, source.parent / "from sdist")
    assert rebuilt.name.endswith("-py3-none-any.whl")
    assert contents(rebuilt) == {name for name in contents(wheel) if not name.endswith(".so")}


def test_a_wheel_with_libraries_is_for_this_platform(wheel, source):
    assert wheel.name.endswith(f"-py3-none-linux_{os.uname().machine}.whl")
    environment = Environment(source.parent / "environment with", wheel)
    found, printed = environment.info()
    entry = found["kernels"]["PyTorch, CPU"]
    assert Path(entry["path"]).is_relative_to(environment.folder)
    expected = "cannot be loaded (" if BUILT.reason else "but PyTorch is not installed"
    assert expected in entry["detail"]
    assert "PyTorch, CPU" in printed


def test_a_wheel_without_libraries_is_for_any_platform(wheel, source):
    """From a tree where an earlier build has left its copies of the libraries."""
    tree = source.parent / "source without"
    shutil.copytree(source, tree, symlinks=True)
    shutil.rmtree(tree / "mssts" / "lib")
    plain = build_wheel(tree, source.parent / "without")
    assert plain.name.endswith("-py3-none-any.whl")
    assert contents(plain) == {name for name in contents(wheel) if not name.endswith(".so")}
    found, _ = Environment(source.parent / "environment without", plain).info()
    assert "no libmssts_cpu.so in" in found["kernels"]["PyTorch, CPU"]["detail"]


@pytest.mark.server
@pytest.mark.skipif(sys.version_info >= (3, 13), reason="numpy < 2, for the Triton wheel, ends at Python 3.12")
def test_the_main_job_runs_from_an_installed_wheel(wheel, source):
    environment = Environment(source.parent / "environment", wheel)
    assert {name.split("-")[0] for name in environment.installed} == {"mssts"}
    environment.borrow_packages()
    for command in ("data", "train", "export", "quantize", "build-engine", "serve", "predict", "bench"):
        shown = environment.mssts(command, "--help")
        assert shown.returncode == 0, shown.stderr
        assert shown.stdout.startswith(f"usage: mssts {command}")
    done = environment.mssts("demo", "--videos", 4)
    assert done.returncode == 0, done.stderr
    out = environment.folder / "runs" / "demo"
    report = json.loads((out / "report.json").read_text())
    assert report["frames"] == 4 * 16
    assert report["ap"] > 0.2  # of four videos, so far from that of the whole split
    assert f"{100 * report['ap']:.1f}" in done.stdout
    assert json.loads((out / "results.json").read_text())
