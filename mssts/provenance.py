"""Provenance of a figure, for every JSON file: machine, versions and commit."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

from mssts.files import sha256
from mssts.kernels import FILES, folder
from mssts.machine import machine

# The commit of a copy that came without its .git.
COMMIT_VARIABLE = "MSSTS_COMMIT"

_PACKAGES = (
    "torch",
    "onnx",
    "onnxruntime",
    "numpy",
    "nvidia-pytriton",
    "tritonclient",
    "openvino",
    "tensorrt",
    "tensorrt-rtx-cu13-bindings",
    "pycocotools",
    "rlemasklib",
)


def commit() -> str:
    """The git commit of this checkout, with `-dirty` if it has changes, or `unknown`.

    A copy without .git has that of the variable MSSTS_COMMIT."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return os.environ.get(COMMIT_VARIABLE, "unknown")
    try:
        described = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return described.stdout.strip()


def versions() -> dict[str, str]:
    """The installed version of each package that can change a figure."""
    import importlib.metadata  # not at the top: it is slow, and commands import this module

    found = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def provenance() -> dict[str, Any]:
    """`machine`, `versions` and `commit`, to be merged into a report."""
    return {"machine": machine(), "versions": versions(), "commit": commit()}


def libraries() -> dict[str, str]:
    """SHA-256 of each built kernel library, so that a figure of a stale one shows."""
    place = folder()
    if place is None:
        return {}
    return {name: sha256(place / file) for name, file in FILES.items() if (place / file).is_file()}
