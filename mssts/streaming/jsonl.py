"""Results as JSON lines, one a frame, in a file that is rotated by size."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from pathlib import Path

from mssts.errors import MsstsError
from mssts.files import reason
from mssts.streaming.results import FrameResult
from mssts.streaming.sinks import Monitored, Sink


class JsonlFile(Sink):
    """Appends a line a frame, whole and at once, so that a reader can follow.

    A file that is full is renamed: of `tracks.jsonl` the oldest part is `tracks.1.jsonl`, the next `tracks.2.jsonl`. So
    is a file that is there at the start: nothing that was written is overwritten. When a line cannot be written (the
    disk is full), it is left out, nothing of it stays in the file, and the next one is tried.

    Args:
        path: the file.
        most_bytes: of one file; more only if a single line has more.
        keep: files that were renamed, of which the oldest beyond so many are removed; all if None.
    """

    def __init__(self, path: Path, most_bytes: int, keep: int | None = None) -> None:
        if most_bytes < 1 or (keep is not None and keep < 0):
            raise MsstsError(f"{path}: the size must be above 0 and the number of files to keep at least 0")
        self._path = path
        self._most_bytes = most_bytes
        self._keep = keep
        self._handle: int | None = None
        self._size = 0
        self._lost = 0  # lines since the last one that was written

    def open(self, stream: Monitored) -> None:
        """Makes the file.

        Raises:
            MsstsError: it cannot be written.
        """
        if self._path.is_dir():
            raise MsstsError(f"{self._path}: is a folder; expected the name of a file to write")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._rotate()
        except OSError as error:
            raise MsstsError(f"{self._path}: cannot be written: {reason(error)}") from None

    def write(self, result: FrameResult) -> None:
        """Appends a line.

        Raises:
            MsstsError: it could not be, for the first time in a row; or it was again, after lines that were not.
        """
        line = result.to_line().encode()
        try:
            if self._handle is None or (self._size and self._size + len(line) > self._most_bytes):
                self._rotate()
            assert self._handle is not None
            self._append(line)
        except OSError as error:
            self._lost += 1
            if self._lost == 1:
                raise MsstsError(
                    f"{self._path}: cannot be written: {reason(error)}; lines are left out from frame {result.frame} on"
                ) from None
            return
        if self._lost:
            lost, self._lost = self._lost, 0
            raise MsstsError(f"{self._path}: written again from frame {result.frame} on, {lost} lines were left out")

    def close(self) -> None:
        """Closes the file."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def _append(self, line: bytes) -> None:
        assert self._handle is not None
        written = 0
        try:
            while written < len(line):
                written += os.write(self._handle, line[written:])
        except OSError:
            with contextlib.suppress(OSError):  # a pipe or a device, of which nothing can be taken back
                os.ftruncate(self._handle, self._size)
                os.lseek(self._handle, self._size, os.SEEK_SET)
            raise
        self._size += len(line)

    def _open(self) -> None:
        self._handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        self._size = 0

    def _rotate(self) -> None:
        self.close()  # an attempt before may have closed it, and failed to rename it
        if self._path.is_file() and self._path.stat().st_size:
            self._rename()
        self._open()

    def _rename(self) -> None:
        numbers = sorted(self._parts())
        self._path.rename(self._part(numbers[-1] + 1 if numbers else 1))
        if self._keep is not None:
            numbers = sorted(self._parts())
            for number in numbers[: len(numbers) - self._keep]:
                self._part(number).unlink(missing_ok=True)

    def _part(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.stem}.{number}{self._path.suffix}")

    def _parts(self) -> list[int]:
        pattern = re.compile(re.escape(self._path.stem) + r"\.(\d+)" + re.escape(self._path.suffix))
        return [int(found[1]) for path in self._path.parent.iterdir() if (found := pattern.fullmatch(path.name))]


class JsonlOutput(Sink):
    """Prints a line a frame to standard output."""

    def write(self, result: FrameResult) -> None:
        """Prints a line at once."""
        sys.stdout.write(result.to_line())
        sys.stdout.flush()
