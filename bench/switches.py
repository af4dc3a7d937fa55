"""Cost of each switch: parameters, and time of a forward pass in PyTorch."""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from mssts.bench.arguments import check_outputs, check_positive, frame_size
from mssts.bench.records import save_record
from mssts.model.config import BASELINE, Preset, Switches, preset

HELP = "parameters and time of each of the model's switches"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's arguments."""
    parser.add_argument("--preset", default="mssts_r50", help="default: %(default)s")
    parser.add_argument("--size", default="360x640", metavar="HxW", help="of the frames (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=5, help="of a clip (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="forward passes of each (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="file or folder (default: into runs/bench)")


def run(arguments: argparse.Namespace) -> None:
    """Measures, prints the table and writes the file."""
    size = frame_size(arguments.size)
    check_positive(arguments, "frames", "repeats")
    check_outputs(arguments)
    report = measure_switches(preset(arguments.preset), size, arguments.frames, arguments.repeats)
    print_switches(report)
    save_record("switches", report, arguments.out)


def variants() -> dict[str, Switches]:
    """The baseline, each switch alone, and all (the discriminator is for training)."""
    single = [field.name for field in fields(Switches) if field.name != "discriminator"]
    return {"baseline": BASELINE, **{name: replace(BASELINE, **{name: True}) for name in single}, "all": Switches()}


def measure_switches(preset: Preset, size: tuple[int, int], frames: int, repeats: int) -> dict[str, Any]:
    """Medians over `repeats` forward passes of random weights, variants in turn."""
    import torch
    from tqdm import tqdm

    from mssts.model.engine import Engine
    from mssts.model.mssts_vis import MSSTSVIS

    clip = torch.randint(0, 256, (1, frames, *size, 3), dtype=torch.uint8)
    sizes = torch.tensor([size], dtype=torch.int32)
    engines = {}
    for name, switches in variants().items():
        torch.manual_seed(0)
        model = MSSTSVIS(replace(preset.model, switches=switches))
        engines[name] = Engine(model, preset.top_k).eval()
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    with torch.inference_mode():
        for engine in engines.values():
            engine(clip, sizes)
        for _ in tqdm(range(repeats), unit="round", disable=None):
            for name, engine in engines.items():
                start = time.perf_counter()
                engine(clip, sizes)
                seconds[name].append(time.perf_counter() - start)
    rows = [
        {
            "variant": name,
            "parameters": sum(parameter.numel() for parameter in engine.parameters()),
            "ms_median": 1e3 * statistics.median(seconds[name]),
            "ms_min": 1e3 * min(seconds[name]),
            "ms_max": 1e3 * max(seconds[name]),
        }
        for name, engine in engines.items()
    ]
    return {
        "preset": preset.name,
        "size": list(size),
        "frames": frames,
        "repeats": repeats,
        "runner": "PyTorch eager, CPU, fp32",
        "threads": torch.get_num_threads(),
        "rows": rows,
    }


def print_switches(report: dict[str, Any]) -> None:
    """The rows as a table, each beside the baseline."""
    height, width = report["size"]
    print(
        f"{report['preset']}, {report['frames']} frames of {height}x{width}, {report['runner']}, "
        f"{report['threads']} threads, median of {report['repeats']}"
    )
    print(f"{'variant':18} {'parameters':>12} {'added':>9} {'ms':>9} {'times':>7}")
    base = report["rows"][0]
    for row in report["rows"]:
        added = (row["parameters"] - base["parameters"]) / 1e6
        print(
            f"{row['variant']:18} {row['parameters']:12,} {added:8.2f}M {row['ms_median']:9.1f} "
            f"{row['ms_median'] / base['ms_median']:7.3f}"
        )
