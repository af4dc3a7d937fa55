"""Runs a stream into its sinks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

from mssts.errors import MsstsError
from mssts.streaming.sinks import Sink
from mssts.streaming.stream import Stream


def run_stream(stream: Stream, sinks: Sequence[Sink], say: Callable[[str], None]) -> None:
    """Gives every result to every sink until the stream ends.

    Args:
        stream: made with `images` if a sink needs them; it is closed at the end.
        sinks: they are closed at the end, whatever happens.
        say: is given a line when a sink fails, which does not end the stream.

    Raises:
        MsstsError: a sink cannot be opened, or the source or the segmenter failed.
    """
    with stream, ExitStack() as closing:
        for sink in sinks:
            sink.open(stream)
            closing.callback(_closed, sink, say)
        for result in stream:
            for sink in sinks:
                try:
                    sink.write(result)
                except MsstsError as error:
                    say(str(error))


def _closed(sink: Sink, say: Callable[[str], None]) -> None:
    try:
        sink.close()
    except MsstsError as error:
        say(str(error))
