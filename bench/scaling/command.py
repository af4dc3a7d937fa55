"""`mssts bench scaling`: time and memory against what makes them grow."""

from __future__ import annotations

import argparse
import functools
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mssts.bench.arguments import check_outputs, check_positive, frame_size
from mssts.bench.plotting import pyplot, save_figure
from mssts.bench.records import save_record
from mssts.errors import MsstsError
from mssts.machine import cpu_count

if TYPE_CHECKING:
    from mssts.bench.fps.engines import Candidate, Setting

HELP = "time and memory against frames, pixels, queries, cores, video length and concurrent clients"

_AXES = ("frames", "pixels", "queries", "threads", "length", "clients")
_FRAMES = (1, 2, 4, 8, 16)
_SCALES = (0.5, 0.75, 1.0, 1.5, 2.0)  # of each side
_QUERIES = (10, 30, 100, 300)
_LENGTHS = (12, 36, 108, 324)
_CLIENTS = (1, 2, 4)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's arguments."""
    parser.add_argument("--preset", default="tiny", help="with random weights (default: %(default)s)")
    parser.add_argument("--checkpoint", type=Path, help="trained weights instead")
    parser.add_argument("--axes", default=",".join(_AXES), metavar="A,B", help="default: %(default)s")
    parser.add_argument("--size", default="144x256", metavar="HxW", help="of the frames (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=6, help="of a clip (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=cpu_count(), help="default: all that this process may use")
    parser.add_argument("--repeats", type=int, default=5, help="of each point (default: %(default)s)")
    parser.add_argument(
        "--cache", type=Path, default=Path("runs/bench_fps"), help="where exports are kept (default: %(default)s)"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="the times as lines")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="file or folder (default: into runs/bench)")


def run(arguments: argparse.Namespace) -> None:
    """Measures axis by axis, prints the tables and writes the record."""
    from mssts.bench.fps.engines import Candidate, Setting, check_names, export, saved_random_checkpoint
    from mssts.model.config import preset

    size = frame_size(arguments.size)
    check_positive(arguments, "frames", "threads", "repeats")
    check_outputs(arguments)
    axes = arguments.axes.split(",")
    check_names("axes", axes, _AXES)
    checkpoint = arguments.checkpoint or saved_random_checkpoint(preset(arguments.preset), arguments.cache)
    if not checkpoint.is_file():
        raise MsstsError(f"--checkpoint {checkpoint}: no such file")
    print("exporting (minutes the first time)", flush=True)
    engine = Candidate("openvino", "all", "fp32", str(export(checkpoint, "fp32", arguments.cache)))
    setting = Setting(size, arguments.frames, 1, arguments.threads)
    measure: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
        "frames": lambda: _frames(engine, setting, arguments.repeats),
        "pixels": lambda: _pixels(engine, setting, arguments.repeats),
        "queries": lambda: _queries(checkpoint, setting, arguments.repeats),
        "threads": lambda: _threads(engine, setting, arguments.repeats),
        "length": lambda: _length(engine, setting),
        "clients": lambda: _clients(engine, setting, arguments.repeats),
    }
    rows: list[dict[str, Any]] = []
    exponents: list[dict[str, Any]] = []
    for axis in axes:
        found = []
        for row in measure[axis]():
            found.append(row)
            memory = "" if row["peak_memory_mb"] is None else f"{row['peak_memory_mb']:9.0f} MB"
            print(f"{axis:8}{row['value']:>9}  {row['runner']:10}{row['ms_median']:10.1f} ms{memory}", flush=True)
        rows += found
        exponents += _exponents(axis, found)
    for fit in exponents:
        error = "" if fit["error"] is None else f" ± {fit['error']:.2f}"
        print(f"{fit['figure']} grows as {fit['axis']}^{fit['exponent']:.2f}{error} ({fit['points']} points)")
    report = {
        "preset": arguments.preset if arguments.checkpoint is None else None,
        "checkpoint": arguments.checkpoint.name if arguments.checkpoint else None,
        "size": list(setting.size), "frames": setting.frames, "threads": setting.threads,
        "repeats": arguments.repeats, "rows": rows, "exponents": exponents,
    }  # fmt: skip
    save_record("scaling", report, arguments.out)
    if arguments.plot is not None:
        _plot(rows, arguments.plot)


