"""`mssts bench profile`: where the time of a clip goes.

It tells the time by module of the paper, beside the machine's floor.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mssts.bench.arguments import check_outputs, check_positive, frame_size
from mssts.bench.plotting import pyplot, save_figure
from mssts.bench.profile.work import WORK
from mssts.bench.records import save_record
from mssts.errors import MsstsError
from mssts.machine import cpu_count

if TYPE_CHECKING:
    from mssts.bench.fps.engines import Setting
    from mssts.bench.operations import Operation
    from mssts.bench.profile.times import ModuleTimes
    from mssts.bench.rates import Rate
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
    from mssts.bench.fps.engines import Setting, saved_random_checkpoint
    from mssts.bench.operations import count_operations
    from mssts.bench.rates import measure_rates
    from mssts.model.checkpoint import load_checkpoint

    size = frame_size(arguments.size)
    check_positive(arguments, "frames", "threads", "repeats")
    check_outputs(arguments)
    if arguments.precision == "int8" and arguments.runner != "openvino":
        raise MsstsError(f"--precision int8 runs in OpenVINO; {arguments.runner} has fp32 here")
    if arguments.precision == "bf16" and arguments.runner == "onnxruntime":
        raise MsstsError("--precision bf16: ONNX Runtime has no bf16 on a processor; expected fp32")
    checkpoint = arguments.checkpoint or saved_random_checkpoint(_preset(arguments), arguments.cache)
    preset = load_checkpoint(checkpoint).preset
    operations = count_operations(preset, (1, arguments.frames, *size))
    rates = measure_rates(operations, [arguments.precision], arguments.threads)
    times = _times(arguments, checkpoint, Setting(size, arguments.frames, 1, arguments.threads))
    report = {
        "preset": preset.name, "checkpoint": arguments.checkpoint.name if arguments.checkpoint else None,
        "switches": arguments.switches if arguments.checkpoint is None else None, "runner": arguments.runner,
        "precision": arguments.precision, "size": list(size), "frames": arguments.frames,
        "threads": arguments.threads, "repeats": arguments.repeats, **_tables(times, operations, rates),
    }  # fmt: skip
    _print(report)
    save_record("profile", report, arguments.out)
    if arguments.plot is not None:
        _plot(report, arguments.plot)


def _times(arguments: argparse.Namespace, checkpoint: Path, setting: Setting) -> ModuleTimes:
    from mssts.bench.fps.engines import export, quantise
    from mssts.bench.profile.times import times_in_engine, times_in_pytorch

    timing = (setting.clip(), setting.threads, arguments.repeats)
    if arguments.runner == "pytorch":
        return times_in_pytorch(checkpoint, arguments.precision, *timing)
    print("exporting (minutes the first time)", flush=True)
    if arguments.precision == "int8":
        engine = quantise(export(checkpoint, "fp32", arguments.cache))
    else:
        engine = export(checkpoint, arguments.precision, arguments.cache)
    return times_in_engine(arguments.runner, engine, *timing)


def _tables(times: ModuleTimes, operations: Sequence[Operation], rates: Sequence[Rate]) -> dict[str, Any]:
    """The times beside the least that the machine needs."""
    from mssts.bench.rates import best_rate, own_rate_seconds

    dtype = rates[0].dtype
    best = best_rate(rates, dtype)

    def row(name: str, ms: float, products: Sequence[Operation], work: Mapping[str, float]) -> dict[str, Any]:
        flops = sum(product.flops for product in products)
        return {
            "name": name, "ms": ms, "floor_ms": flops / best.gflop_per_s / 1e6,
            "own_rate_ms": 1e3 * own_rate_seconds(products, rates, dtype),
            **{f"{sort}_ms": work.get(sort) for sort in WORK}, "gflop": flops / 1e9,
        }  # fmt: skip

    modules = [
        row(name, ms, [each for each in operations if each.module == name], times.work.get(name, {}))
        for name, ms in times.modules.items()
    ]
    work = {sort: sum(module[sort] for module in times.work.values()) for sort in WORK} if times.work else {}
    total = row("total", times.total_ms, operations, work)
    return {
        "rate": asdict(best),
        "floor": "FLOPs of the products ÷ the best sustained rate of PyTorch and OpenVINO at the model's own shapes",
        "own_rate": "the same with the best rate of each product's own shape, where that was measured",
        "modules": modules,
        "kinds": [{"name": name, "ms": ms} for name, ms in times.kinds.items()],
        "rates": [asdict(rate) for rate in rates],
        "total": total,
        "total_ms": total["ms"],
        "floor_ms": total["floor_ms"],
    }


def _preset(arguments: argparse.Namespace) -> Preset:
    from mssts.model.config import BASELINE, Switches, preset

    chosen = preset(arguments.preset)
    switches = BASELINE if arguments.switches == "baseline" else Switches()
    return replace(chosen, model=replace(chosen.model, switches=switches))


def _print(report: dict[str, Any]) -> None:
    rate = report["rate"]
    print(f"best rate in {rate['dtype']}: {rate['gflop_per_s']:.0f} GFLOP/s ({rate['library']}, {rate['kind']})")
    print(f"{'module':32}{'ms':>9}{'share':>7}{'floor':>9}{'× floor':>8}{'own rate':>9}", end="")
    print("".join(f"{sort:>9}" for sort in WORK) + f"{'GFLOP':>8}")
    for row in [*report["modules"], report["total"]]:
        times = f"{row['ms'] / row['floor_ms']:8.2f}" if row["floor_ms"] >= 0.05 * row["ms"] > 0 else f"{'–':>8}"
        print(
            f"{row['name']:32}{row['ms']:9.1f}{row['ms'] / report['total_ms']:7.1%}{row['floor_ms']:9.1f}{times}"
            f"{row['own_rate_ms']:9.1f}{''.join(_cell(row[f'{sort}_ms']) for sort in WORK)}{row['gflop']:8.1f}"
        )
    kinds = [kind for kind in report["kinds"] if kind["ms"] >= 0.005 * report["total_ms"]]
    if kinds:
        print("by what nodes compute: " + ", ".join(f"{kind['name']} {kind['ms']:.1f} ms" for kind in kinds))


def _cell(ms: float | None) -> str:
    return f"{'–':>9}" if ms is None else f"{ms:9.1f}"


def _plot(report: dict[str, Any], path: Path) -> None:
    rows = report["modules"][::-1]
    names = [row["name"] for row in rows]
    figure, axes = pyplot().subplots(figsize=(8, 4.5), layout="constrained")
    axes.barh(names, [row["ms"] for row in rows], color="#4c78a8", label="measured")
    axes.barh(names, [row["floor_ms"] for row in rows], color="#e07b39", height=0.3, label="floor of this machine")
    axes.set_xlabel("milliseconds of a clip")
    axes.set_title(f"{report['preset']}, {report['runner']} in {report['precision']}, {report['total_ms']:.0f} ms")
    axes.legend()
    save_figure(figure, path)
