"""Finds the header of ONNX Runtime's C API, or fetches it: pip's onnxruntime has the library but no headers.

Looked for in this order: the folder given, the system's folders, what an earlier run fetched, Debian's package
`libonnxruntime-dev` (through apt with a configuration of its own: nothing is installed and the machine's lists are not
touched), or a release archive of ONNX Runtime that `--archive` names. What is fetched is checked by its SHA-256.

Prints the folder to include; or one line to stderr, and exits 1. Needs nothing but Python's standard library.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HEADER = "onnxruntime_c_api.h"
# The version whose API our library asks for at run time; newer headers do as well, older do not.
API_VERSION = 21
# The header of ONNX Runtime 1.21.0. The same in every architecture's package; that of the file, not of the package.
HEADER_SHA256 = "7783e9664bdb0b1b36145b5c8587dd1bc9a399aa000edf2e3dd03003cafc6882"
PACKAGE = "libonnxruntime-dev"
SUITE = "trixie"  # the first Debian that has the package
SYSTEM_FOLDERS = (
    "/usr/include/onnxruntime",
    "/usr/local/include/onnxruntime",
    "/usr/local/include",
    "/opt/onnxruntime/include",
)
_SECONDS = 120  # for one call of apt


class HeadersError(Exception):
    """Why there are no headers, in one line."""


def usable(folder: Path) -> str:
    """Why the header in `folder` cannot be used; empty where it can."""
    try:
        text = (folder / HEADER).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return f"has no {HEADER}"
    found = re.search(r"^#define ORT_API_VERSION (\d+)", text, re.MULTILINE)
    if found is None:
        return f"has a {HEADER} that does not tell its version"
    if int(found[1]) < API_VERSION:
        return f"has the headers of ONNX Runtime 1.{found[1]}; expected 1.{API_VERSION} or newer"
    return ""


def given(folder: Path) -> Path:
    """The folder of the header at or below the folder that the user names, as packages and archives lay it out."""
    for candidate in (folder, folder / "onnxruntime", folder / "include", folder / "include" / "onnxruntime"):
        if (candidate / HEADER).is_file():
            reason = usable(candidate)
            if reason:
                raise HeadersError(f"{candidate} {reason}")
            return candidate
    raise HeadersError(f"{folder} has no {HEADER}; name the folder that holds it")


def system() -> Path | None:
    """The first system folder with a usable header."""
    folders = [Path(folder) for folder in SYSTEM_FOLDERS]
    if "CONDA_PREFIX" in os.environ:
        folders.insert(0, Path(os.environ["CONDA_PREFIX"], "include", "onnxruntime"))
    return next((folder for folder in folders if not usable(folder)), None)


def keep(header: bytes, out: Path, origin: str, trusted: bool = False) -> Path:
    """Writes the header to `out`, whole or not at all. Unless `trusted`, it has to be the one we know."""
    found = hashlib.sha256(header).hexdigest()
    if not trusted and found != HEADER_SHA256:
        raise HeadersError(f"{origin}: its {HEADER} has SHA-256 {found}; expected {HEADER_SHA256}")
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=out, prefix=".header-", delete=False) as file:
        file.write(header)
    whole = Path(file.name)
    whole.chmod(0o644)
    whole.replace(out / HEADER)
    reason = usable(out)
    if reason:
        (out / HEADER).unlink()
        raise HeadersError(f"{origin} {reason}")
    return out


def from_debian(out: Path) -> Path:
    """The header of Debian's package, by way of the machine's own sources for apt with the suite replaced."""
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise HeadersError(f"no {tool} on this machine")
    sources = debian_sources(Path("/etc"))
    with temporary_folder() as folder:
        for name in ("sources", "state/lists/partial", "cache/archives/partial", "download"):
            (folder / name).mkdir(parents=True)
        (folder / "sources" / "debian.sources").write_text(sources, encoding="utf-8")
        configuration = folder / "apt.conf"
        configuration.write_text(
            f'Dir::Etc::SourceList "/dev/null";\nDir::Etc::SourceParts "{folder}/sources";\n'
            f'Dir::State "{folder}/state";\nDir::Cache "{folder}/cache";\n'
            'Acquire::Retries "1";\nAcquire::http::Timeout "20";\nAcquire::https::Timeout "20";\n'
            'Acquire::Languages "none";\n'
            # What the machine does after its own updates is not for this one.
            "#clear APT::Update::Pre-Invoke;\n#clear APT::Update::Post-Invoke;\n"
            "#clear APT::Update::Post-Invoke-Success;\n",
            encoding="utf-8",
        )
        command = ["apt-get", "--quiet=2", f"--config-file={configuration}"]
        call([*command, "--error-on=any", "update"], folder)
        call([*command, "download", PACKAGE], folder / "download")
        packages = list((folder / "download").glob("*.deb"))
        if len(packages) != 1:
            raise HeadersError(f"apt downloaded {len(packages)} packages; expected one, {PACKAGE}")
        call(["dpkg-deb", "--extract", str(packages[0]), str(folder / "content")], folder)
        headers = list((folder / "content").rglob(HEADER))
        if len(headers) != 1:
            raise HeadersError(f"{packages[0].name} has no {HEADER}")
        return keep(headers[0].read_bytes(), out, packages[0].name)


def debian_sources(etc: Path) -> str:
    """The Debian archives that this machine uses, as the text of a `.sources` file for `SUITE`."""
    release = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', _read(etc / "os-release"), re.MULTILINE))
    codename = release.get("VERSION_CODENAME", "")
    if release.get("ID") != "debian" or not codename:
        raise HeadersError(f"this is {release.get('PRETTY_NAME', 'not Debian')}, whose archive has no Debian packages")
    stanzas = []
    for uris, options, suites, components in _entries(etc / "apt"):
        # Of an archive's suites, the plain one: bookworm, not bookworm-updates or another project's stable.
        if codename in suites and "main" in components:
            stanzas.append("\n".join(["Types: deb", f"URIs: {uris}", f"Suites: {SUITE}", "Components: main", *options]))
    if not stanzas:
        raise HeadersError(f"apt has no source of {codename} main on this machine")
    return "\n\n".join(stanzas) + "\n"


def _entries(apt: Path) -> Iterator[tuple[str, list[str], list[str], list[str]]]:
    """(URIs, options as lines of a `.sources` file, suites, components) of each source of binary packages."""
    one_liners = [apt / "sources.list", *sorted((apt / "sources.list.d").glob("*.list"))]
    for path in one_liners:
        for line in _read(path).splitlines():
            match = re.match(r"\s*deb\s+(?:\[(?P<options>[^]]*)\]\s+)?(?P<rest>[^#]*)", line)
            words = match["rest"].split() if match else []
            if match and len(words) >= 3:
                options = [option.split("=", 1) for option in (match["options"] or "").split() if "=" in option]
                lines = [f"{name.title()}: {value}" for name, value in options if name in ("signed-by", "trusted")]
                yield words[0], lines, words[1:2], words[2:]
    for path in sorted((apt / "sources.list.d").glob("*.sources")):
        text = "\n".join(line for line in _read(path).splitlines() if not line.startswith("#"))
        for stanza in re.split(r"\n\s*\n", text):
            fields = {
                match[1].lower(): match[2].rstrip()
                # A field goes on in the lines that are indented, as a key that is written out does.
                for match in re.finditer(r"^([\w-]+):[ \t]*(.*(?:\n[ \t].*)*)", stanza, re.MULTILINE)
            }
            if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").lower() in ("no", "false"):
                continue
            kept = [(name.title(), fields[name]) for name in ("signed-by", "trusted") if name in fields]
            lines = [f"{name}:{value}" if value.startswith("\n") else f"{name}: {value}" for name, value in kept]
            yield fields.get("uris", ""), lines, fields.get("suites", "").split(), fields.get("components", "").split()


def from_archive(place: str, sha256: str | None, out: Path) -> Path:
    """The header of a release archive (.tgz), a file or a URL. With its SHA-256 any release from 1.21 on is taken."""
    with temporary_folder() as folder:
        archive = Path(place)
        if re.match(r"[a-z]+://", place):
            archive = folder / "archive.tgz"
            try:
                with urllib.request.urlopen(place, timeout=60) as response, archive.open("wb") as file:
                    shutil.copyfileobj(response, file)
            except (OSError, ValueError, urllib.error.URLError) as error:
                raise HeadersError(f"{place}: cannot be fetched: {_first_line(error)}") from None
        try:
            if sha256 is not None:
                found = hashlib.sha256(archive.read_bytes()).hexdigest()
                if found != sha256.lower():
                    raise HeadersError(f"{place}: its SHA-256 is {found}; expected {sha256.lower()}")
            with tarfile.open(archive) as opened:
                members = [member for member in opened if Path(member.name).name == HEADER and member.isfile()]
                content = opened.extractfile(members[0]) if members else None
                header = content.read() if content else None
        except (OSError, tarfile.TarError, EOFError) as error:
            raise HeadersError(f"{place}: cannot be read: {_first_line(error)}") from None
    if header is None:
        raise HeadersError(f"{place}: has no {HEADER}; expected a release archive of ONNX Runtime")
    return keep(header, out, place, trusted=sha256 is not None)


def call(command: list[str], folder: Path) -> None:
    """Runs a command in `folder`; its last line of complaint becomes the error."""
    environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise HeadersError(f"{command[0]} took longer than {_SECONDS} s") from None
    if done.returncode != 0:
        complaints = [line for line in done.stderr.splitlines() if line.startswith(("E:", "dpkg"))]
        last = (complaints or done.stderr.splitlines() or ["no reason given"])[-1]
        raise HeadersError(f"{command[0]} failed: {last.strip()}")


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder that apt's own user can read too: started by root, apt downloads as that user."""
    with tempfile.TemporaryDirectory(prefix="mssts-headers-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


def find(out: Path, include: Path | None, archive: str | None, sha256: str | None, fetch: bool) -> Path:
    """The folder to include.

    Args:
        out: the cache: where a fetched header is kept.
        include: the user's folder; then nothing else is looked at.
        archive: a release archive to take the header from, file or URL; then nothing else is looked at.
        sha256: of the archive; without it, its header has to be that of 1.21.0.
        fetch: whether the network may be used.

    Raises:
        HeadersError: there is none.
    """
    if include is not None:
        return given(include)
    if archive is not None:
        return from_archive(archive, sha256, out)
    found = system()
    if found is not None:
        return found
    if not usable(out):
        return out
    cure = f"install Debian's {PACKAGE}, or name the folder (ONNXRUNTIME_INCLUDE_DIR) or archive (ONNXRUNTIME_ARCHIVE)"
    if not fetch:
        raise HeadersError(f"no {HEADER} on this machine; {cure}")
    try:
        return from_debian(out)
    except HeadersError as error:
        raise HeadersError(f"no {HEADER} on this machine, and Debian's cannot be had: {error}; {cure}") from None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="cache folder, of what is fetched")
    parser.add_argument("--include", type=Path, help="folder that holds the headers already")
    parser.add_argument("--archive", help="release archive of ONNX Runtime (.tgz file or URL) to take the header from")
    parser.add_argument("--sha256", help="of the archive; needed for other releases than 1.21.0")
    parser.add_argument("--no-fetch", action="store_true", help="do not use the network")
    options = parser.parse_args()
    try:
        print(find(options.out, options.include, options.archive, options.sha256, not options.no_fetch).resolve())
    except HeadersError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:  # such as a cache folder that cannot be written
        print(f"{error.filename or options.out}: {error.strerror or error}", file=sys.stderr)
        return 1
    return 0


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
