"""`mssts bench fps`: frames per second and memory of whole engines.

All engines of a run get the same clip, take turns round by round in one process, and have to answer as PyTorch in fp32
does, or they are refused. Memory is that of a process of its own for each.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mssts.artefact import Kind
from mssts.bench.arguments import check_positive, frame_size
from mssts.errors import MsstsError
from mssts.files import write_json
from mssts.machine import cpu_count
from mssts.manifest import FixedShape, InputRule
from mssts.provenance import provenance

if TYPE_CHECKING:
    from mssts.bench.fps.engines import Candidate, Setting
    from mssts.runners.base import EngineOutput, Runner

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

    The exit code is 1 if an engine was refused or none could run."""
    from mssts.bench.fps.engines import Setting

    size = frame_size(arguments.size)
    check_positive(arguments, "frames", "batch", "threads", "repeats")
    setting = Setting(size, arguments.frames, arguments.batch, arguments.threads)
    candidates, absent = _candidates(arguments, setting)
    report = measure(candidates, setting, arguments.repeats, not arguments.no_memory)
    report["not_measured"] = absent + report["not_measured"]
    report = {
        "preset": arguments.preset if arguments.checkpoint is None else None,
        "checkpoint": None if arguments.checkpoint is None else arguments.checkpoint.name,
        **report,
        **provenance(),
    }
    print_fps(report)
    if arguments.out is not None:
        write_json(arguments.out, report)
        print(f"wrote {arguments.out}")
    return int(any(entry["refused"] for entry in report["not_measured"]) or not report["rows"])


def _candidates(arguments: argparse.Namespace, setting: Setting) -> tuple[list[Candidate], list[dict[str, Any]]]:
    """The candidates, with their exports made, and what cannot be measured and why."""
    from mssts.bench.fps.engines import MEASURED, PRECISIONS, Candidate, check_names

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
                absent.append(_absent(candidate, str(error)))
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


def _absent(candidate: Candidate, reason: str, refused: bool = False) -> dict[str, Any]:
    return {
        "runner": candidate.runner,
        "variant": candidate.variant,
        "precision": candidate.precision,
        "reason": reason,
        "refused": refused,
    }


def measure(candidates: list[Candidate], setting: Setting, repeats: int, memory: bool) -> dict[str, Any]:
    """The report: a row for each correct engine, and the reasons for the others."""
    from tqdm import tqdm

    from mssts.bench.fps.engines import load
    from mssts.bench.fps.memory import peak_memory_mb
    from mssts.runners.agreement import Agreement, out_of_bounds

    clip_BTHWC, sizes_B2 = setting.clip()
    engines: dict[Candidate, Runner] = {}
    differences: dict[Candidate, dict[str, float]] = {}
    peaks: dict[Candidate, float | None] = {}
    absent = []
    references: dict[str, EngineOutput] = {}
    for candidate in tqdm(candidates, desc="load and check", unit="engine", disable=None):
        try:
            runner = load(candidate, setting.threads)
            answer = runner.infer(clip_BTHWC, sizes_B2)
        except MsstsError as error:
            absent.append(_absent(candidate, str(error)))
            continue
        if candidate.variant not in references:
            references[candidate.variant] = _reference(candidate, clip_BTHWC, sizes_B2)
        differences[candidate] = Agreement.of(references[candidate.variant], answer).summary()
        wrong = out_of_bounds(differences[candidate], candidate.precision)
        if wrong:
            absent.append(_absent(candidate, wrong, refused=True))
            runner.close()
            continue
        engines[candidate] = runner
        peaks[candidate] = peak_memory_mb(candidate, setting) if memory else None
    seconds: dict[Candidate, list[float]] = {candidate: [] for candidate in engines}
    for _ in tqdm(range(repeats), desc="rounds", unit="round", disable=None):
        for candidate, runner in engines.items():
            start = time.perf_counter()
            runner.infer(clip_BTHWC, sizes_B2)
            seconds[candidate].append(time.perf_counter() - start)
    rows = [
        {
            "runner": candidate.runner,
            "variant": candidate.variant,
            "precision": candidate.precision,
            **_summary(seconds[candidate], setting.frames * setting.batch),
            "peak_memory_mb": peaks[candidate],
            "threads": setting.threads,
            "difference": differences[candidate],
            "engine": runner.describe(),
        }
        for candidate, runner in engines.items()
    ]
    for runner in engines.values():
        runner.close()
    return {
        **asdict(setting),
        "repeats": repeats,
        "around": around_the_engine(setting, repeats),
        "scope": "uint8 frames in, scores, labels, boxes and mask logits of the best K out",
        "memory": "peak resident memory of a process that loads the engine alone and runs two clips, in 10⁶ bytes",
        "reference": "PyTorch in fp32, without kernels",
        "rows": rows,
        "not_measured": absent,
    }


