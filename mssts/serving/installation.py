"""The `tritonserver` of the nvidia-pytriton wheel, and its environment.

The wheel holds the server, its Python backend and a stub (the process that runs a model) for each Python version. What
it leaves to us: the stub must be in the backend's folder, its libraries on the loader's path, the interpreter's shared
library among them, and the stub must import the packages of this environment.
"""

from __future__ import annotations

import importlib.metadata
import os
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from mssts.errors import MsstsError
from mssts.serving.backend import check_numpy

_PACKAGE = "nvidia-pytriton"
_INSTALL = "install it with `pip install 'mssts[serve]'` under Python 3.10 to 3.12 on x86-64 Linux"
_STUB = "triton_python_backend_stub"


@dataclass(frozen=True)
class TritonInstallation:
    """A `tritonserver` that runs here.

    `libpython` is the interpreter's shared library, or None where the system's loader finds it by itself.
    """

    server: Path
    backends: Path
    stub: Path
    libraries: Path
    libpython: Path | None
    package: str  # the wheel's name and version


def find_tritonserver() -> TritonInstallation:
    """The server in this environment.

    Raises:
        MsstsError: the wheel is not installed, has no stub for this Python, does not work with this numpy (there is no
            older one for Python 3.13), or a shared library is missing.
    """
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    # Not find_spec("pytriton.tritonserver"), which would import pytriton.
    spec = find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        raise MsstsError(f"no tritonserver in this environment (Python {version}): {_INSTALL}")
    package = Path(spec.submodule_search_locations[0])
    root = package / "tritonserver"
    installation = TritonInstallation(
        server=root / "bin" / "tritonserver",
        backends=root / "backends",
        stub=root / "python_backend_stubs" / version / _STUB,
        libraries=package.parent / "nvidia_pytriton.libs",
        libpython=_libpython(),
        package=f"{_PACKAGE} {importlib.metadata.version(_PACKAGE)}",
    )
    for path in (installation.server, installation.backends / "python" / "libtriton_python.so", installation.libraries):
        if not path.exists():
            raise MsstsError(f"{path}: missing from the {_PACKAGE} wheel; {_INSTALL}")
    if not installation.stub.exists():
        raise MsstsError(f"{_PACKAGE} has no Python backend stub for Python {version}; {_INSTALL}")
    check_numpy()
    _check_libraries(installation)
    return installation


def link_runtime(installation: TritonInstallation, folder: Path) -> dict[str, str]:
    """Links what the wheel lacks into `folder` and returns the server's environment.

    `folder/backends` is then the server's backend directory. The wheel itself is not touched: it may be read-only, and
    two servers of different Python versions may share it.
    """
    backend = folder / "backends" / "python"
    backend.mkdir(parents=True)
    for source in (installation.backends / "python").iterdir():
        if source.is_file():
            (backend / source.name).symlink_to(source)
    stub = backend / _STUB
    stub.unlink(missing_ok=True)
    stub.symlink_to(installation.stub)

    libraries = [str(installation.libraries)]
    if installation.libpython is not None:
        # A folder with this library only: its own may hold others that must not come before the system's.
        links = folder / "lib"
        links.mkdir()
        (links / installation.libpython.name).symlink_to(installation.libpython)
        libraries.append(str(links))

    environment = dict(os.environ)
    # Another allocator, such as jemalloc, would be loaded into the stubs too, where it ends the engine's process.
    environment.pop("LD_PRELOAD", None)
    # The stub finds its packages as `python3` from PATH would, and a virtual environment is one only by that; then
    # PYTHONPATH makes sure that it imports the mssts and the numpy that this process would, and not another's.
    _prepend(environment, "PATH", [str(Path(sys.prefix) / "bin")])
    _prepend(environment, "PYTHONPATH", [_parent_of("mssts"), _parent_of("numpy")])
    _prepend(environment, "LD_LIBRARY_PATH", libraries)
    # Requests are megabytes, and any of the server's threads may free one: with an arena for every thread the heap
    # breaks up and keeps growing (330 MB and rising after 480 clips of raw 720p; with two, 250 MB and level).
    environment.setdefault("MALLOC_ARENA_MAX", "2")
    return environment


def make_temporary_folder(prefix: str) -> Path:
    """A new temporary folder whose path `is_one_word`."""
    base = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix=prefix, dir=base if is_one_word(base) else "/tmp"))


def is_one_word(path: Path | str) -> bool:
    """Whether a shell takes the path for one word.

    The Python backend gives its paths to bash without quoting them, and waits for ever for a stub that bash did not
    find.
    """
    return shlex.quote(str(path)) == str(path)


def _prepend(environment: dict[str, str], name: str, entries: list[str]) -> None:
    # An empty entry would mean the working directory.
    environment[name] = os.pathsep.join([*entries, *filter(None, environment.get(name, "").split(os.pathsep))])


def _parent_of(package: str) -> str:
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise MsstsError(f"the package {package} is not installed in this environment; {_INSTALL}")
    return str(Path(spec.origin).parent.parent)


def _libpython() -> Path | None:
    name = sysconfig.get_config_var("INSTSONAME") or ""
    if ".so" not in name:  # an interpreter built without a shared library names the static one
        name = f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"
    folders = (sysconfig.get_config_var("LIBDIR"), Path(sys.base_prefix) / "lib")
    return next((path for folder in folders if folder and (path := Path(folder) / name).exists()), None)


def _check_libraries(installation: TritonInstallation) -> None:
    """Checks that the loader finds every library of the server and the stub."""
    folders = [installation.libraries, *([installation.libpython.parent] if installation.libpython else [])]
    environment = {**os.environ, "LD_TRACE_LOADED_OBJECTS": "1", "LD_LIBRARY_PATH": ":".join(map(str, folders))}
    for program in (installation.server, installation.stub):
        listing = subprocess.run([str(program)], env=environment, capture_output=True, text=True, check=False)
        missing = [line.split()[0] for line in listing.stdout.splitlines() if line.endswith("=> not found")]
        if any(name.startswith("libpython") for name in missing):
            debian = f"libpython{sys.version_info.major}.{sys.version_info.minor}"
            raise MsstsError(
                f"Triton's Python backend needs {' '.join(missing)}: on Debian and Ubuntu `apt install {debian}`; "
                "a Python built from source needs `--enable-shared`"
            )
        if missing or listing.returncode != 0:
            reason = f"missing libraries: {' '.join(missing)}" if missing else listing.stderr.strip()[-300:]
            raise MsstsError(f"{program.name} of {installation.package} cannot run on this system ({reason})")
