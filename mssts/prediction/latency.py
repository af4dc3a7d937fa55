"""Latency of one request by stage, with nothing else on the server."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import numpy as np

from mssts import contract
from mssts.errors import MsstsError
from mssts.segmenters.triton import STAGE_MODELS, StageTime, TritonSegmenter

_PATIENCE_SECONDS = 5.0
_POLL_SECONDS = 0.05


def stage_latency(segmenter: TritonSegmenter, clip: np.ndarray | Sequence[bytes], repeats: int = 5) -> dict[str, float]:
    """Median milliseconds of each stage and of the whole request.

    Sends one request at a time and waits until the server has counted it: in a stream of requests, a model's clock
    overlaps with that of the next one, and the rest that is left for the transfer drowns. `transfer` is all that is
    neither of the three: network, serialisation, queues, and copies from model to model.

    Raises:
        MsstsError: a request failed, or the server did not count it.
    """
    segmenter.segment(clip)  # the first of a size allocates
    rows = []
    for _ in range(repeats):
        before = _settled(segmenter, None)
        start = time.perf_counter()
        segmenter.segment(clip)
        request = 1e3 * (time.perf_counter() - start)
        after = _settled(segmenter, before[contract.ENSEMBLE].count + 1)
        row = {stage: (after[model] - before[model]).compute_ns / 1e6 for stage, model in STAGE_MODELS.items()}
        rows.append({**row, "transfer": request - sum(row.values()), "request": request})
    return {stage: statistics.median(row[stage] for row in rows) for stage in rows[0]}


def _settled(segmenter: TritonSegmenter, count: int | None) -> dict[str, StageTime]:
    """The statistics, once `count` requests are counted and nothing changes."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    previous = segmenter.statistics()
    while time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
        now = segmenter.statistics()
        if now == previous and (count is None or now[contract.ENSEMBLE].count >= count):
            return now
        previous = now
    raise MsstsError("the server's statistics do not settle; is someone else using it?")
