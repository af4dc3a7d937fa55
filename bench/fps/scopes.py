"""Clips from JPEG to run lengths, in this process and through a server."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import cv2
from tqdm import tqdm

import mssts
from mssts.artefact import Kind
from mssts.bench.fps.engines import MEASURED, Candidate, Setting
from mssts.bench.fps.in_flight import segmenter_flow
from mssts.bench.fps.measuring import entry_of
from mssts.bench.fps.times import summary
from mssts.errors import MsstsError, first_line
from mssts.segmenters.base import Segmenter

SCOPES = {
    "model": "uint8 frames in, scores, labels, boxes and mask logits of the best K out, in this process",
    "pipeline": "JPEGs in, instances with run lengths out, in this process",
    "served": "JPEGs in, instances with run lengths out, through Triton on this machine, by the client's clock",
}


def measure_scope(
    scope: str, candidates: Sequence[Candidate], setting: Setting, repeats: int
) -> Iterator[tuple[list[dict[str, Any]], list[dict[str, Any]]]]:
    """Rows of one scope, engine by engine, or the reason why one has none.

    An engine has two: one clip at a time, and as many in flight as `segment_many` takes.

    Args:
        scope: `pipeline` or `served`.
        candidates: those that have a row of the model.
        setting: of the run; a clip at once.
        repeats: clips of each, one engine after the other, as each server takes all cores.
    """
    frames_BTHWC, _ = setting.clip()
    jpegs = [cv2.imencode(".jpg", frame[..., ::-1])[1].tobytes() for frame in frames_BTHWC[0]]
    for candidate in tqdm(candidates, desc=scope, unit="engine", disable=None):
        try:
            with _segmenter(scope, candidate, setting.threads) as segmenter:
                segmenter.segment(jpegs)
                seconds = []
                for _ in range(repeats):
                    start = time.perf_counter()
                    segmenter.segment(jpegs)
                    seconds.append(time.perf_counter() - start)
                flow = segmenter_flow(segmenter, jpegs, repeats)
                described = segmenter.describe()
        except MsstsError as error:
            yield [], [{**entry_of(candidate, str(error)), "scope": scope}]
            continue
        except Exception as error:  # whatever an engine does, the others are still measured
            reason = f"fails: {type(error).__name__}: {first_line(error)}"
            yield [], [{**entry_of(candidate, reason, failed=True), "scope": scope}]
            continue
        rows = [
            {
                "runner": candidate.runner, "variant": candidate.variant, "precision": candidate.precision,
                "scope": scope, **figures, "peak_memory_mb": None, "threads": setting.threads, "engine": described,
            }
            for figures in ({"in_flight": 1, **summary(seconds, setting.frames)}, flow.row(setting.frames))
        ]  # fmt: skip
        yield rows, []


def average_precision(candidate: Candidate, data: str, threads: int) -> float:
    """AP of the very artefact that was timed, on annotated videos.

    Raises:
        MsstsError: it cannot be loaded as a segmenter, or the data cannot be used.
    """
    import tempfile
    from pathlib import Path

    from mssts.prediction.predictor import PredictOptions

    with tempfile.TemporaryDirectory() as folder, _segmenter("pipeline", candidate, threads) as segmenter:
        mssts.predict(data, segmenter, folder, PredictOptions(pictures=0))
        return mssts.evaluate(data, Path(folder) / "results.json").ap


@contextlib.contextmanager
def _segmenter(scope: str, candidate: Candidate, threads: int) -> Iterator[Segmenter]:
    measured = MEASURED[candidate.runner]
    if candidate.runner == "released" or (measured.takes is Kind.CHECKPOINT and candidate.precision != "fp32"):
        raise MsstsError("only the model is measured: nothing serves it in this precision")
    if scope == "pipeline":
        with mssts.load(candidate.path, threads=threads, runner=measured.runner) as segmenter:
            yield segmenter
        return
    from mssts.serving.repository import model_repository
    from mssts.serving.server import TritonServer

    if measured.takes is Kind.CHECKPOINT:
        raise MsstsError("a server takes an exported engine, not a checkpoint")
    with (
        model_repository(candidate.path, threads, measured.runner) as repository,
        TritonServer(repository) as server,
        mssts.load(server.grpc_url) as segmenter,
    ):
        yield segmenter
