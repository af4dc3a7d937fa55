"""The file of an engine, whoever runs it: is it there, and is it the one that its manifest describes?"""

from __future__ import annotations

from pathlib import Path

from mssts.errors import MsstsError
from mssts.files import sha256
from mssts.manifest import FILE_NAME, Manifest


def check_unchanged(path: Path) -> Manifest | None:
    """The manifest beside an engine's file, if there is one that names it.

    Raises:
        MsstsError: the file is absent, or not the one that the manifest describes.
    """
    if not path.is_file():
        raise MsstsError(f"{path}: no such file; expected the model.onnx that `mssts export` writes")
    if not (path.parent / FILE_NAME).exists():
        return None
    manifest = Manifest.read(path)
    if manifest.artefact != path.name:
        return None
    if sha256(path) != manifest.artefact_sha256:
        raise MsstsError(
            f"{path}: not the file that {FILE_NAME} describes (its SHA-256 differs), "
            "so it is unverified; export the model again"
        )
    return manifest
