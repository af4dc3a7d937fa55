"""Models on disk with their manifests: verified once, written whole or not at all.

An export, a quantised export and a TensorRT plan are each a file, perhaps further files, and the `manifest.json` that
names them with their hashes. A checkpoint is a file that needs no manifest.
"""

from __future__ import annotations

import enum
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from mssts.errors import MsstsError
from mssts.files import sha256
from mssts.manifest import FILE_NAME, Manifest


class Kind(enum.Enum):
    """The kinds of model files, in words for messages."""

    CHECKPOINT = "a checkpoint"
    ONNX = "an ONNX file"
    PLAN = "a TensorRT plan"


_KINDS = {
    ".safetensors": Kind.CHECKPOINT,
    ".pth": Kind.CHECKPOINT,
    ".onnx": Kind.ONNX,
    ".plan": Kind.PLAN,
}


def is_checkpoint(path: Path | str) -> bool:
    """Whether a path names a checkpoint, ours or a released one."""
    return _KINDS.get(Path(path).suffix) is Kind.CHECKPOINT


@dataclass(frozen=True)
class Artefact:
    """A model's file, as `Artefact.open` found it.

    Attributes:
        path: the file.
        kind: what it is.
        manifest: of the `manifest.json` beside it; None where there is none that names the file.
    """

    path: Path
    kind: Kind
    manifest: Manifest | None = None

    @classmethod
    def open(cls, model: Artefact | Path | str) -> Artefact:
        """Opens and verifies the model in a file, or in a folder with a manifest.

        One that is open already is returned as it is.

        Raises:
            MsstsError: there is no such file or folder; it is no model; the manifest is missing in a folder, or broken;
                a file is absent, truncated, or not the one that the manifest describes.
        """
        if isinstance(model, Artefact):
            return model
        artefact = cls.find(model)
        artefact._verify()
        return artefact

    @classmethod
    def find(cls, model: Path | str) -> Artefact:
        """Opens a model without reading its files, for a path that another process opens.

        Raises:
            MsstsError: as `open`, but for files that were truncated or changed.
        """
        path = Path(model)
        if not path.exists():
            raise MsstsError(
                f"{path}: no such file or folder; expected a model.onnx, a model.plan or their folder, or a checkpoint"
            )
        manifest = _manifest_in(path if path.is_dir() else path.parent)
        if path.is_dir():
            if manifest is None:
                raise MsstsError(f"{path}: a folder without {FILE_NAME}; expected one that `mssts export` writes")
            path = path / manifest.artefact
        kind = _KINDS.get(path.suffix)
        if kind is None:
            raise MsstsError(
                f"{path}: not a model of this project; expected a .onnx, a .plan, or a checkpoint as .safetensors or "
                ".pth"
            )
        if manifest is not None and manifest.artefact != path.name:
            manifest = None
        for file in (path, *(path.with_name(name) for name in (manifest.companions if manifest else ()))):
            if not file.is_file():
                raise MsstsError(
                    f"{file}: no such file, though {FILE_NAME} beside it names it; copy it, or {_again(kind)} again"
                )
        return cls(path, kind, manifest)

    def _verify(self) -> None:
        if self.manifest is None:
            return
        built = self.manifest.provenance.get("engine")
        whole = built.get("bytes", 0) if isinstance(built, dict) else 0
        size = self.path.stat().st_size
        if size < whole:
            raise MsstsError(
                f"{self.path}: truncated: {size} of {whole} bytes; copy it again, or {_again(self.kind)} again"
            )
        for name, digest in {self.path.name: self.manifest.artefact_sha256, **self.manifest.companions}.items():
            file = self.path.with_name(name)
            if sha256(file) != digest:
                raise MsstsError(
                    f"{file}: not the file that {FILE_NAME} describes (its SHA-256 differs), so it is unverified; "
                    f"{_again(self.kind)} again"
                )

    @cached_property
    def sha256(self) -> str:
        """The SHA-256 of the file, from the verified manifest or else computed."""
        return sha256(self.path) if self.manifest is None else self.manifest.artefact_sha256

    def described(self) -> Manifest:
        """The manifest.

        Raises:
            MsstsError: there is none that names the file.
        """
        if self.manifest is not None:
            return self.manifest
        other = _manifest_in(self.path.parent)
        if other is not None:
            raise MsstsError(
                f"{self.path}: {FILE_NAME} beside it describes {other.artefact}; keep a model with its own manifest"
            )
        raise MsstsError(
            f"{self.path}: no {FILE_NAME} beside it, so nothing says what it is; {_again(self.kind)} again"
        )


def _manifest_in(folder: Path) -> Manifest | None:
    return Manifest.read(folder) if (folder / FILE_NAME).is_file() else None


def _again(kind: Kind) -> str:
    return "build it" if kind is Kind.PLAN else "export it"


def unchanged(folder: Path) -> Artefact | None:
    """The artefact in a folder if there is one and it is unchanged, else None."""
    try:
        return Artefact.open(folder) if folder.is_dir() else None
    except MsstsError:
        return None


class Draft:
    """An artefact while it is made, in a folder of its own.

    Attributes:
        folder: for its files. All that lie in it belong to the artefact.
        path: the model's file in it.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.path = folder, folder / name

    def describe(self, manifest: Manifest) -> Manifest:
        """Writes the manifest with the names and hashes of the files, and returns it.

        Runners take the folder from then on. The last manifest is the one that stays.
        """
        others = sorted(file.name for file in self.folder.iterdir() if file.name not in (self.path.name, FILE_NAME))
        described = replace(
            manifest,
            artefact=self.path.name,
            artefact_sha256=sha256(self.path),
            companions={name: sha256(self.folder / name) for name in others},
        )
        described.write(self.folder)
        return described


@contextmanager
def writing(out: Path, name: str) -> Iterator[Draft]:
    """Yields a draft that becomes the artefact in `out` when the block ends.

    `name` is the model's file.

    Where the block raises, nothing is left, and what was in `out` before is as it was. All is written by then, on the
    file system of `out`, so that the end is renaming alone: files first and the manifest last, because a file whose
    hash does not fit its manifest is refused.

    Raises:
        MsstsError: `out` is a file, or lies in one.
    """
    place = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    if not place.is_dir():
        raise MsstsError(f"{out}: cannot be a folder to write to, as {place} is a file")
    with tempfile.TemporaryDirectory(prefix=".mssts-", dir=place) as temporary:
        draft = Draft(Path(temporary), name)
        yield draft
        _move(draft.folder, out)


def _move(folder: Path, out: Path) -> None:
    manifest, before = Manifest.read(folder), unchanged(out)
    out.mkdir(parents=True, exist_ok=True)
    for name in (*manifest.companions, manifest.artefact, FILE_NAME):
        (folder / name).replace(out / name)
    # Further files of the artefact that was replaced, such as the layers of a plan that was built elsewhere.
    if before is not None and before.manifest is not None and before.path.name == manifest.artefact:
        for name in before.manifest.companions.keys() - manifest.companions.keys():
            (out / name).unlink(missing_ok=True)
