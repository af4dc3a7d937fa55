"""Time and memory of engines, in turn on a processor and alone on a GPU."""

from __future__ import annotations

import contextlib
import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from mssts.bench.fps import engines
from mssts.bench.fps.engines import Candidate, Setting
from mssts.bench.fps.in_flight import Flow, engine_flow
from mssts.bench.fps.memory import peak_memory_mb
from mssts.bench.fps.times import summary
from mssts.errors import MsstsError, first_line
from mssts.machine import cpu_count
from mssts.manifest import InputRule
from mssts.runners.agreement import Agreement, out_of_bounds
from mssts.runners.base import EngineOutput, Runner
from mssts.segmenters.postprocessing import to_instances
from mssts.segmenters.preprocessing import decode_frames, engine_input

# Seconds for which threads of PyTorch and ONNX Runtime spin after an inference, and take cores from the next engine.
_SETTLE = 0.3


def measure(
    candidates: list[Candidate],
    setting: Setting,
    repeats: int,
    memory: bool,
    so_far: Callable[[dict[str, Any]], object] = lambda report: None,
) -> dict[str, Any]:
    """The report: a row for each correct engine, and the reasons for the others.

    `so_far` gets what is known of it after each turn.
    """
    turns = _turns(candidates)
    report: dict[str, Any] = {
        **asdict(setting),
        "repeats": repeats,
        "around": around_the_engine(setting, repeats),
        "scope": "uint8 frames in, scores, labels, boxes and mask logits of the best K out",
        "memory": "peak resident memory of a process that loads the engine alone and runs two clips, in 10⁶ bytes",
        "reference": "PyTorch in fp32, without kernels",
        "rows": [],
        "not_measured": [],
    }
    references: dict[str, EngineOutput] = {}
    for turn in tqdm(turns, desc="engines", unit="turn", disable=None):
        rows, absent = _Turn(setting, references, memory).measure(turn, repeats)
        report["rows"] += rows
        report["not_measured"] += absent
        so_far(report)
    return report


def _turns(candidates: list[Candidate]) -> list[list[Candidate]]:
    """Engines of the processor together, those of a GPU one at a time."""
    together = [candidate for candidate in candidates if engines.MEASURED[candidate.runner].device == "cpu"]
    alone = [[candidate] for candidate in candidates if candidate not in together]
    return [together, *alone] if together else alone


