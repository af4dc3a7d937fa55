"""Sinks: where the results of a stream go."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

from mssts.streaming.results import FrameResult, StreamFigures


class Monitored(Protocol):
    """What a sink may ask a running stream, at any time and from any thread."""

    def figures(self) -> StreamFigures:
        """The figures now."""

    def lines(self) -> tuple[str, ...]:
        """The last things that were said of the source, the newest last.

        For example that it was lost, or is back.
        """


class Sink(ABC):
    """Takes the results of a stream as they come.

    All methods are called by one thread, `open` first and `close` last. A sink that waits makes the stream wait, so one
    that serves others (a page, a webhook) hands results to threads of its own through a bounded queue, and drops what
    does not fit.

    Attributes:
        needs_images: whether `result.image` must be there.
    """

    needs_images = False

    def open(self, stream: Monitored) -> None:  # noqa: B027  (a sink may have nothing to open)
        """Opens what it writes to, before the first frame.

        Raises:
            MsstsError: it cannot be written to, so the stream does not start.
        """

    @abstractmethod
    def write(self, result: FrameResult) -> None:
        """Takes the next frame's result.

        Raises:
            MsstsError: it was not taken; the message is shown, and the stream goes on.
        """

    def close(self) -> None:  # noqa: B027
        """Writes what it still holds and frees what it has, within seconds."""
