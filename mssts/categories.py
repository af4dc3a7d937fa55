"""Tables of classes, matched by name.

Data sets number the same classes in different ways, so an id alone does not say which class is meant.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from mssts.errors import MsstsError
from mssts.manifest import Category

_SHOWN = 5  # names in a message
# Names that stand for no name, as of a released checkpoint, which does not say. Such a class is known by its id.
_PLACEHOLDER = re.compile(r"((class|unused)[ _]?)?\d+")


@dataclass(frozen=True)
class CategoryMap:
    """The engine's labels in the table of a data set.

    Attributes:
        by_label: for each label the data set's category, None where it has none of that name.
        left_out: names that the engine knows and the data set does not.
        unknown: names that the data set has and the engine does not know.
    """

    by_label: tuple[Category | None, ...]
    left_out: tuple[str, ...]
    unknown: tuple[str, ...]


def map_by_name(engine: Sequence[Category], table: Sequence[Category], source: str) -> CategoryMap:
    """Finds the category of a data set for each class of an engine.

    Args:
        engine: the classes of the engine, by label.
        table: the categories of the data set. Empty: the engine's own are taken.
        source: the data set, for messages.

    Raises:
        MsstsError: no class of the engine is in the table.
    """
    if not table:
        return CategoryMap(tuple(engine), (), ())
    found = [_same(category, table, engine) for category in engine]
    if not any(found):
        raise MsstsError(
            f"{source}: none of its categories ({_listed([c.name for c in table])}) is a class of the engine "
            f"({_listed([c.name for c in engine])}); rename them, or take an engine that was trained on these"
        )
    left_out = [
        category.name
        for category, match in zip(engine, found, strict=True)
        if match is None and not _PLACEHOLDER.fullmatch(category.name)
    ]
    unknown = [category.name for category in table if category not in found]
    return CategoryMap(tuple(found), tuple(left_out), tuple(unknown))


def _same(category: Category, table: Sequence[Category], others: Sequence[Category]) -> Category | None:
    """The entry of a table for a category, None if there is no unambiguous one.

    There is none if no entry has its name, or several among `others` do.
    """
    same_id = next((entry for entry in table if entry.id == category.id), None)
    if same_id is not None and _key(same_id.name) == _key(category.name):
        return same_id
    named = [entry for entry in table if _key(entry.name) == _key(category.name)]
    if len(named) == 1:
        return named[0]
    unnamed = _PLACEHOLDER.fullmatch(category.name) or (same_id is not None and _PLACEHOLDER.fullmatch(same_id.name))
    if same_id is None or not unnamed or _key(same_id.name) in {_key(other.name) for other in others}:
        return None
    return same_id


def _key(name: str) -> str:
    """The form in which names are compared: without case and joints of words."""
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def warnings_of(mapped: CategoryMap, source: str) -> list[str]:
    """For which classes results can hold nothing, a line each."""
    lines = []
    if mapped.left_out:
        lines.append(f"{source} has no category {_listed(mapped.left_out)}; instances of it are left out")
    if mapped.unknown:
        lines.append(f"the engine does not know {_listed(mapped.unknown)}, which {source} has")
    return lines


def difference(ours: Sequence[Category], theirs: Sequence[Category]) -> str:
    """The first difference of two tables as a phrase, empty if there is none."""
    if list(ours) == list(theirs):
        return ""
    our_names, their_names = [c.name for c in ours], [c.name for c in theirs]
    missing = [name for name in their_names if name not in our_names]
    added = [name for name in our_names if name not in their_names]
    if missing or added:
        parts = ([f"without {_listed(missing)}"] if missing else []) + ([f"with {_listed(added)}"] if added else [])
        return " and ".join(parts)
    if len(ours) != len(theirs):  # one name several times
        return f"with {len(ours)} classes instead of {len(theirs)}"
    for label, (our, their) in enumerate(zip(ours, theirs, strict=True)):
        if our.name != their.name:
            return f"in another order (class {label} is {our.name}, was {their.name})"
    changed = next((our, their) for our, their in zip(ours, theirs, strict=True) if our.id != their.id)
    return f"with other ids ({changed[0].name} is {changed[0].id}, was {changed[1].id})"


def disagreement(results: Sequence[Category], table: Sequence[Category]) -> str:
    """The ids that mean different classes in results and data set, as a phrase."""
    results = sorted((c for c in results if not _PLACEHOLDER.fullmatch(c.name)), key=lambda category: category.id)
    table = [category for category in table if not _PLACEHOLDER.fullmatch(category.name)]
    names = {category.id: category.name for category in table}
    wrong = [c for c in results if c.id in names and _key(names[c.id]) != _key(c.name)]
    shown = [f"{c.id} is {c.name} there and {names[c.id]} here" for c in wrong[:_SHOWN]]
    if shown:
        return ", ".join(shown) + (f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else "")
    here = {_key(category.name): category.id for category in table}
    moved = [c for c in results if c.id not in names and _key(c.name) in here]
    return ", ".join(f"{c.name} is {c.id} there and {here[_key(c.name)]} here" for c in moved[:_SHOWN])


def read_categories(value: object) -> tuple[Category, ...]:
    """The table that a `report.json` holds, empty if it holds none."""
    listed = value.get("categories") if isinstance(value, dict) else None
    if not isinstance(listed, list):
        return ()
    try:
        return tuple(Category(int(entry["id"]), str(entry["name"])) for entry in listed)
    except (KeyError, TypeError, ValueError):
        return ()


def rows_by_name(ours: Sequence[Category], theirs: Sequence[Category]) -> list[int | None]:
    """For each of our classes, the label of that class among theirs, or None.

    Classes without a name of their own, as in a checkpoint that does not say, are the same where their ids are.
    """
    matches = [_same(category, theirs, ours) for category in ours]
    return [None if match is None else theirs.index(match) for match in matches]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