class _Turn:
    """Engines that are loaded at one time, and take turns."""

    def __init__(self, setting: Setting, references: dict[str, EngineOutput], memory: bool) -> None:
        self._setting, self._references, self._memory = setting, references, memory
        self._clip = setting.clip()
        self._engines: dict[Candidate, Runner] = {}
        self._known: dict[Candidate, dict[str, Any]] = {}
        self._absent: list[dict[str, Any]] = []

    def measure(self, candidates: list[Candidate], repeats: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """The rows, and those that have none."""
        try:
            for candidate in tqdm(candidates, desc="load and check", unit="engine", disable=None, leave=False):
                self._attempt(candidate, self._load)
            seconds: dict[Candidate, list[float]] = {candidate: [] for candidate in self._engines}
            for _ in tqdm(range(repeats), desc="rounds", unit="round", disable=None, leave=False):
                for candidate in list(self._engines):
                    if len(candidates) > 1:
                        time.sleep(_SETTLE)
                    self._attempt(candidate, self._infer)  # its code and weights are in the caches again
                    if candidate in self._engines:
                        start = time.perf_counter()
                        self._attempt(candidate, self._infer)
                        seconds[candidate].append(time.perf_counter() - start)
            rows = [row for candidate in list(self._engines) for row in self._rows(candidate, seconds[candidate])]
        finally:
            for candidate in list(self._engines):
                self._drop(candidate)
        return rows, self._absent

    def _attempt(self, candidate: Candidate, action: Callable[[Candidate], object], in_flight: int = 1) -> None:
        """Whatever an engine does, the others are still measured."""
        try:
            action(candidate)
            return
        except MsstsError as error:
            reason, failed = str(error), candidate in self._engines
        except Exception as error:  # out of memory, a compiler's error, …
            reason, failed = f"fails: {type(error).__name__}: {first_line(error)}", True
        self._drop(candidate)
        self._absent.append(entry_of(candidate, reason, in_flight, failed=failed))

    def _infer(self, candidate: Candidate) -> None:
        self._engines[candidate].infer(*self._clip)

    def _load(self, candidate: Candidate) -> None:
        runner = engines.load(candidate, self._setting.threads)
        self._engines[candidate] = runner
        answer = runner.infer(*self._clip)
        if candidate.variant not in self._references:
            self._references[candidate.variant] = _reference(candidate, *self._clip)
        difference = Agreement.of(self._references[candidate.variant], answer, precision=candidate.precision).summary()
        wrong = out_of_bounds(difference, candidate.precision)
        if wrong:
            self._drop(candidate)
            self._absent.append(entry_of(candidate, wrong, refused=True))
            return
        peak = peak_memory_mb(candidate, self._setting) if self._memory else None
        self._known[candidate] = {"peak_memory_mb": peak, "difference": difference}

    def _rows(self, candidate: Candidate, seconds: list[float]) -> Iterator[dict[str, Any]]:
        """The row of one clip at a time, and that of several in flight if possible."""
        runner, frames = self._engines[candidate], self._setting.frames * self._setting.batch
        row = {
            "runner": candidate.runner,
            "variant": candidate.variant,
            "precision": candidate.precision,
            "scope": "model",
            "in_flight": 1,
            **summary(seconds, frames),
            **self._known[candidate],
            "threads": self._setting.threads,
            "engine": runner.describe(),
        }
        yield row
        wanted = runner.in_flight
        if wanted == 1:
            return
        flows: list[Flow] = []

        def measure(_: Candidate) -> None:
            engine_flow(runner, *self._clip, 1)  # each context sets things up in its first clip
            if runner.in_flight == wanted:
                flows.append(engine_flow(runner, *self._clip, len(seconds)))

        self._attempt(candidate, measure, wanted)
        for flow in flows:
            yield {**row, **flow.row(frames), "peak_memory_mb": None, "engine": runner.describe()}
        if not flows and candidate in self._engines:
            reason = "takes one clip at a time: the GPU's memory is short for a second"
            self._absent.append(entry_of(candidate, reason, wanted))

    def _drop(self, candidate: Candidate) -> None:
        """Frees an engine, and what PyTorch keeps of the GPU's memory for the next."""
        runner = self._engines.pop(candidate, None)
        with contextlib.suppress(Exception):  # of one that failed before
            if runner is not None:
                runner.close()
        del runner
        gc.collect()
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            with contextlib.suppress(Exception):
                torch.cuda.empty_cache()


def _reference(candidate: Candidate, clip_BTHWC: Any, sizes_B2: Any) -> EngineOutput:
    """The answer of PyTorch in fp32, on the references of the ops."""
    from mssts.ops import reference_ops

    path = Path(candidate.path)
    if path.is_dir():  # of an export, or of a plan that was built of one
        path = path.with_name(path.name.rpartition(f"-{candidate.precision}")[0] + ".safetensors")
    with reference_ops():
        runner = engines.load(replace(candidate, runner="pytorch", precision="fp32", path=str(path)), cpu_count())
        answer = runner.infer(clip_BTHWC, sizes_B2)
        runner.close()
    return answer


def entry_of(
    candidate: Candidate, reason: str, in_flight: int = 1, *, refused: bool = False, failed: bool = False
) -> dict[str, Any]:
    """An entry of `not_measured`."""
    return {
        "runner": candidate.runner,
        "variant": candidate.variant,
        "precision": candidate.precision,
        "in_flight": in_flight,
        "reason": reason,
        "refused": refused,
        "failed": failed,
    }


def around_the_engine(setting: Setting, repeats: int) -> dict[str, float]:
    """Medians in ms of what surrounds the engine, for a clip.

    `preprocess` goes from JPEGs of its size to the engine's input, `postprocess` from masks of ten instances, a disc
    each, to run lengths of the frames' size.
    """
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
