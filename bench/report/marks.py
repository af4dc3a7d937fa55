"""Tables of Markdown pages, written from the records between two marks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from mssts.bench.records import Record
from mssts.bench.report.figures import figures
from mssts.bench.report.goals import goals
from mssts.errors import MsstsError

WRITERS: dict[str, Callable[[Sequence[Record]], str]] = {"figures": figures, "goals": goals}


def marks(name: str) -> tuple[str, str]:
    """The lines before and after a table."""
    return f"<!-- {name}: written by `mssts bench report --readme` -->", f"<!-- end of {name} -->"


def written(page: Path) -> dict[str, str]:
    """The tables that a page holds, by name.

    Raises:
        MsstsError: it cannot be read, or has no place for any.
    """
    text, found = _read(page), {}
    for name in WRITERS:
        begin, end = marks(name)
        if begin in text and end in text.partition(begin)[2]:
            found[name] = text.partition(begin)[2].partition(end)[0].strip()
    if not found:
        begin, end = marks("figures")
        raise MsstsError(f"{page}: has no place for figures; expected the lines {begin} and {end}")
    return found


def rewritten(page: Path, records: Sequence[Record]) -> str:
    """The text of a page with its tables as the records have them.

    Raises:
        MsstsError: as `written`, or a record is missing.
    """
    text = _read(page)
    for name in written(page):
        begin, end = marks(name)
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}\n{WRITERS[name](records)}\n{end}{rest.partition(end)[2]}"
    return text


def _read(page: Path) -> str:
    try:
        return page.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MsstsError(f"{page}: cannot be read as text: {error}") from None
