"""`mssts stream`: tracks and segments the objects of live video as it comes."""

from __future__ import annotations

import argparse
import math
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mssts.artefact import Kind
from mssts.commands.options import add_tls, client_options, server_url
from mssts.errors import MsstsError
from mssts.runners import AUTO, runner_help

if TYPE_CHECKING:
    from mssts.segmenters.base import Segmenter
    from mssts.streaming.sinks import Sink
    from mssts.streaming.sources import StreamSource
    from mssts.streaming.stream import Stream

HELP = "track and segment the objects of a camera, a network stream or a video, frame by frame as it comes"

_MEGABYTE = 1_000_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument(
        "source",
        help="a video file, a folder of images, rtsp://…, http(s)://…, udp://…, a webcam's number, or - for stdin",
    )
    engine = parser.add_mutually_exclusive_group(required=True)
    engine.add_argument("--url", metavar="grpc://HOST:PORT", help="a server, or several with commas; grpcs:// for TLS")
    engine.add_argument(
        "--model", type=Path, metavar="PATH", help="an exported model's file or folder, or a checkpoint"
    )
    parser.add_argument("--runner", default=AUTO, help=runner_help(Kind.ONNX, Kind.CHECKPOINT))
    parser.add_argument(
        "--stride", type=int, metavar="N", help="new frames in each window (default: as the engine's manifest says)"
    )
    dropping = parser.add_mutually_exclusive_group()
    dropping.add_argument(
        "--live", action="store_true", default=None,
        help="drop frames when the engine is slower (default for cameras; a file is played at its own speed)",
    )  # fmt: skip
    dropping.add_argument(
        "--every-frame", dest="live", action="store_false", help="never drop a frame (default for files)"
    )
    parser.add_argument("--in-flight", type=int, metavar="N", help="windows that a server works on at once")
    parser.add_argument(
        "--score-threshold", type=float, default=0.3, metavar="S",
        help="tracks whose score so far is below are left out (default %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--jsonl", metavar="FILE", help="a JSON line a frame; - for standard output (default without another output)"
    )
    parser.add_argument(
        "--jsonl-size", type=float, default=100.0, metavar="MB",
        help="size at which FILE is renamed, FILE.1, FILE.2, …, and begun again (default %(default)s)",
    )  # fmt: skip
    parser.add_argument("--jsonl-keep", type=int, metavar="N", help="keep only the last N files that were renamed")
    parser.add_argument("--overlay", type=Path, metavar="FILE.mp4", help="a video with the tracks drawn in")
    parser.add_argument(
        "--format", action="append", choices=("ytvis", "mots", "coco"), default=[],
        help="results in the format of a data set too, when the stream ends: results.json, mots.txt or coco.json in "
        "--out; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, default=Path("runs/stream"), metavar="DIR", help="of --format (default %(default)s)"
    )
    parser.add_argument("--post", metavar="URL", help="post results to this address as JSON, several a request")
    parser.add_argument(
        "--view", metavar="[HOST:]PORT",
        help="a page to watch the stream on; for this machine alone, unless a HOST such as 0.0.0.0 is given, and then "
        "with a token",
    )  # fmt: skip
    parser.add_argument(
        "--timeout", type=float, default=5.0, metavar="S",
        help="seconds within which a camera or network source must deliver (default %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--reconnect", type=float, default=300.0, metavar="S",
        help="seconds for which a lost source or server is tried again (default %(default)s)",
    )  # fmt: skip
    add_tls(parser)
    parser.add_argument(
        "--raw-video", metavar="WIDTHxHEIGHT[@FPS]", help="stdin is plain RGB frames of this size, without a container"
    )


def run(arguments: argparse.Namespace) -> int:
    """Streams until the source ends or a signal comes, and prints a summary to stderr."""
    from mssts.segmenters import load
    from mssts.streaming.options import RawFormat, StreamOptions
    from mssts.streaming.running import run_stream
    from mssts.streaming.sources import open_stream_source
    from mssts.streaming.stream import Stream

    raw = None
    if arguments.raw_video is not None:
        try:
            raw = RawFormat.parse(arguments.raw_video)
        except (ValueError, ZeroDivisionError):
            raise MsstsError(f"--raw-video {arguments.raw_video}: expected a size as 640x360 or 640x360@12") from None
    options = StreamOptions(
        stride=arguments.stride,
        live=arguments.live,
        score_threshold=arguments.score_threshold,
        in_flight=arguments.in_flight,
        timeout=arguments.timeout,
        reconnect=arguments.reconnect,
        raw=raw,
    )
    target = server_url(arguments.url) if arguments.url else arguments.model
    client = client_options(arguments, reconnect=arguments.reconnect, in_flight=arguments.in_flight)
    with load(target, runner=arguments.runner, client=client) as segmenter:
        source = open_stream_source(arguments.source, options)
        sinks = _sinks(arguments, source, segmenter)
        images = any(sink.needs_images for sink in sinks)
        stream = Stream(source, segmenter, replace(options, images=images), _say)
        with _stopped_by_signals(stream) as received:
            run_stream(stream, sinks, _say)
        _print_summary(stream)
    return 128 + received[0] if received else 0


def _sinks(arguments: argparse.Namespace, source: StreamSource, segmenter: Segmenter) -> list[Sink]:
    from mssts.streaming.jsonl import JsonlFile, JsonlOutput

    sinks: list[Sink] = []
    jsonl = arguments.jsonl
    others = (arguments.overlay, arguments.post, arguments.view)
    if jsonl is None and others == (None, None, None) and not arguments.format:
        jsonl = "-"
    if jsonl == "-":
        sinks.append(JsonlOutput())
    elif jsonl is not None:
        if not 0 < arguments.jsonl_size < math.inf:
            raise MsstsError(f"--jsonl-size {arguments.jsonl_size:g}: expected a number of megabytes above 0")
        sinks.append(JsonlFile(Path(jsonl), round(arguments.jsonl_size * _MEGABYTE), arguments.jsonl_keep))
    if arguments.overlay is not None:
        from mssts.streaming.overlay import OverlayVideo

        sinks.append(OverlayVideo(arguments.overlay, source.fps))
    if arguments.format:
        from mssts.streaming.exports import Export

        name = Path(source.name).stem or "stream"
        categories = segmenter.manifest.categories
        sinks += [Export(arguments.out, format_, categories, name) for format_ in dict.fromkeys(arguments.format)]
    if arguments.post is not None:
        from mssts.streaming.webhook import Webhook

        sinks.append(Webhook(arguments.post))
    if arguments.view is not None:
        from mssts.streaming.page import Page
        from mssts.streaming.page_address import PageAddress

        sinks.append(Page(PageAddress.parse(arguments.view), str(source), segmenter, _say))
    return sinks


@contextmanager
def _stopped_by_signals(stream: Stream) -> Iterator[list[int]]:
    """Ends the stream in good order at the first signal, at once at the second.

    Yields the list of the signals that came.
    """
    received: list[int] = []

    def end(number: int, frame: Any) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)
        stream.stop()

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, end) for number in numbers]
    try:
        yield received
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _say(line: str) -> None:
    print(f"mssts stream: {' '.join(line.split())}", file=sys.stderr, flush=True)


def _print_summary(stream: Stream) -> None:
    figures = stream.figures()
    latency = "" if figures.latency is None or not stream.is_live else f"   latency {figures.latency:.2f} s"
    print(
        f"frames {figures.frames}   dropped {figures.dropped}   windows {figures.windows}   "
        f"reconnections {figures.reconnections}{latency}",
        file=sys.stderr,
    )