def _exponents(axis: str, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    from mssts.bench.scaling.growth import fit_growth

    fitted = []
    for figure in ("ms_median", "peak_memory_mb"):
        points = [(row["value"], row[figure]) for row in rows if row[figure]]
        if len(points) > 1:
            fitted.append({"axis": axis, "figure": figure, **asdict(fit_growth(*zip(*points, strict=True)))})
    return fitted


def _frames(engine: Candidate, setting: Setting, repeats: int) -> Iterator[dict[str, Any]]:
    for frames in _FRAMES:
        yield _point("frames", frames, engine, replace(setting, frames=frames), repeats)


def _pixels(engine: Candidate, setting: Setting, repeats: int) -> Iterator[dict[str, Any]]:
    for scale in _SCALES:
        height, width = (max(32, round(side * scale / 8) * 8) for side in setting.size)
        yield _point("pixels", height * width, engine, replace(setting, size=(height, width)), repeats)


def _threads(engine: Candidate, setting: Setting, repeats: int) -> Iterator[dict[str, Any]]:
    for threads in range(1, setting.threads + 1):
        yield _point("threads", threads, engine, replace(setting, threads=threads), repeats)


def _queries(checkpoint: Path, setting: Setting, repeats: int) -> Iterator[dict[str, Any]]:
    """In PyTorch, as each number of queries is another model, and another export."""
    import torch

    from mssts.model.checkpoint import load_checkpoint
    from mssts.model.deployment import deployed
    from mssts.model.engine import Engine
    from mssts.model.mssts_vis import MSSTSVIS

    known = load_checkpoint(checkpoint).preset
    torch.set_num_threads(setting.threads)
    clip = [torch.from_numpy(array) for array in setting.clip()]
    for queries in _QUERIES:
        config = replace(known.model, queries=queries)
        engine = deployed(Engine(MSSTSVIS(config), min(known.top_k, queries * config.classes)))
        with torch.inference_mode():
            samples = _timed(functools.partial(engine, *clip), repeats)
        yield _row("queries", queries, "pytorch", samples, None)


def _timed(run: Callable[[], object], repeats: int) -> list[float]:
    """Milliseconds of each run but the first, which compiles and allocates."""
    samples = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        run()
        samples.append(1e3 * (time.perf_counter() - start))
    return samples[1:]


def _point(axis: str, value: int, engine: Candidate, setting: Setting, repeats: int) -> dict[str, Any]:
    """Time of a clip in this process, and peak memory in one of its own."""
    from mssts.bench.fps.engines import load
    from mssts.bench.fps.memory import peak_memory_mb

    clip = setting.clip()
    runner = load(engine, setting.threads)
    samples = _timed(lambda: runner.infer(*clip), repeats)
    runner.close()
    return _row(axis, value, engine.runner, samples, peak_memory_mb(engine, setting))


def _length(engine: Candidate, setting: Setting) -> Iterator[dict[str, Any]]:
    """Whole videos through windows, decoding and linking included."""
    from mssts.bench.scaling.video import predict_in_a_process, write_shapes

    with tempfile.TemporaryDirectory() as folder:
        for length in _LENGTHS:
            data = write_shapes(Path(folder) / str(length), length, setting.size)
            seconds, peak_mb = predict_in_a_process(data, Path(engine.path), setting.threads)
            yield _row("length", length, engine.runner, [1e3 * seconds], peak_mb)


def _clients(engine: Candidate, setting: Setting, repeats: int) -> Iterator[dict[str, Any]]:
    """Clients that share a local engine.

    Each sends the next clip when it has the answer to the last.
    """
    from mssts.bench.fps.engines import load

    runner = load(engine, setting.threads)
    clip = setting.clip()
    runner.infer(*clip)
    for clients in _CLIENTS:
        samples: list[float] = []

        def client(samples: list[float] = samples) -> None:
            for _ in range(repeats):
                start = time.perf_counter()
                runner.infer(*clip)
                samples.append(1e3 * (time.perf_counter() - start))

        threads = [threading.Thread(target=client) for _ in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        yield _row("clients", clients, engine.runner, samples, None)
    runner.close()


def _row(axis: str, value: int, runner: str, samples: list[float], peak_mb: float | None) -> dict[str, Any]:
    return {
        "axis": axis, "value": value, "runner": runner, "ms_median": statistics.median(samples),
        "peak_memory_mb": peak_mb, "samples_ms": samples,
    }  # fmt: skip


def _plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    names = list(dict.fromkeys(row["axis"] for row in rows))
    size = (3 * len(names), 3)
    figure, panels = pyplot().subplots(1, len(names), figsize=size, layout="constrained", squeeze=False)
    for panel, axis in zip(panels[0], names, strict=True):
        found = [row for row in rows if row["axis"] == axis]
        panel.loglog([row["value"] for row in found], [row["ms_median"] for row in found], "o-", color="#4c78a8")
        panel.set_xlabel(axis)
        panel.set_xticks([row["value"] for row in found], [str(row["value"]) for row in found], rotation=45)
        panel.minorticks_off()
    panels[0][0].set_ylabel("milliseconds")
    save_figure(figure, path)
