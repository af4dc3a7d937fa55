"""What a server says of its own times."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from mssts import contract

# The stages of a request, as reports name them, and the models that run them.
STAGE_MODELS = {"decode": "preprocess", "engine": "engine", "postprocess": "postprocess"}


@dataclass(frozen=True)
class StageTime:
    """Time that servers have spent in one model since they started.

    The difference of two is what lies between.

    Times are in nanoseconds, summed over `count` requests. `total_ns` is from a request's arrival to its response;
    `queue_ns` and `compute_ns` are parts of it. The ensemble's compute is the sum of its models'. A model starts while
    the one before still tidies up, so that sum may exceed the ensemble's total a little, and likewise its total what
    the client saw. A request is counted a moment after its response; one that `preprocess` refused is counted there,
    but not in the others.
    """

    count: int
    total_ns: int
    queue_ns: int
    compute_ns: int

    def __add__(self, other: StageTime) -> StageTime:
        return StageTime(
            self.count + other.count,
            self.total_ns + other.total_ns,
            self.queue_ns + other.queue_ns,
            self.compute_ns + other.compute_ns,
        )

    def __sub__(self, earlier: StageTime) -> StageTime:
        return StageTime(
            self.count - earlier.count,
            self.total_ns - earlier.total_ns,
            self.queue_ns - earlier.queue_ns,
            self.compute_ns - earlier.compute_ns,
        )


def stage_times(answers: Iterable[Any]) -> dict[str, StageTime]:
    """The times of each model, over the statistics messages of several servers."""
    times: dict[str, StageTime] = {}
    for answer in answers:
        for model in answer.model_stats:
            spent = model.inference_stats
            compute = spent.compute_input.ns + spent.compute_infer.ns + spent.compute_output.ns
            time = StageTime(spent.success.count, spent.success.ns, spent.queue.ns, compute)
            times[model.name] = times.get(model.name, StageTime(0, 0, 0, 0)) + time
    return times


def stage_seconds(times: dict[str, StageTime], request_seconds: float) -> dict[str, float]:
    """Seconds by stage of requests that took `request_seconds` together."""
    stages = {stage: times[model].compute_ns / 1e9 for stage, model in STAGE_MODELS.items()}
    server = times[contract.ENSEMBLE].total_ns / 1e9
    return {**stages, "overhead": server - sum(stages.values()), "transfer": request_seconds - server}
