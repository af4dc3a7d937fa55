"""`mssts bench profile`: where the time of a clip goes.

It tells the time by module of the paper, beside the machine's floor.
"""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mssts.bench.arguments import check_positive, frame_size
from mssts.bench.records import save_record
from mssts.errors import MsstsError
from mssts.machine import cpu_count

if TYPE_CHECKING:
    from mssts.model.config import Preset

HELP = "the time of a clip by module of the paper, and the least that this machine needs for each"

_RUNNERS = ("openvino", "onnxruntime", "pytorch")
_PRECISIONS = ("fp32", "bf16", "int8")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's arguments."""
    parser.add_argument("--preset", default="mssts_r50", help="with random weights (default: %(default)s)")
    parser.add_argument("--checkpoint", type=Path, help="trained weights instead; its switches are what they are")
    parser.add_argument("--switches", choices=("baseline", "all"), default="all", help="default: %(default)s")
    parser.add_argument("--runner", choices=_RUNNERS, default="openvino", help="default: %(default)s")
    parser.add_argument("--precision", choices=_PRECISIONS, default="fp32", help="default: %(default)s")
    parser.add_argument("--size", default="360x640", metavar="HxW", help="of the frames (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=5, help="of a clip (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=cpu_count(), help="default: all that this process may use")
    parser.add_argument("--repeats", type=int, default=5, help="inferences (default: %(default)s)")
    parser.add_argument(
        "--cache", type=Path, default=Path("runs/bench_fps"), help="where exports are kept (default: %(default)s)"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="the times as bars")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="file or folder (default: into runs/bench)")


def run(arguments: argparse.Namespace) -> None:
    """Measures, prints the table and writes the record."""
    from mssts.bench.fps.engines import Setting, export, saved_random_checkpoint
    from mssts.bench.operations import count_operations
    from mssts.bench.profile.times import times_in_engine, times_in_pytorch
    from mssts.bench.rates import best_rate, measure_rates
    from mssts.model.checkpoint import load_checkpoint

    size = frame_size(arguments.size)
    check_positive(arguments, "frames", "threads", "repeats")
    if arguments.precision == "int8" and arguments.runner != "openvino":
        raise MsstsError(f"--precision int8 runs in OpenVINO; {arguments.runner} has fp32 here")
    if arguments.precision == "bf16" and arguments.runner == "onnxruntime":
        raise MsstsError("--precision bf16: ONNX Runtime has no bf16 on a processor; expected fp32")
    checkpoint = arguments.checkpoint or saved_random_checkpoint(_preset(arguments), arguments.cache)
    preset = load_checkpoint(checkpoint).preset
    setting = Setting(size, arguments.frames, 1, arguments.threads)
    operations = count_operations(preset, (1, arguments.frames, *size))
    rate = best_rate(measure_rates(operations, [arguments.precision], arguments.threads), arguments.precision)
    timing = (setting.clip(), arguments.threads, arguments.repeats)
    if arguments.runner == "pytorch":
        times = times_in_pytorch(checkpoint, arguments.precision, *timing)
    else:
        print("exporting (minutes the first time)", flush=True)
        times = times_in_engine(arguments.runner, export(checkpoint, arguments.precision, arguments.cache), *timing)
    flops: Counter[str] = Counter()
    for operation in operations:
        flops[operation.module] += operation.flops
    modules = [
        {"name": name, "ms": ms, "floor_ms": flops[name] / rate.gflop_per_s / 1e6, "gflop": flops[name] / 1e9}
        for name, ms in times.modules.items()
    ]
    report = {
        "preset": preset.name, "checkpoint": arguments.checkpoint.name if arguments.checkpoint else None,
        "switches": arguments.switches if arguments.checkpoint is None else None, "runner": arguments.runner,
        "precision": arguments.precision, "size": list(size), "frames": arguments.frames,
        "threads": arguments.threads, "repeats": arguments.repeats, "rate": asdict(rate),
        "floor": "FLOPs of the products ÷ the best sustained rate of PyTorch and OpenVINO at the model's own shapes",
        "modules": modules, "total_ms": times.total_ms, "floor_ms": sum(flops.values()) / rate.gflop_per_s / 1e6,
    }  # fmt: skip
    _print(report)
    if arguments.plot is not None:
        _plot(report, arguments.plot)
    save_record("profile", report, arguments.out)


def _preset(arguments: argparse.Namespace) -> Preset:
    from mssts.model.config import BASELINE, Switches, preset

    chosen = preset(arguments.preset)
    switches = BASELINE if arguments.switches == "baseline" else Switches()
    return replace(chosen, model=replace(chosen.model, switches=switches))


def _print(report: dict[str, Any]) -> None:
    rate = report["rate"]
    print(f"best rate in {rate['dtype']}: {rate['gflop_per_s']:.0f} GFLOP/s ({rate['library']}, {rate['kind']})")
    print(f"{'module':34}{'ms':>10}{'share':>8}{'floor ms':>10}{'× floor':>9}{'GFLOP':>9}")
    total = {"name": "total", "ms": report["total_ms"], "floor_ms": report["floor_ms"]}
    total["gflop"] = sum(module["gflop"] for module in report["modules"])
    for row in [*report["modules"], total]:
        times = f"{row['ms'] / row['floor_ms']:9.2f}" if row["floor_ms"] >= 0.05 * row["ms"] > 0 else f"{'–':>9}"
        share = row["ms"] / report["total_ms"]
        print(f"{row['name']:34}{row['ms']:10.1f}{share:8.1%}{row['floor_ms']:10.1f}{times}{row['gflop']:9.1f}")


def _plot(report: dict[str, Any], path: Path) -> None:
    from mssts.bench.plotting import pyplot
    from mssts.files import atomic_path

    plt = pyplot()

    rows = report["modules"][::-1]
    names = [row["name"] for row in rows]
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    axes.barh(names, [row["ms"] for row in rows], color="#4c78a8", label="measured")
    axes.barh(names, [row["floor_ms"] for row in rows], color="#e07b39", height=0.3, label="floor of this machine")
    axes.set_xlabel("milliseconds of a clip")
    axes.set_title(f"{report['preset']}, {report['runner']} in {report['precision']}, {report['total_ms']:.0f} ms")
    axes.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150)
    plt.close(figure)
    print(f"wrote {path}")
