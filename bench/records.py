"""Records: the JSON files that measurements leave, one a run."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from mssts.errors import MsstsError
from mssts.files import read_json, write_json
from mssts.provenance import provenance

DEFAULT_FOLDER = Path("runs/bench")
TABLES = ("rows", "modules", "kinds", "kernels", "roofline", "per_category")
"""Keys of a record under which tables lie: lists of rows, each an object."""


@dataclass(frozen=True)
class Record:
    """One measurement that was read from its file.

    Attributes:
        path: the file.
        value: its JSON value.
    """

    path: Path
    value: dict[str, Any]

    @property
    def what(self) -> str:
        """What was measured: `fps`, `kernels`, `load` and so on."""
        return str(self.value.get("benchmark") or self.path.stem.partition("_")[0])

    @property
    def tables(self) -> dict[str, list[dict[str, Any]]]:
        """Its tables by name, those without a row left out."""
        return {name: rows for name in TABLES if (rows := self.value.get(name))}

    @property
    def machine(self) -> str:
        """Processor or GPU, cores and memory, in a line."""
        machine = self.value.get("machine", {})
        gpu = self.value.get("gpu") or machine.get("gpu")
        parts = [str(gpu)] if gpu else []
        parts.append(f"{machine.get('cores', '?')} cores of {machine.get('cpu', 'an unknown processor')}")
        if machine.get("memory_gib"):
            parts.append(f"{machine['memory_gib']} GiB")
        return ", ".join(parts)


def is_number(value: Any) -> bool:
    """Whether a value of a record is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def read_record(path: Path) -> Record:
    """Reads a record.

    Raises:
        MsstsError: there is no such file, or it is not what a benchmark writes.
    """
    value = read_json(path)
    if not isinstance(value, dict) or not any(isinstance(value.get(name), list) for name in TABLES):
        raise MsstsError(
            f"{path}: not a record of `mssts bench`; expected a JSON object with one of {', '.join(TABLES)}"
        )
    for name in TABLES:
        rows = value.get(name, [])
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise MsstsError(f"{path}: {name} must be a list of objects")
    for name in ("machine", "versions"):
        if not isinstance(value.get(name, {}), dict):
            raise MsstsError(f"{path}: {name} must be an object")
    return Record(path, value)


def read_records(paths: Sequence[Path]) -> list[Record]:
    """Reads files, and all records in folders, in the order of their names.

    Raises:
        MsstsError: a path does not exist, a file is not a record, or there is none at all.
    """
    found = [read_record(path) for path in _files(paths)]
    if not found:
        raise MsstsError(f"{', '.join(map(str, paths))}: no record there; expected JSON files of `mssts bench`")
    return found


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            yield from sorted(path.glob("*.json"))
        elif path.is_file():
            yield path
        else:
            raise MsstsError(f"{path}: no such file or folder")


_DATE = re.compile(r"_(\d{8})_")


def newest(records: Sequence[Record]) -> Record:
    """The record of the latest date, by the names of the files.

    Of one day it is the last by name.
    """

    def date(record: Record) -> tuple[str, str]:
        named = _DATE.search(record.path.name)
        return named[1] if named else "", record.path.stem

    return max(records, key=date)


def record_name(what: str, stamp: dict[str, Any], now: datetime | None = None) -> str:
    """The name of a record: `<what>_<machine>_<date>_<commit>.json`.

    Args:
        what: what was measured.
        stamp: the record's provenance, with `machine` and `commit`.
        now: the date, by default today in UTC.
    """
    machine = stamp["machine"]
    shown = stamp.get("gpu") or machine.get("gpu") or f"{machine['cpu']} {machine['cores']}c"
    slug = re.sub(r"\b(processor|cpu|with|core)\b|\(r\)|\(tm\)", " ", str(shown).lower())
    slug = "-".join(re.findall(r"[a-z0-9]+", slug))
    day = (now or datetime.now(timezone.utc)).strftime("%Y%m%d")
    return f"{what}_{slug}_{day}_{stamp['commit']}.json"


class RecordFile:
    """The file of one record.

    It may be written again and again while a measurement goes on.

    Args:
        what: what is measured.
        out: the file, or a folder in which it is named by `record_name`. By default that folder is `runs/bench`. A
            record that is there already under such a name is kept, and the new one numbered.
    """

    def __init__(self, what: str, out: Path | None) -> None:
        self._what = what
        self._stamp = provenance()
        if out is None or out.is_dir():
            out = _unused((out or DEFAULT_FOLDER) / record_name(what, self._stamp))
        self._out = out

    def write(self, report: dict[str, Any]) -> None:
        """Writes the figures with their provenance.

        Raises:
            MsstsError: the file cannot be written.
        """
        write_json(self._out, {"benchmark": self._what, **report, **self._stamp})

    def close(self) -> Path:
        """Says where the record is."""
        print(f"wrote {self._out}")
        return self._out


def save_record(what: str, report: dict[str, Any], out: Path | None) -> Path:
    """Writes a record with its provenance and says where.

    Args:
        what: what was measured.
        report: its figures.
        out: as `RecordFile` takes it.

    Raises:
        MsstsError: it cannot be written.
    """
    file = RecordFile(what, out)
    file.write(report)
    return file.close()


def _unused(path: Path) -> Path:
    """The path, with a number where the name is taken."""
    numbered = (path.with_stem(f"{path.stem}-{number}") for number in itertools.count(2))
    return path if not path.exists() else next(other for other in numbered if not other.exists())
