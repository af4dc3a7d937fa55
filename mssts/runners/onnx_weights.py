"""The weights of a `model.onnx` where they lie in the file, for engines that can read them there.

An engine that makes its own copy of the weights needs those of the file only while it is loaded. Read in the usual way
they stay in memory; mapped they are pages of the file, which can go and come back.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

# What processors' instructions and OpenVINO ask of the address of a tensor; a tensor elsewhere would be copied.
ALIGNMENT = 64
SMALLEST = 1 << 16  # bytes of a weight that is worth it
# Numbers of the fields in onnx.proto, which never change.
_MODEL_GRAPH, _GRAPH_INITIALIZER, _TENSOR_NAME, _TENSOR_RAW_DATA = 7, 5, 8, 9


@dataclass(frozen=True)
class Span:
    """A weight's bytes in the file."""

    name: str
    start: int
    end: int


def spans(data: bytes | mmap.mmap) -> list[Span]:
    """Where the weights are in a serialised ONNX model, in their order; (start = end = 0 for one that is elsewhere).

    Raises:
        ValueError: it is no such model.
    """
    found = []
    try:
        for graph in _fields(data, _MODEL_GRAPH, 0, len(data)):
            for tensor in _fields(data, _GRAPH_INITIALIZER, *graph):
                name = next(_fields(data, _TENSOR_NAME, *tensor), (0, 0))
                raw = next(_fields(data, _TENSOR_RAW_DATA, *tensor), (0, 0))
                found.append(Span(bytes(data[slice(*name)]).decode(), *raw))
    except (IndexError, UnicodeDecodeError):
        raise ValueError("not an ONNX model") from None
    return found


def _fields(data: bytes | mmap.mmap, wanted: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Starts and ends of the fields with one number in a message of protobuf."""
    while start < end:
        key, start = _varint(data, start)
        match key & 7:
            case 0:
                _, stop = _varint(data, start)
            case 1:
                stop = start + 8
            case 2:
                length, start = _varint(data, start)
                stop = start + length
            case 5:
                stop = start + 4
            case _:
                raise ValueError("not an ONNX model")
        if stop > end:
            raise ValueError("not an ONNX model")
        if key >> 3 == wanted:
            yield start, stop
        start = stop


def _varint(data: bytes | mmap.mmap, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at


class MappedWeights:
    """The large weights of a file that lie where they can be used in place, by name, as arrays of bytes.

    Files that `mssts export` wrote have them all; in another file there may be none. The arrays are not to be written.
    """

    def __init__(self, path: Path) -> None:
        self.arrays: dict[str, np.ndarray] = {}
        try:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # numpy's readers ask for writable
            found = spans(self._map)
        except (OSError, ValueError):  # whoever loads the file will say what is wrong with it
            return
        for span in found:
            if span.end - span.start >= SMALLEST and span.start % ALIGNMENT == 0:
                self.arrays[span.name] = np.frombuffer(self._map, np.uint8, span.end - span.start, span.start)
        self.forget()  # what lies around the names was read with them

    def forget(self) -> None:
        """Gives their pages back; what is read again comes from the file again."""
        if self.arrays and hasattr(self._map, "madvise") and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)
