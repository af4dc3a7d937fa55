"""`mssts bench fps`: frames per second and memory of whole engines.

All engines of a run get the same clip and have to answer as PyTorch in fp32 does, or they are refused. Those of the
processor take turns round by round in one process. Those of a GPU come one after another, as each may take all of its
memory. The file is written after each turn. Memory is that of a process of its own for each.
"""

from __future__ import annotations

import argparse
import itertools
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mssts.artefact import Kind
from mssts.bench.arguments import check_positive, frame_size
from mssts.errors import MsstsError
from mssts.files import write_json
from mssts.machine import cpu_count
from mssts.manifest import FixedShape
from mssts.provenance import libraries, provenance

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
        "--precision", default="fp32", metavar="A,B", help="fp32, tf32, fp16, bf16 (default: %(default)s)"
    )
    parser.add_argument("--size", default="360x640", metavar="HxW", help="of the frames (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=5, help="of a clip (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=1, help="clips at once (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=cpu_count(), help="default: all that this process may use")
    parser.add_argument("--repeats", type=int, default=7, help="rounds over the engines (default: %(default)s)")
    parser.add_argument("--no-memory", action="store_true", help="do not measure memory (saves a minute)")
    parser.add_argument(
        "--cache", type=Path, default=Path("runs/bench_fps"), help="where exports are kept (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, help="JSON file for the figures")


def run(arguments: argparse.Namespace) -> int:
    """Measures, prints the table and writes the file.

    The exit code is 1 if an engine was refused or failed, or none could run."""
    from mssts.bench.fps.engines import Setting
    from mssts.bench.fps.measuring import measure

    size = frame_size(arguments.size)
    check_positive(arguments, "frames", "batch", "threads", "repeats")
    setting = Setting(size, arguments.frames, arguments.batch, arguments.threads)
    candidates, absent = _candidates(arguments, setting)
    head = {
        "preset": arguments.preset if arguments.checkpoint is None else None,
        "checkpoint": None if arguments.checkpoint is None else arguments.checkpoint.name,
    }
    whence = {"libraries": libraries(), **provenance()}

    def write(measured: dict[str, Any]) -> dict[str, Any]:
        report = {**head, **measured, "not_measured": absent + measured["not_measured"], **whence}
        if arguments.out is not None:
            write_json(arguments.out, report)
        return report

    report = write(measure(candidates, setting, arguments.repeats, not arguments.no_memory, write))
    if arguments.out is not None:
        print(f"wrote {arguments.out}")
    print_fps(report)
    return int(any(entry["refused"] or entry["failed"] for entry in report["not_measured"]) or not report["rows"])


def _candidates(arguments: argparse.Namespace, setting: Setting) -> tuple[list[Candidate], list[dict[str, Any]]]:
    """The candidates, with their exports made, and what cannot be measured and why."""
    from mssts.bench.fps.engines import MEASURED, PRECISIONS, Candidate, check_names
    from mssts.bench.fps.measuring import entry_of

    runners, precisions = arguments.runners.split(","), arguments.precision.split(",")
    check_names("runners", runners, list(MEASURED))
    check_names("precision", precisions, PRECISIONS)
    exports = _Exports(arguments.cache, str(FixedShape(setting.batch, setting.frames, *setting.size)))
    found, absent = [], []
    for variant, checkpoint in _checkpoints(arguments).items():
        for runner, precision in itertools.product(runners, precisions):
            candidate = Candidate(runner, variant, precision, str(checkpoint))
            try:
                found.append(exports.with_what_it_loads(candidate))
            except MsstsError as error:
                absent.append(entry_of(candidate, str(error)))
    return found, absent


class _Exports:
    """The exports and plans of a run, each made once, plans for one input shape."""

    def __init__(self, folder: Path, shape: str) -> None:
        self._folder, self._shape = folder, shape
        self._made: dict[tuple[str, str], Path | MsstsError] = {}

    def with_what_it_loads(self, candidate: Candidate) -> Candidate:
        """The candidate with the path of what its runner loads, made if need be.

        Raises:
            MsstsError: it cannot run here, or it could not be made; the message says why.
        """
        from mssts.bench.fps.engines import MEASURED, build, why_not_installed

        measured = MEASURED[candidate.runner]
        if candidate.precision not in measured.precisions:
            where = "a processor" if measured.device == "cpu" else "a GPU"
            raise MsstsError(f"it has no {candidate.precision} on {where}")
        missing = why_not_installed(candidate.runner)  # before minutes go into an export for it
        if missing:
            raise MsstsError(missing)
        if measured.takes is Kind.CHECKPOINT:
            return candidate
        made = self._export(candidate)
        if measured.takes is Kind.PLAN:
            print(f"building {candidate} (minutes the first time)", flush=True)
            made = build(made, candidate.runner, self._shape)
        return replace(candidate, path=str(made))

    def _export(self, candidate: Candidate) -> Path:
        from mssts.bench.fps.engines import export

        key = candidate.path, candidate.precision
        if key not in self._made:
            print(f"exporting {candidate.variant} in {candidate.precision} (minutes the first time)", flush=True)
            try:
                self._made[key] = export(Path(candidate.path), candidate.precision, self._folder)
            except MsstsError as error:  # kept: the next runner that wants it would wait minutes to hear the same
                self._made[key] = error
        made = self._made[key]
        if isinstance(made, MsstsError):
            raise made
        return made


def _checkpoints(arguments: argparse.Namespace) -> dict[str, Path]:
    """The weights of each variant."""
    from mssts.bench.fps.engines import check_names, saved_random_checkpoint
    from mssts.model.config import BASELINE, Switches, preset

    if arguments.checkpoint is not None:
        if not arguments.checkpoint.is_file():
            raise MsstsError(f"--checkpoint {arguments.checkpoint}: no such file")
        return {"trained": arguments.checkpoint}
    variants = {"baseline": BASELINE, "all": Switches()}
    wanted = arguments.switches.split(",")
    check_names("switches", wanted, list(variants))
    chosen = preset(arguments.preset)
    return {
        name: saved_random_checkpoint(
            replace(chosen, model=replace(chosen.model, switches=variants[name])), arguments.cache
        )
        for name in wanted
    }


def print_fps(report: dict[str, Any]) -> None:
    """Prints the rows as a table, beside the released code if that was measured."""
    height, width = report["size"]
    print(
        f"\n{report['preset'] or report['checkpoint']}, clips of {report['frames']} frames of {height}x{width}, "
        f"{report['batch']} at once, {report['threads']} threads, {report['repeats']} rounds in turn; times in ms"
    )
    print(
        f"{'runner':16} {'switches':9} {'precision':9} {'median':>9} {'p5':>9} {'p95':>9} {'frames/s':>9} {'times':>6}"
        f" {'peak MB':>8}  kernels"
    )
    baseline = next((row for row in report["rows"] if row["runner"] == "released"), None)
    for row in report["rows"]:
        times = f"{baseline['ms_median'] / row['ms_median']:.2f}" if baseline else "–"
        memory = "–" if row["peak_memory_mb"] is None else f"{row['peak_memory_mb']:.0f}"
        kernels = row["engine"].get("kernels_isa") or ("yes" if row["engine"].get("kernels") else "none")
        print(
            f"{row['runner']:16} {row['variant']:9} {row['precision']:9} {row['ms_median']:9.1f} {row['ms_p5']:9.1f} "
            f"{row['ms_p95']:9.1f} {row['frames_per_second']:9.2f} {times:>6} {memory:>8}  {kernels}"
        )
    around = report["around"]
    print(
        f"beside the engine, for each clip: from JPEGs to its input {around['preprocess']:.1f} ms, "
        f"from its output to run lengths {around['postprocess']:.1f} ms"
    )
    for entry in report["not_measured"]:
        what = "REFUSED" if entry["refused"] else "FAILED" if entry["failed"] else "not measured here"
        print(f"{entry['runner']:16} {entry['variant']:9} {entry['precision']:9} {what}: {entry['reason']}")
