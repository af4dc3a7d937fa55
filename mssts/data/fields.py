"""Values of a JSON file with their place in it, and checks for readers."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from mssts.errors import MsstsError
from mssts.manifest import Category

Box = tuple[float, float, float, float]

MAX_SIDE = 65535  # of a JPEG, in pixels
_MAX_NUMBER = 1e12


class Field:
    """A JSON value and its place in the file, which messages name."""

    __slots__ = ("place", "source", "value")

    def __init__(self, source: Path, place: str, value: Any) -> None:
        self.source, self.place, self.value = source, place, value

    def fail(self, problem: str) -> NoReturn:
        raise MsstsError(f"{self.source}: {self.place or 'the file'} {problem}")

    def shown(self) -> str:
        """The value as a message quotes it."""
        is_word = self.value is None or isinstance(self.value, bool)
        text = json.dumps(self.value) if is_word else repr(self.value)
        return text if len(text) <= 40 else f"{text[:37]}..."

    def get(self, key: str) -> Field:
        field = self.get_optional(key, null_is_absent=False)
        if field is None:
            self.fail(f"has no field {key!r}")
        return field

    def get_optional(self, key: str, null_is_absent: bool = True) -> Field | None:
        if not isinstance(self.value, dict):
            self.fail(f"must be an object, not {self.shown()}")
        if key not in self.value or (null_is_absent and self.value[key] is None):
            return None
        return Field(self.source, f"{self.place}.{key}" if self.place else key, self.value[key])

    def items(self) -> list[Field]:
        if not isinstance(self.value, list):
            self.fail(f"must be a list, not {self.shown()}")
        return [Field(self.source, f"{self.place}[{i}]", value) for i, value in enumerate(self.value)]

    def integer(self) -> int:
        if not isinstance(self.value, int) or isinstance(self.value, bool) or self.value < 0:
            self.fail(f"must be an integer of at least 0, not {self.shown()}")
        return self.value

    def whole(self) -> int:
        """Any whole number, 7.0 and −1 too: what the official evaluation takes for an id."""
        number = isinstance(self.value, (int, float)) and not isinstance(self.value, bool)
        if not number or not abs(self.value) < 2**63 or self.value != int(self.value):
            self.fail(f"must be an integer, not {self.shown()}")
        return int(self.value)

    def side(self) -> int:
        if not 1 <= self.integer() <= MAX_SIDE:
            self.fail(f"must be from 1 to {MAX_SIDE} pixels, not {self.shown()}")
        return self.value

    def integers(self) -> list[int]:
        # Run lengths come by the million: only a list known to be broken is looked at entry by entry.
        if not isinstance(self.value, list) or not all(type(value) is int and value >= 0 for value in self.value):
            return [entry.integer() for entry in self.items()]
        return self.value

    def number(self) -> float:
        number = isinstance(self.value, (int, float)) and not isinstance(self.value, bool)
        if not number or not abs(self.value) < _MAX_NUMBER:  # NaN is not less than anything
            self.fail(f"must be a number below {_MAX_NUMBER:g}, not {self.shown()}")
        return float(self.value)

    def numbers(self) -> list[float]:
        # Polygons come by the million as well.
        if not isinstance(self.value, list) or not all(
            type(value) in (int, float) and abs(value) < _MAX_NUMBER for value in self.value
        ):
            return [entry.number() for entry in self.items()]
        return self.value

    def string(self) -> str:
        if not isinstance(self.value, str) or not self.value:
            self.fail(f"must be a non-empty string, not {self.shown()}")
        return self.value

    def equals(self, expected: int, meaning: str) -> None:
        if self.integer() != expected:
            self.fail(f"is {self.value}, but {meaning} is {expected}")


def check_unique(root: Field, key: str, ids: list[int]) -> None:
    """Refuses the file if two entries of its list `key` have the same id."""
    first: dict[int, int] = {}
    for i, identity in enumerate(ids):
        if first.setdefault(identity, i) != i:
            root.get(key).items()[i].fail(f"has the id {identity}, which {key}[{first[identity]}] has already")


def read_category(field: Field) -> Category:
    """An entry of `categories`, of COCO or YouTube-VIS."""
    return Category(field.get("id").integer(), field.get("name").string())


def read_path(field: Field) -> str:
    """A path relative to the folder of images, which must not lead out of it."""
    inside = PurePosixPath(field.string())
    if inside.is_absolute() or ".." in inside.parts:
        field.fail(f"must be a path inside the folder of images, not {field.value!r}")
    return field.value


def read_flag(field: Field) -> bool:
    """0 or 1."""
    if field.integer() > 1:
        field.fail(f"must be 0 or 1, not {field.value}")
    return field.value == 1


def read_box(field: Field) -> Box:
    """x, y, width, height in pixels."""
    entries = field.items()
    if len(entries) != 4:
        field.fail(f"must be x, y, width, height, not {len(entries)} numbers")
    x, y, width, height = (entry.number() for entry in entries)
    if width < 0 or height < 0:
        field.fail(f"has a negative width or height: {field.value}")
    return x, y, width, height
