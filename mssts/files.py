"""Files that are whole or absent, and reading that names a broken file."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mssts.errors import MsstsError


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yields a temporary path that becomes `path` if the block succeeds.

    It lies beside `path` and has its suffix. It is removed if the block raises, so nothing half-written is left.

    Raises:
        MsstsError: there can be no such file: its folder cannot be made or written to, it is a folder itself, or the
            disk is full.
    """
    path = Path(path)
    if path.is_dir():
        raise MsstsError(f"{path}: is a folder; expected the name of a file to write")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix)
    except OSError as error:
        raise MsstsError(f"{path}: cannot be written: {reason(error)}") from None
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes files private; give the result the permissions that open() would have given it.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    except Exception as error:
        if is_disk_full(error, path.parent):
            raise MsstsError(f"{path}: cannot be written: {DISK_FULL}") from None
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yields a new folder that becomes `path` if the block succeeds.

    Raises:
        MsstsError: `path` exists and is not an empty folder.
        OSError: it cannot be made.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise MsstsError(f"{path} exists and is not an empty folder; name another one or remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        whole = temporary / path.name  # made inside, because mkdtemp's own folder is private to this user
        whole.mkdir()
        yield whole
        whole.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


DISK_FULL = "the disk is full (no space left); free some, or write to another disk"
_DISK_FULL_NUMBERS = frozenset({errno.ENOSPC, errno.EDQUOT})


def is_disk_full(error: BaseException, folder: Path | str | None = None) -> bool:
    """Whether a write failed for want of space.

    Args:
        error: what was raised. Libraries wrap the system's error (safetensors) or lose it (torch).
        folder: where was written to, if known. An error that does not say why is put down to a full disk where this
            one has no room for as little as 64 KiB.
    """
    chain: BaseException | None = error
    while chain is not None:
        if isinstance(chain, OSError) and chain.errno in _DISK_FULL_NUMBERS:
            return True
        if any(f"os error {number}" in str(chain) for number in _DISK_FULL_NUMBERS):
            return True
        chain = chain.__cause__ or chain.__context__
    if folder is None or not isinstance(error, (OSError, RuntimeError)) or not Path(folder).is_dir():
        return False
    return shutil.disk_usage(folder).free < 1 << 16


def reason(error: OSError) -> str:
    """The cause of a failed read or write, for the end of a message."""
    return DISK_FULL if error.errno in _DISK_FULL_NUMBERS else error.strerror or str(error)


def write_text(path: Path | str, text: str) -> None:
    """Writes `text` to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path | str, value: Any) -> None:
    """Writes `value` as indented JSON to `path` atomically.

    NaN and infinity are refused, as they are not JSON.
    """
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path | str) -> Any:
    """The JSON value of a file.

    Raises:
        MsstsError: the file is absent, is not readable text or is not JSON; the message names it.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MsstsError(f"{path}: no such file; expected a JSON file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise MsstsError(f"{path}: cannot be read as JSON text: {error}") from None
    except json.JSONDecodeError as error:
        raise MsstsError(f"{path}: not valid JSON (line {error.lineno}, column {error.colno}: {error.msg})") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        raise MsstsError(f"{path}: not JSON that can be read ({error})") from None


def sha256(path: Path | str) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()
