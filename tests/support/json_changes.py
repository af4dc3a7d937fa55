"""Changes one value in a JSON file, for tests of readers' messages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Change = Callable[[dict[str, Any]], object]


def put(*keys: Any, to: Any) -> Change:
    """A change of one value of the file, found by its keys."""

    def change(value: dict[str, Any]) -> None:
        place: Any = value
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = to

    return change


def drop(*keys: Any) -> Change:
    """The removal of one value of the file, found by its keys."""

    def change(value: dict[str, Any]) -> None:
        place: Any = value
        for key in keys[:-1]:
            place = place[key]
        del place[keys[-1]]

    return change
