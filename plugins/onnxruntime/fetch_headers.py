"""Fetches the header of ONNX Runtime's C API from Debian's package.

pip's onnxruntime has the library but no headers.

    python fetch_headers.py FOLDER

apt downloads the package from where this machine gets its own packages, but with a configuration of its own: nothing is
installed, and the machine's package lists stay as they are. The header is checked by its SHA-256. Where that fails, one
line goes to stderr and the exit code is 1. Needs only Python's standard library.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HEADER = "onnxruntime_c_api.h"
# Of the header of ONNX Runtime 1.21.0, which is the same for every processor.
SHA256 = "7783e9664bdb0b1b36145b5c8587dd1bc9a399aa000edf2e3dd03003cafc6882"
PACKAGE = "libonnxruntime-dev"
SUITE = "trixie"  # the first Debian that has the package
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
SECONDS = 120  # for one command


class FetchError(Exception):
    """Why there is no header, in one line."""


def fetch(out: Path, os_release: Path = Path("/etc/os-release")) -> None:
    """Writes the header to the folder `out`, whole or not at all."""
    with tempfile.TemporaryDirectory(prefix="mssts-headers-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # started by root, apt downloads as a user of its own
        header = unpack(download(folder, sources(codename(os_release))), folder / "content")
    found = hashlib.sha256(header).hexdigest()
    if found != SHA256:
        raise FetchError(f"{HEADER} of {PACKAGE} has SHA-256 {found}; expected {SHA256}")
    out.mkdir(parents=True, exist_ok=True)
    part = out / f".{HEADER}.{os.getpid()}"
    part.write_bytes(header)
    part.replace(out / HEADER)


def codename(os_release: Path) -> str:
    """The release of Debian that this machine runs, such as bookworm."""
    text = os_release.read_text(encoding="utf-8") if os_release.is_file() else ""
    release = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', text, re.MULTILINE))
    if release.get("ID") != "debian" or not release.get("VERSION_CODENAME"):
        raise FetchError(f"this is {release.get('PRETTY_NAME', 'not Debian')}, which has no sources of Debian packages")
    return release["VERSION_CODENAME"]


def sources(release: str) -> str:
    """A sources list for `SUITE`, from the archives of this machine's `release`."""
    form = "$(REPO_URI) $(RELEASE) $(COMPONENT)"
    targets = run("apt-get", "indextargets", "--no-release-info", "--format", form, "Created-By: Packages")
    archives = {words[0] for line in targets.splitlines() if (words := line.split())[1:] == [release, "main"]}
    if not archives:
        raise FetchError(f"apt has no source of {release} main on this machine")
    return "".join(f"deb [signed-by={KEYRING}] {archive} {SUITE} main\n" for archive in sorted(archives))


def download(folder: Path, sources_list: str) -> Path:
    """The package, downloaded by an apt whose state and cache lie in `folder`."""
    for name in ("state/lists/partial", "cache/archives/partial", "download"):
        (folder / name).mkdir(parents=True)
    (folder / "sources.list").write_text(sources_list, encoding="utf-8")
    (folder / "apt.conf").write_text(
        f'Dir::Etc::SourceList "{folder}/sources.list";\nDir::Etc::SourceParts "/dev/null";\n'
        f'Dir::State "{folder}/state";\nDir::Cache "{folder}/cache";\nAcquire::Languages "none";\n'
        'Acquire::Retries "1";\nAcquire::http::Timeout "20";\nAcquire::https::Timeout "20";\n'
        # What the machine does after its own updates is not for this one.
        "#clear APT::Update::Pre-Invoke;\n#clear APT::Update::Post-Invoke;\n#clear APT::Update::Post-Invoke-Success;\n",
        encoding="utf-8",
    )
    apt = ("apt-get", "--quiet=2", f"--config-file={folder}/apt.conf")
    run(*apt, "--error-on=any", "update")
    run(*apt, "download", PACKAGE, cwd=folder / "download")
    return next((folder / "download").glob("*.deb"))


def unpack(package: Path, content: Path) -> bytes:
    """The header out of a package."""
    run("dpkg-deb", "--extract", str(package), str(content))
    found = next(content.rglob(HEADER), None)
    if found is None:
        raise FetchError(f"{package.name} has no {HEADER}")
    return found.read_bytes()


def run(*command: str, cwd: Path | None = None) -> str:
    """What a command prints.

    Its last line of complaint becomes the error.
    """
    environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    try:
        done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=SECONDS)
    except FileNotFoundError:
        raise FetchError(f"no {command[0]} on this machine") from None
    except subprocess.TimeoutExpired:
        raise FetchError(f"{command[0]} took longer than {SECONDS} s") from None
    if done.returncode != 0:
        lines = done.stderr.splitlines()
        complaints = [line for line in lines if line.startswith(("E:", "dpkg"))] or lines or ["no reason given"]
        raise FetchError(f"{command[0]} failed: {complaints[-1].strip()}")
    return done.stdout


if __name__ == "__main__":
    try:
        fetch(Path(sys.argv[1]))
    except (FetchError, OSError) as error:
        sys.exit(str(error))
