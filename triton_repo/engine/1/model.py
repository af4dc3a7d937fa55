"""The engine: frames → scores, labels, boxes and mask logits."""

import threading
import time
from pathlib import Path

from mssts import contract
from mssts.manifest import FixedShape
from mssts.runners import load_runner
from mssts.serving.admission import CLIP_SECONDS, Refused, check_age
from mssts.serving.backend import (
    Answering,
    Counter,
    Gauge,
    answer,
    check_numpy,
    manifest_of,
    model_parameters,
    queue_limits,
)


class TritonPythonModel:
    def initialize(self, args):
        check_numpy()
        parameters = model_parameters(args)
        self.limits = queue_limits(parameters)
        self.refused = Counter("mssts_clips_refused_late", "Clips refused because they waited too long for the engine")
        self.clip_seconds = 0.0
        self.took = Gauge(CLIP_SECONDS, "Seconds that the engine took for its last clip")
        path = Path(args["model_repository"], args["model_version"], manifest_of(parameters).artefact)
        # `mssts serve` places a link here; errors shall name the user's file.
        threads = int(parameters["threads"]) if "threads" in parameters else None
        self.runner = load_runner(path.resolve(), threads, parameters.get("runner", "auto"))
        warm = FixedShape.parse("the parameter `warm`", parameters.get("warm"))
        if warm is not None:
            self.runner.warm(warm)

        self.running, self.counting = 0, threading.Lock()
        at_once = self.runner.in_flight
        self.answering = Answering(at_once, self.infer) if at_once > 1 else None

    def execute(self, requests):
        if self.answering is None:
            return answer(requests, self.infer)
        self.answering.start(requests)
        return None

    def infer(self, inputs):
        if contract.ARRIVED.name in inputs:
            self.check_age(int(inputs[contract.ARRIVED.name][0]))
        start = time.monotonic()
        with self.counting:
            self.running += 1
            sharing = self.running
        try:
            output = self.runner.infer(inputs[contract.FRAMES.name], inputs[contract.SIZES.name])
        finally:
            with self.counting:
                self.running -= 1
        # How often one ends: of two at once, each takes twice as long.
        self.clip_seconds = (time.monotonic() - start) / sharing
        self.took.set(self.clip_seconds)
        return {spec.name: getattr(output, spec.name) for spec in contract.ENGINE_OUTPUTS}

    def check_age(self, arrived_ms):
        try:
            check_age(arrived_ms, self.limits, self.clip_seconds)
        except Refused:
            self.refused.increment()
            raise

    def is_ready(self):
        # Newer releases of Triton ask this behind /v2/models/NAME/ready. That it answers is the news.
        return True

    def finalize(self):
        if self.answering is not None:
            self.answering.close()
        self.refused.close()
        self.took.close()
        self.runner.close()
