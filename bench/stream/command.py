"""`mssts bench stream`: a video through `stream`, viewers of its page, a camera."""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mssts.bench.arguments import check_outputs, check_positive
from mssts.bench.records import save_record
from mssts.commands.demo import CHECKPOINT
from mssts.commands.options import server_url

if TYPE_CHECKING:
    import numpy as np

    from mssts.segmenters.base import Segmenter

HELP = "a video through `stream` beside `predict`, the cost of viewers, and the latency from a camera"

_SHARE_GOAL, _COST_GOAL = 0.95, 0.10
_WARM_FRAMES = 12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's arguments."""
    engine = parser.add_mutually_exclusive_group()
    engine.add_argument(
        "--model", type=Path, metavar="PATH",
        help="an export, which a server on this machine gets (default: that of the shipped `tiny`, made if need be)",
    )  # fmt: skip
    engine.add_argument("--url", metavar="grpc://HOST:PORT", help="a running server instead")
    parser.add_argument("--frames", type=int, default=480, help="of the video (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="of `stream` and `predict` (default: %(default)s)")
    parser.add_argument("--view-rounds", type=int, default=4, help="with and without viewers (default: %(default)s)")
    parser.add_argument("--viewers", type=int, default=3, help="at once (default: %(default)s)")
    parser.add_argument("--seconds", type=int, default=60, help="of the camera (default: %(default)s)")
    parser.add_argument(
        "--budget", type=int, default=540, metavar="S", help="no round begins that would end later (default: 540)"
    )
    parser.add_argument(
        "--cache", type=Path, default=Path("runs/bench_fps"), help="where the export is kept (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="file or folder (default: into runs/bench)")


def run(arguments: argparse.Namespace) -> None:
    """Measures, prints the table and writes the record."""
    from mssts.bench.stream.scene import scene
    from mssts.segmenters import load

    check_positive(arguments, "frames", "rounds", "view_rounds", "viewers", "seconds", "budget")
    check_outputs(arguments)
    deadline = time.monotonic() + arguments.budget
    load_average = os.getloadavg()[0]
    pictures_NHWC = scene()
    with _served(arguments) as url, load(url) as segmenter:
        rows, not_measured = _measured(arguments, segmenter, pictures_NHWC, deadline)
        engine = segmenter.describe()
    _print_rows(rows)
    for absent in not_measured:
        print(f"{absent['name']}: not measured here: {absent['reason']}")
    report = {
        "engine": engine, "frames": arguments.frames, "rounds": arguments.rounds,
        "view_rounds": arguments.view_rounds, "viewers": arguments.viewers, "camera_seconds": arguments.seconds,
        "size": list(pictures_NHWC.shape[1:3]), "load_average_before": load_average, "rows": rows,
        "not_measured": not_measured,
    }  # fmt: skip
    save_record("stream", report, arguments.out)


@contextmanager
def _served(arguments: argparse.Namespace) -> Iterator[str]:
    """The address of a server, which ends with the block if it was started here."""
    if arguments.url:
        yield server_url(arguments.url)
        return
    from mssts.bench.fps.engines import export
    from mssts.serving.repository import model_repository
    from mssts.serving.server import TritonServer

    model = arguments.model
    if model is None:
        print("exporting (a minute the first time)", flush=True)
        model = export(CHECKPOINT, "fp32", arguments.cache)
    with model_repository(model) as repository, TritonServer(repository) as server:
        yield server.grpc_url


def _measured(
    arguments: argparse.Namespace, segmenter: Segmenter, pictures_NHWC: np.ndarray, deadline: float
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """The rows, and what is missing here with the reason."""
    from mssts.bench.stream.camera import DEBIAN_PACKAGES, gstreamer_python
    from mssts.bench.stream.latency import measure_latency
    from mssts.bench.stream.runs import interleaved, predicted, streamed, watched
    from mssts.bench.stream.scene import write_scene

    rows: list[dict[str, Any]] = []
    camera: list[dict[str, Any]] = []
    not_measured = []
    with tempfile.TemporaryDirectory(prefix="mssts-bench-") as folder:
        video = write_scene(Path(folder) / "scene.mp4", pictures_NHWC, arguments.frames)
        warm = write_scene(Path(folder) / "warm.mp4", pictures_NHWC, _WARM_FRAMES)
        for once in (streamed, predicted):
            once(warm, _WARM_FRAMES, segmenter)
        python = gstreamer_python()
        if python is None:
            reason = f"GStreamer's RTSP server is missing; `apt-get install {DEBIAN_PACKAGES}`"
            not_measured.append({"name": "camera", "reason": reason})
        else:
            print(f"a camera for {arguments.seconds} s", flush=True)
            camera.append(measure_latency(segmenter, python, pictures_NHWC, arguments.seconds))
        runs = {
            "predict": functools.partial(predicted, video, arguments.frames, segmenter),
            "stream": functools.partial(streamed, video, arguments.frames, segmenter),
        }
        has_page = find_spec("aiohttp") is not None
        files = interleaved(runs, arguments.rounds, _before_views(deadline, arguments, has_page), "stream and predict")
        rows += _compared(files)
        if not has_page:
            reason = "aiohttp is missing, which --view needs; `pip install 'mssts[view]'`"
            not_measured.append({"name": "viewers", "reason": reason})
        else:
            pictures: list[int] = []
            name = f"stream, {arguments.viewers} viewers"
            views = {
                "stream, no page": runs["stream"],
                name: functools.partial(watched, video, arguments.frames, segmenter, arguments.viewers, pictures),
            }
            found = _compared(interleaved(views, arguments.view_rounds, deadline, "viewers"))
            found[1]["pictures_least"] = min(pictures)
            rows += found
    return rows + camera, not_measured


def _before_views(deadline: float, arguments: argparse.Namespace, has_page: bool) -> float:
    """When the rounds without viewers have to end.

    A slow machine measures some of each.
    """
    if not has_page:
        return deadline
    now = time.monotonic()
    return now + (deadline - now) * arguments.rounds / (arguments.rounds + arguments.view_rounds)


def _compared(samples: dict[str, list[float]]) -> list[dict[str, Any]]:
    """A row for each of two runs that took turns, the second with its ratio."""
    (base, base_rates), (other, rates) = samples.items()
    ratios = [rate / base_rate for rate, base_rate in zip(rates, base_rates, strict=True)]
    return [
        {
            "name": base, "frames_per_second": statistics.median(base_rates), "rounds": len(base_rates),
            "samples_frames_per_second": base_rates,
        },
        {
            "name": other, "frames_per_second": statistics.median(rates), "rounds": len(rates),
            "ratio": statistics.median(ratios), "ratio_to": base, "samples_ratio": ratios,
            "samples_frames_per_second": rates,
        },
    ]  # fmt: skip


def _print_rows(rows: Sequence[dict[str, Any]]) -> None:
    """The rows as a table, each ratio beside its goal."""
    print(f"{'a video through':24}{'frames/s':>10}{'ratio':>8}{'rounds':>8}")
    for row in rows:
        if "frames_per_second" in row:
            ratio = f"{row['ratio']:8.3f}" if "ratio" in row else " " * 8
            goal = 1 - _COST_GOAL if "viewers" in row["name"] else _SHARE_GOAL
            beside = f"  of {row['ratio_to']}; the goal is {goal:.2f}" if "ratio" in row else ""
            print(f"{row['name']:24}{row['frames_per_second']:10.1f}{ratio}{row['rounds']:8d}{beside}")
    for row in rows:
        if "ms_median" in row:
            print(
                f"a camera: median {row['ms_median']:.0f} ms from picture to line (the goal is "
                f"{row['median_goal_ms']:.0f}), p95 {row['ms_p95']:.0f}, most {row['ms_max']:.0f} (promised are "
                f"{row['promised_ms']:.0f}); a clip {row['clip_ms']:.0f} ms; {row['frames']} frames, "
                f"{row['dropped']} dropped, {row['gaps']} gaps"
            )
