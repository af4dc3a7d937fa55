"""The file of an engine, whoever runs it: is it there, and is it the one that its manifest describes?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from mssts.contract import TensorSpec
from mssts.errors import MsstsError
from mssts.files import sha256
from mssts.manifest import FILE_NAME, Manifest


def check_unchanged(path: Path) -> Manifest | None:
    """The manifest beside an engine's file, if there is one that names it.

    Raises:
        MsstsError: the file or one of its companions, such as the weights of a large model, is absent, or not the one
            that the manifest describes.
    """
    if not path.is_file():
        raise MsstsError(f"{path}: no such file; expected the model.onnx that `mssts export` writes")
    if not (path.parent / FILE_NAME).exists():
        return None
    manifest = Manifest.read(path)
    if manifest.artefact != path.name:
        return None
    for name, digest in {manifest.artefact: manifest.artefact_sha256, **manifest.companions}.items():
        file = path.parent / name
        if not file.is_file():
            raise MsstsError(f"{file}: no such file, though {FILE_NAME} beside it names it; copy it, or export again")
        if sha256(file) != digest:
            raise MsstsError(
                f"{file}: not the file that {FILE_NAME} describes (its SHA-256 differs), "
                "so it is unverified; export the model again"
            )
    return manifest


def check_contract(
    path: Path, kind: str, found: Iterable[tuple[str, str, int]], expected: Sequence[TensorSpec]
) -> None:
    """Raises MsstsError unless the tensors of a loaded engine are those of this project's engines.

    Args:
        path: the engine's file, for the message.
        kind: input or output, as well.
        found: name, numpy's name of the type, and rank of each.
        expected: what `mssts.contract` has.
    """
    found_set = {f"{name} {dtype} of rank {rank}" for name, dtype, rank in found}
    expected_set = {f"{spec.name} {spec.dtype} of rank {len(spec.shape)}" for spec in expected}
    if found_set != expected_set:
        raise MsstsError(
            f"{path}: not an engine of this project: its {kind}s are {', '.join(sorted(found_set))}; expected "
            f"{', '.join(sorted(expected_set))}; export the model with `mssts export`"
        )