def _reference(candidate: Candidate, clip_BTHWC: Any, sizes_B2: Any) -> EngineOutput:
    """The answer of PyTorch in fp32, on the references of the ops."""
    from mssts.bench.fps.engines import load
    from mssts.ops import reference_ops

    path = Path(candidate.path)
    if path.is_dir():  # of an export, or of a plan that was built of one
        path = path.with_name(path.name.rpartition(f"-{candidate.precision}")[0] + ".safetensors")
    with reference_ops():
        runner = load(replace(candidate, runner="pytorch", precision="fp32", path=str(path)), cpu_count())
        answer = runner.infer(clip_BTHWC, sizes_B2)
        runner.close()
    return answer


def around_the_engine(setting: Setting, repeats: int) -> dict[str, float]:
    """Medians in ms of what surrounds the engine, for a clip.

    `preprocess` goes from JPEGs of its size to the engine's input, `postprocess` from masks of ten instances, a disc
    each, to run lengths of the frames' size.
    """
    import cv2
    import numpy as np

    from mssts.runners.base import EngineOutput
    from mssts.segmenters.postprocessing import to_instances
    from mssts.segmenters.preprocessing import decode_frames, engine_input

    K = 10
    clip_BTHWC, sizes_B2 = replace(setting, batch=1).clip()
    jpegs = [cv2.imencode(".jpg", frame[..., ::-1])[1].tobytes() for frame in clip_BTHWC[0]]
    height, width = setting.size
    rule = InputRule(min(setting.size), max(setting.size))
    y, x = np.mgrid[: -(-height // 8) * 2, : -(-width // 8) * 2]
    discs = [np.hypot(y - 3 * k - 9, x - 5 * k - 9) for k in range(K)]
    logits = 8 - np.stack([np.stack(discs)] * setting.frames, 1)[None].astype(np.float32)
    output = EngineOutput(
        np.ones((1, K), np.float32), np.zeros((1, K), np.int32), np.ones((1, K, setting.frames, 4), np.float32), logits
    )
    seconds: dict[str, list[float]] = {"preprocess": [], "postprocess": []}
    for _ in range(repeats + 1):  # the first warms up
        start = time.perf_counter()
        engine_input(decode_frames(jpegs), rule)
        seconds["preprocess"].append(time.perf_counter() - start)
        start = time.perf_counter()
        to_instances(output, sizes_B2, setting.size)
        seconds["postprocess"].append(time.perf_counter() - start)
    return {name: 1e3 * statistics.median(found[1:]) for name, found in seconds.items()}


def _summary(seconds: list[float], frames: int) -> dict[str, float]:
    ordered = sorted(1e3 * second for second in seconds)

    def percentile(share: float) -> float:
        position = share * (len(ordered) - 1)
        low = int(position)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (position - low) * (ordered[high] - ordered[low])

    median = statistics.median(ordered)
    return {
        "ms_median": median,
        "ms_p5": percentile(0.05),
        "ms_p95": percentile(0.95),
        "frames_per_second": 1e3 * frames / median,
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
        kernels = row["engine"]["kernels_isa"] or ("yes" if row["engine"]["kernels"] else "none")
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
        what = "REFUSED" if entry["refused"] else "not measured here"
        print(f"{entry['runner']:16} {entry['variant']:9} {entry['precision']:9} {what}: {entry['reason']}")
