"""Search for ONNX Runtime's header: in a folder, or from Debian's package."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "plugins" / "onnxruntime"
NEEDS_CMAKE = pytest.mark.skipif(shutil.which("cmake") is None, reason="needs cmake")


def find_header(folder: Path, **variables: object) -> tuple[str, str]:
    """CMake's result, run in `folder`: the header's folder, or why there is none."""
    script = folder / "find.cmake"
    script.write_text(
        f"include({FOLDER}/find_header.cmake)\nmssts_find_onnxruntime_header(found reason)\n"
        'message("${found}|${reason}")\n'
    )
    options = [f"-D{name}={value}" for name, value in variables.items()]
    done = subprocess.run(["cmake", *options, "-P", script], cwd=folder, capture_output=True, text=True, check=True)
    found, _, reason = done.stderr.strip().partition("|")
    return found, reason


@NEEDS_CMAKE
@pytest.mark.parametrize("layout", ["", "onnxruntime", "include", "include/onnxruntime"])
def test_a_given_folder_of_any_layout_is_taken(tmp_path, layout):
    (tmp_path / layout).mkdir(parents=True, exist_ok=True)
    (tmp_path / layout / "onnxruntime_c_api.h").write_text("#define ORT_API_VERSION 23\n")
    found, reason = find_header(tmp_path, ONNXRUNTIME_INCLUDE_DIR=tmp_path)
    assert (Path(found), reason) == (tmp_path / layout, "")


@NEEDS_CMAKE
@pytest.mark.parametrize(
    ("header", "message"),
    [
        (
            "#define ORT_API_VERSION 20\n",
            r"is of ONNX Runtime 1\.20, expected 1\.21 or newer; .*ONNXRUNTIME_INCLUDE_DIR",
        ),
        ("// empty\n", "does not tell its version"),
        (None, "no onnxruntime_c_api.h in ONNXRUNTIME_INCLUDE_DIR="),
    ],
)
def test_a_given_folder_without_a_fit_header_is_refused(tmp_path, header, message):
    if header is not None:
        (tmp_path / "onnxruntime_c_api.h").write_text(header)
    found, reason = find_header(tmp_path, ONNXRUNTIME_INCLUDE_DIR=tmp_path)
    assert found == "" and re.search(message, reason)


@pytest.fixture
def debian(tmp_path, monkeypatch):
    """Runs fetch_headers.py with scripts for apt-get and dpkg-deb.

    The test fills in the scripts.
    """
    spec = importlib.util.spec_from_file_location("fetch_headers", FOLDER / "fetch_headers.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    (tmp_path / "os-release").write_text('ID=debian\nPRETTY_NAME="Debian 12"\nVERSION_CODENAME="bookworm"\n')
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))

    def program(name: str, text: str) -> None:
        (tmp_path / "bin" / name).write_text("#!/bin/sh\n" + text)
        (tmp_path / "bin" / name).chmod(0o755)

    return script, program


def test_debians_package_is_asked_for_where_the_machine_gets_its_own(debian):
    script, program = debian
    program(
        "apt-get",
        'echo "https://mirror.invalid/debian/ bookworm main"; echo "https://mirror.invalid/debian/ bookworm main"\n'
        'echo "https://mirror.invalid/debian/ bookworm contrib"; echo "https://other.invalid/ stable main"\n',
    )
    assert (
        script.sources("bookworm") == f"deb [signed-by={script.KEYRING}] https://mirror.invalid/debian/ trixie main\n"
    )
    with pytest.raises(script.FetchError, match="no source of trixie main"):
        script.sources("trixie")


@pytest.mark.parametrize(
    ("unpack", "message"),
    [
        ('echo changed > "$3/onnxruntime_c_api.h"', "has SHA-256 .*; expected 7783e966"),
        ("exit 0", "one.deb has no onnxruntime_c_api.h"),
        ("echo dpkg-deb: error: broken >&2; exit 2", "dpkg-deb failed: dpkg-deb: error: broken"),
    ],
)
def test_another_package_than_the_known_one_leaves_nothing(debian, tmp_path, unpack, message):
    script, program = debian
    program("apt-get", 'echo "https://mirror.invalid/ bookworm main"; case "$*" in *download*) : > one.deb;; esac\n')
    program("dpkg-deb", f'/bin/mkdir -p "$3"; {unpack}\n')
    with pytest.raises(script.FetchError, match=message):
        script.fetch(tmp_path / "out", tmp_path / "os-release")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("release", "message"),
    [
        ('ID=ubuntu\nPRETTY_NAME="Ubuntu 24.04"\nVERSION_CODENAME=noble\n', "this is Ubuntu 24.04, which has no"),
        ("ID=debian\nVERSION_CODENAME=bookworm\n", "no apt-get on this machine"),
        ("", "this is not Debian, which has no"),
    ],
)
def test_machines_that_have_no_debian_archive_say_so(debian, tmp_path, release, message):
    script, _ = debian
    (tmp_path / "os-release").write_text(release)
    with pytest.raises(script.FetchError, match=message):
        script.fetch(tmp_path / "out", tmp_path / "os-release")
