"""`manifest.json`: what a model computes, for what input, and how it was checked.

Whatever serves an engine reads its window, sizes and class names here, so nothing about a model is configured twice.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mssts.errors import MsstsError
from mssts.files import read_json, write_json

FILE_NAME = "manifest.json"
_FORMAT = 1


@dataclass(frozen=True)
class Category:
    """A class of objects.

    `id` is the data set's category id, written into results. `name` is shown to people."""

    id: int
    name: str


@dataclass(frozen=True)
class InputRule:
    """The size of frames as engine input.

    The short edge is scaled to `short_edge` pixels, less where that would make the long edge exceed `long_edge`. Both
    sides are then rounded to multiples of `multiple`. With `in_engine` the engine does that itself, and takes frames of
    any size."""

    short_edge: int
    long_edge: int
    multiple: int = 8
    in_engine: bool = False


@dataclass(frozen=True)
class FixedShape:
    """The one input shape of an engine: clips, frames, height and width in pixels."""

    clips: int
    frames: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.clips}x{self.frames}x{self.height}x{self.width}"

    @classmethod
    def parse(cls, option: str, text: str | None) -> FixedShape | None:
        """Reads a command's `option` such as 1x5x360x640, None if it was not given.

        Raises:
            MsstsError: it is not four sizes above 0.
        """
        if text is None:
            return None
        numbers = text.lower().split("x")
        if len(numbers) != 4 or not all(number.isdigit() and int(number) > 0 for number in numbers):
            raise MsstsError(f"{option} {text}: expected CLIPSxFRAMESxHEIGHTxWIDTH, such as 1x5x360x640")
        return cls(*map(int, numbers))


@dataclass(frozen=True)
class Manifest:
    """Everything a runner, a server or a client needs to know of an engine.

    `clip_frames` is the window a long video is cut into and `clip_overlap` the frames two windows share.
    `categories[label]` explains the engine's `labels`. `shape` is the only input shape of the engine, None where it
    takes any. `runner` is the one of `mssts.runners.RUNNERS` that the engine was made for, `auto` where any of its kind
    will do. `companions` are the further files of the artefact, with their SHA-256. `checks` holds the parity report,
    `provenance` the machine, versions and commit.
    """

    preset: str
    precision: str
    categories: tuple[Category, ...]
    input: InputRule
    clip_frames: int
    clip_overlap: int
    top_k: int
    artefact: str
    artefact_sha256: str
    shape: FixedShape | None = None
    runner: str = "auto"
    companions: dict[str, str] = field(default_factory=dict)
    checks: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The manifest as a JSON value, which `Manifest.from_json` reads."""
        return {"format": _FORMAT, **asdict(self), "categories": [asdict(category) for category in self.categories]}

    @classmethod
    def from_json(cls, value: Any, source: str = FILE_NAME) -> Manifest:
        """Reads what `to_json` wrote.

        Raises:
            MsstsError: a field is missing or of the wrong type; the message names `source` and the field.
        """
        if not isinstance(value, dict) or value.get("format") != _FORMAT:
            raise MsstsError(f"{source}: not a manifest of format {_FORMAT}; export the model again with this version")
        try:
            manifest = cls(
                preset=str(value["preset"]),
                precision=str(value["precision"]),
                categories=tuple(Category(int(item["id"]), str(item["name"])) for item in value["categories"]),
                input=_input_rule(value["input"]),
                clip_frames=int(value["clip_frames"]),
                clip_overlap=int(value["clip_overlap"]),
                top_k=int(value["top_k"]),
                artefact=str(value["artefact"]),
                artefact_sha256=str(value["artefact_sha256"]),
                shape=None if value.get("shape") is None else FixedShape(**_integers(value["shape"])),
                runner=str(value.get("runner", "auto")),
                companions={str(name): str(digest) for name, digest in value.get("companions", {}).items()},
                checks=dict(value.get("checks", {})),
                provenance=dict(value.get("provenance", {})),
            )
        except KeyError as error:
            raise MsstsError(f"{source}: the field {error} is missing; export the model again") from None
        except (TypeError, ValueError, AttributeError) as error:
            raise MsstsError(f"{source}: a field has the wrong type ({error}); export the model again") from None
        if not 0 <= manifest.clip_overlap < manifest.clip_frames:
            raise MsstsError(f"{source}: clip_overlap must be at least 0 and less than clip_frames")
        for name in (manifest.artefact, *manifest.companions):
            if not name or name != Path(name).name:
                raise MsstsError(f"{source}: names {name!r}; expected files beside it, without a folder")
        return manifest

    def write(self, folder: Path | str) -> Path:
        """Writes `manifest.json` into `folder`, atomically, and returns its path."""
        path = Path(folder) / FILE_NAME
        write_json(path, self.to_json())
        return path

    @classmethod
    def read(cls, folder: Path | str) -> Manifest:
        """Reads the `manifest.json` of `folder` (a file inside it may be named instead)."""
        folder = Path(folder)
        path = folder / FILE_NAME if folder.is_dir() else folder.parent / FILE_NAME
        return cls.from_json(read_json(path), str(path))


def _input_rule(value: dict[str, Any]) -> InputRule:
    in_engine = value.get("in_engine", False)
    if not isinstance(in_engine, bool):
        raise TypeError(f"in_engine is {in_engine!r}")
    sizes = {name: size for name, size in value.items() if name != "in_engine"}
    return InputRule(**_integers(sizes), in_engine=in_engine)


def _integers(value: dict[str, Any]) -> dict[str, int]:
    return {key: int(number) for key, number in value.items()}
