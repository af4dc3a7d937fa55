"""`mssts bench fps`: frames per second and memory of whole engines.

All engines of a run get the same clip and have to answer as PyTorch in fp32 does, or they are refused. Those of the
processor take turns round by round in one process. Those of a GPU come one after another, as each may take all of its
memory. The file is written after each turn. Memory is that of a process of its own for each.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mssts.bench.annotations import read_annotations
from mssts.bench.arguments import check_outputs, check_positive, frame_size
from mssts.bench.records import RecordFile
from mssts.errors import MsstsError, first_line
from mssts.machine import cpu_count
from mssts.manifest import FixedShape
from mssts.provenance import libraries

if TYPE_CHECKING:
    from mssts.bench.fps.engines import Candidate, Setting

HELP = "frames per second and peak memory of the engines, beside the released code"

_ALL = "released,pytorch,onnxruntime-cpu,openvino"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's arguments."""
    parser.add_argument("--preset", default="mssts_r50", help="with random weights (default: %(default)s)")
    parser.add_argument("--checkpoint", type=Path, help="trained weights instead; its switches are what they are")
    parser.add_argument("--runners", default=_ALL, metavar="A,B", help="default: %(default)s")
    parser.add_argument(
        "--switches", default="baseline", metavar="A,B", help="baseline, all or both: the model's switches, off or on"
    )
    parser.add_argument(
        "--precision", default="fp32", metavar="A,B", help="fp32, tf32, fp16, bf16, int8 (default: %(default)s)"
    )
    parser.add_argument("--size", default="360x640", metavar="HxW", help="of the frames (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=5, help="of a clip (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=1, help="clips at once (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=cpu_count(), help="default: all that this process may use")
    parser.add_argument("--repeats", type=int, default=7, help="rounds over the engines (default: %(default)s)")
    parser.add_argument(
        "--scopes", default="model", metavar="A,B",
        help="model, pipeline (JPEG to run lengths) and served (the same through Triton) (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--data", type=Path, metavar="PATH", help="annotated videos: AP of each artefact in its row")
    parser.add_argument("--no-memory", action="store_true", help="do not measure memory (saves a minute)")
    parser.add_argument(
        "--cache", type=Path, default=Path("runs/bench_fps"), help="where exports are kept (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="file or folder (default: into runs/bench)")


def run(arguments: argparse.Namespace) -> int:
    """Measures, prints the table and writes the file.

    The exit code is 1 if an engine was refused or failed, or none could run."""
    from mssts.bench.fps.engines import MEASURED, PRECISIONS, Setting, check_names
    from mssts.bench.fps.floor import with_floors
    from mssts.bench.fps.measuring import measure
    from mssts.bench.fps.published import PUBLISHED
    from mssts.bench.fps.scopes import SCOPES

    size = frame_size(arguments.size)
    check_positive(arguments, "frames", "batch", "threads", "repeats")
    check_outputs(arguments)
    if arguments.data is not None:
        arguments.data, _ = read_annotations(arguments.data)  # before minutes of measurement
    check_names("runners", arguments.runners.split(","), list(MEASURED))
    check_names("precision", arguments.precision.split(","), PRECISIONS)
    scopes = arguments.scopes.split(",")
    check_names("scopes", scopes, list(SCOPES))
    setting = Setting(size, arguments.frames, arguments.batch, arguments.threads)
    checkpoints = _checkpoints(arguments)
    candidates, absent = _candidates(arguments, checkpoints, setting)
    head = {
        "preset": arguments.preset if arguments.checkpoint is None else None,
        "checkpoint": None if arguments.checkpoint is None else arguments.checkpoint.name,
    }
    record, built = RecordFile("fps", arguments.out), libraries()

    def write(measured: dict[str, Any]) -> dict[str, Any]:
        report = {**head, **measured, "not_measured": absent + measured["not_measured"], "libraries": built}
        record.write(report)
        return report

    measured = measure(candidates, setting, arguments.repeats, not arguments.no_memory, write)
    write(measured)  # before anything else can fail
    measured = with_floors(measured, checkpoints, setting)
    _add_scopes(measured, candidates, setting, arguments, scopes, write)
    measured["published"] = [asdict(figure) for figure in PUBLISHED]
    measured["scopes"] = {scope: SCOPES[scope] for scope in scopes}
    report = write(measured)
    record.close()
    print_fps(report)
    return int(any(entry["refused"] or entry["failed"] for entry in report["not_measured"]) or not report["rows"])


def _checkpoints(arguments: argparse.Namespace) -> dict[str, Path]:
    """The weights of each variant."""
    from mssts.bench.fps.exports import random_checkpoints
    from mssts.model.checkpoint import load_checkpoint

    if arguments.checkpoint is None:
        return random_checkpoints(arguments.preset, arguments.switches.split(","), arguments.cache)
    if not arguments.checkpoint.is_file():
        raise MsstsError(f"--checkpoint {arguments.checkpoint}: no such file")
    load_checkpoint(arguments.checkpoint)  # each engine would fail by itself, and leave a record of nothing
    return {"trained": arguments.checkpoint}


def _candidates(
    arguments: argparse.Namespace, checkpoints: Mapping[str, Path], setting: Setting
) -> tuple[list[Candidate], list[dict[str, Any]]]:
    """The candidates, with their exports made, and what cannot be measured and why."""
    from mssts.bench.fps.engines import Candidate
    from mssts.bench.fps.exports import Exports
    from mssts.bench.fps.measuring import entry_of

    runners, precisions = arguments.runners.split(","), arguments.precision.split(",")
    exports = Exports(arguments.cache, str(FixedShape(setting.batch, setting.frames, *setting.size)))
    found, absent = [], []
    for variant, checkpoint in checkpoints.items():
        for runner, precision in itertools.product(runners, precisions):
            candidate = Candidate(runner, variant, precision, str(checkpoint))
            try:
                found.append(exports.with_what_it_loads(candidate))
            except MsstsError as error:
                absent.append(entry_of(candidate, str(error)))
    return found, absent


def _add_scopes(
    measured: dict[str, Any],
    candidates: Sequence[Candidate],
    setting: Setting,
    arguments: argparse.Namespace,
    scopes: Sequence[str],
    so_far: Callable[[dict[str, Any]], object],
) -> None:
    """Adds AP to the rows if there are data, and rows of the scopes beyond the model.

    `so_far` gets what is known after each engine.
    """
    from mssts.bench.fps.scopes import average_precision, measure_scope

    by_name = {(c.runner, c.variant, c.precision): c for c in candidates}
    alone = [row for row in measured["rows"] if row["in_flight"] == 1]
    ran = [by_name[row["runner"], row["variant"], row["precision"]] for row in alone]
    if arguments.data is not None:
        for row, candidate in zip(alone, ran, strict=True):
            try:
                row["ap"] = average_precision(candidate, str(arguments.data), setting.threads)
            except Exception as error:  # whatever an engine does, the others are still measured
                row["ap"] = None
                print(f"no AP of {candidate}: {first_line(error)}")
            so_far(measured)
    for scope in scopes:
        if scope != "model":
            for rows, absent in measure_scope(scope, ran, setting, arguments.repeats):
                measured["rows"] += rows
                measured["not_measured"] += absent
                so_far(measured)


def print_fps(report: dict[str, Any]) -> None:
    """Prints the rows as a table, beside the released code if that was measured."""
    height, width = report["size"]
    print(
        f"\n{report['preset'] or report['checkpoint']}, clips of {report['frames']} frames of {height}x{width}, "
        f"{report['batch']} at once, {report['threads']} threads, {report['repeats']} rounds in turn; times in ms"
    )
    print(
        f"{'runner':16} {'switches':9} {'precision':9} {'scope':9}{'in flight':>9} {'median':>9} {'p5':>9} {'p95':>9} "
        f"{'frames/s':>9} {'times':>6} {'× floor':>7} {'AP':>6} {'peak MB':>8}  kernels"
    )
    baseline = next((row for row in report["rows"] if row["runner"] == "released"), None)
    for row in report["rows"]:
        model = row["scope"] == "model"
        times = f"{row['frames_per_second'] / baseline['frames_per_second']:.2f}" if baseline and model else "–"
        floor = f"{row['times_of_floor']:.2f}" if row.get("times_of_floor") else "–"
        ap = f"{100 * row['ap']:.1f}" if row.get("ap") is not None else "–"
        memory = "–" if row["peak_memory_mb"] is None else f"{row['peak_memory_mb']:.0f}"
        kernels = row["engine"].get("kernels_isa") or ("yes" if row["engine"].get("kernels") else "none")
        print(
            f"{row['runner']:16} {row['variant']:9} {row['precision']:9} {row['scope']:9}{row['in_flight']:9} "
            f"{row['ms_median']:9.1f} {row['ms_p5']:9.1f} {row['ms_p95']:9.1f} {row['frames_per_second']:9.2f} "
            f"{times:>6} {floor:>7} {ap:>6} {memory:>8}  {kernels}"
        )
    around = report["around"]
    print(
        f"beside the engine, for each clip: from JPEGs to its input {around['preprocess']:.1f} ms, "
        f"from its output to run lengths {around['postprocess']:.1f} ms"
    )
    for rate in report.get("best_rates", []):
        print(f"best rate of this machine in {rate['dtype']}: {rate['gflop_per_s']:.0f} GFLOP/s ({rate['library']})")
    for figure in report.get("published", []):
        print(
            f"published: {figure['model']}, {figure['frames_per_second']:g} frames/s, hardware {figure['hardware']}, "
            f"{figure['scope']} ({figure['source']})"
        )
    for entry in report["not_measured"]:
        what = "REFUSED" if entry["refused"] else "FAILED" if entry["failed"] else "not measured here"
        many = f" with {entry['in_flight']} in flight" if entry["in_flight"] > 1 else ""
        print(f"{entry['runner']:16} {entry['variant']:9} {entry['precision']:9} {what}{many}: {entry['reason']}")
