"""Programs and packages that some tests need and `make setup` does not install.

Where one is missing, a test that needs it is skipped with the name of the package that has it. With MSSTS_REQUIRE_TOOLS
set, as in `.ci/run`, which installs them, the test fails instead.

    pytestmark = needs_tool("nginx")  # or a decorator of one test

    def test_proxy():
        subprocess.Popen([tool("nginx"), "-c", ...])
"""

from __future__ import annotations

import functools
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

from mssts.bench.stream.camera import DEBIAN_PACKAGES, gstreamer_python

REQUIRE_VARIABLE = "MSSTS_REQUIRE_TOOLS"
# Debian's daemons lie where an ordinary user's PATH does not look.
_FOLDERS = (Path(sys.executable).parent, "/usr/local/sbin", "/usr/sbin", "/sbin")


@dataclass(frozen=True)
class _Tool:
    """A program or a package.

    Attributes:
        install: what installs it.
        find: the path of the program to run, None where it is missing.
    """

    install: str
    find: Callable[[], str | None]


def _program(name: str) -> Callable[[], str | None]:
    return lambda: shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), *map(str, _FOLDERS)]))


def _debian(package: str, find: Callable[[], str | None]) -> _Tool:
    return _Tool(f"apt-get install {package}", find)


_DEV = "pip install 'mssts[dev]'"

# `.ci/run` installs those of Debian, the extra `dev` the rest.
TOOLS = {
    "promtool": _debian("prometheus", _program("promtool")),
    "prometheus": _debian("prometheus", _program("prometheus")),
    "nginx": _debian("nginx-light", _program("nginx")),
    "chromium": _debian("chromium", _program("chromium")),
    # The path is that of the Python which imports `gi`.
    "gst-rtsp-server": _debian(DEBIAN_PACKAGES, gstreamer_python),
    **{name: _Tool(_DEV, _program(name)) for name in ("hadolint", "kubectl", "kubernetes-validate")},
    **{name: _Tool(_DEV, _program(name)) for name in ("check-jsonschema", "shellcheck")},
}


@functools.cache
def _found(name: str) -> str | None:
    return TOOLS[name].find()


def tool(name: str) -> str:
    """The path of a program of `TOOLS`.

    Where it is missing, the test that asks is skipped, or fails.
    """
    path = _found(name)
    if path is None:
        _miss(f"{name} is missing: {TOOLS[name].install}")
    assert path is not None
    return path


def needs_tool(*names: str) -> pytest.MarkDecorator:
    """The mark of tests that need programs of `TOOLS`, for a test or for `pytestmark`.

    `tests/conftest.py` looks before the test's fixtures are made.
    """
    for name in names:
        assert name in TOOLS, f"{name}: not in tests/support/tools.py"
    return pytest.mark.tool(*names)


def needs_package(*names: str) -> pytest.MarkDecorator:
    """The mark of tests that need Python packages, by the names that are imported."""
    return pytest.mark.package(*names)


def check_marks(item: pytest.Item) -> None:
    """Skips or fails a test whose marks name what is missing here."""
    for mark in item.iter_markers("tool"):
        for name in mark.args:
            tool(name)
    for mark in item.iter_markers("package"):
        for name in mark.args:
            if find_spec(name) is None:
                _miss(f"the Python package {name} is missing")


def _miss(reason: str) -> None:
    if os.environ.get(REQUIRE_VARIABLE):
        pytest.fail(f"{reason}; {REQUIRE_VARIABLE} is set, so this is an error", pytrace=False)
    pytest.skip(reason)
