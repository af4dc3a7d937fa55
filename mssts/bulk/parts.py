"""The files between workers and results: one a video, whole or absent.

They lie in `OUT/parts` until `results.json` holds all of them, so that whatever dies, what is done is done. All
machines must see the folder.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mssts.errors import MsstsError
from mssts.files import read_json, write_json, write_text
from mssts.prediction.report import VideoResult
from mssts.prediction.results import entry_line

FOLDER = "parts"
_RUN = "run.json"
_ENGINE = "engine.json"
_SUFFIX = ".jsonl"
_IN_A_FOLDER = 1000  # some file systems are slow with many more


class Parts:
    """The files of one run.

    Args:
        out: the output folder.
    """

    def __init__(self, out: Path | str) -> None:
        self.folder = Path(out) / FOLDER

    def begin(self, run: dict[str, Any], resume: bool) -> set[int]:
        """Makes the folder, and returns which videos are done already.

        Args:
            run: all that the results depend on, as a JSON value.
            resume: go on with the files of an earlier run of the same.

        Raises:
            MsstsError: there are files and `resume` is false, they are of another run, or the folder cannot be written.
        """
        if self.folder.exists() and not resume:
            raise MsstsError(
                f"{self.folder}: holds the videos of a run that did not finish; go on with --resume, or delete it"
            )
        if not (self.folder / _RUN).is_file():
            write_json(self.folder / _RUN, run)
            return set()
        before = read_json(self.folder / _RUN)
        changed = [key for key in run if not isinstance(before, dict) or before.get(key) != run[key]]
        if changed:
            raise MsstsError(
                f"{self.folder}: is of a run with another {', '.join(changed)}; resume it with the same, or take "
                "another --out"
            )
        return self._done()

    def check(self, run: dict[str, Any]) -> None:
        """Looks whether this machine sees the folder of that run.

        Raises:
            MsstsError: it does not.
        """
        path = self.folder / _RUN
        if not path.is_file() or read_json(path) != run:
            raise MsstsError(f"{self.folder}: not seen from this machine; --out must be on a disk that all share")

    def _done(self) -> set[int]:
        done = set()
        for folder in self.folder.iterdir():
            if folder.is_dir():
                done |= {int(file.stem) for file in folder.glob(f"*{_SUFFIX}") if file.stem.isdigit()}
        return done

    def describe(self, value: dict[str, Any]) -> None:
        """Keeps what the first worker says of the engine, for the report."""
        write_json(self.folder / _ENGINE, value)

    def description(self) -> dict[str, Any]:
        """What `describe` kept, empty if it was never called."""
        path = self.folder / _ENGINE
        return read_json(path) if path.is_file() else {}

    def write(self, index: int, result: VideoResult) -> None:
        """Writes the result of the video at `index` of the source.

        Raises:
            MsstsError: it cannot be written.
        """
        head = {
            "video": asdict(result.report),
            "stage_seconds": result.stage_seconds,
            "entries": len(result.entries),
        }
        lines = [json.dumps(head, allow_nan=False), *map(entry_line, result.entries)]
        write_text(self._path(index), "".join(f"{line}\n" for line in lines))

    def read(self, index: int) -> tuple[dict[str, Any], Iterator[str]]:
        """The head of a file, and the lines of its entries.

        Raises:
            MsstsError: the file is not whole, as after a loss of power. It is deleted, to be made again.
        """
        path = self._path(index)
        try:
            text = path.read_text(encoding="utf-8")
            first, *lines = text.splitlines()
            head = json.loads(first)
            whole = text.endswith("\n") and isinstance(head, dict) and head["entries"] == len(lines)
        except OSError as error:
            raise MsstsError(f"{path}: cannot be read: {error.strerror}; run again with --resume") from None
        except (ValueError, KeyError):
            whole = False
        if not whole:
            path.unlink(missing_ok=True)
            raise MsstsError(f"{path}: was not whole and is deleted; run again with --resume, which makes it again")
        return head, iter(lines)

    def remove(self) -> None:
        """Removes all files."""
        # Renamed first: what is left of a removal that was interrupted must not pass for an unfinished run.
        removed = self.folder.with_name(f".{FOLDER}.removed")
        shutil.rmtree(removed, ignore_errors=True)
        self.folder.rename(removed)
        shutil.rmtree(removed, ignore_errors=True)

    def _path(self, index: int) -> Path:
        return self.folder / f"{index // _IN_A_FOLDER:04d}" / f"{index:07d}{_SUFFIX}"
