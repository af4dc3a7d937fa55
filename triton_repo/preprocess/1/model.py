"""Encoded or raw frames of one clip → the engine's input."""

import numpy as np

from mssts import contract
from mssts.errors import MsstsError
from mssts.segmenters.preprocessing import decode_frames, engine_input, resized_input
from mssts.serving.admission import Admission, Refused, stamp
from mssts.serving.backend import (
    Counter,
    answer,
    check_numpy,
    log_warning,
    manifest_of,
    model_parameters,
    queue_limits,
)


class TritonPythonModel:
    def initialize(self, args):
        check_numpy()
        parameters = model_parameters(args)
        self.manifest = manifest_of(parameters)
        self.admission = Admission(queue_limits(parameters))
        self.refused = Counter("mssts_clips_refused_full", "Clips refused because as many wait for the engine as may")
        self.warned = False

    def execute(self, requests):
        return answer(requests, self.preprocess)

    def is_ready(self):
        # Newer releases of Triton ask this behind /v2/models/NAME/ready. That it answers is the news.
        return True

    def preprocess(self, inputs):
        encoded, raw = (inputs.get(spec.name) for spec in (contract.FRAMES_JPEG, contract.FRAMES_RAW))
        if (encoded is None) == (raw is None):
            given = "neither" if raw is None else "both"
            names = f"{contract.FRAMES_JPEG.name} and {contract.FRAMES_RAW.name}"
            raise MsstsError(f"a request holds one of {names}, but this one holds {given}")
        self.admit()
        frames_THWC = decode_frames(list(encoded)) if raw is None else raw
        rule, shape = self.manifest.input, self.manifest.shape
        if contract.FRAME_SIZE.name in inputs:
            height, width = map(int, inputs[contract.FRAME_SIZE.name])
            frames_BTHWC, sizes_B2 = resized_input(frames_THWC, (height, width), rule, shape=shape)
        else:
            height, width = frames_THWC.shape[1:3]
            frames_BTHWC, sizes_B2 = engine_input(frames_THWC, rule, shape=shape)
        return {
            contract.FRAMES.name: frames_BTHWC,
            contract.SIZES.name: sizes_B2,
            contract.ORIGINAL_SIZE.name: np.array([height, width], np.int32),
            contract.ARRIVED.name: np.array([stamp()], np.int32),
        }

    def admit(self):
        try:
            unknown = self.admission.check()
        except Refused:
            self.refused.increment()
            raise
        if unknown and not self.warned:
            self.warned = True
            log_warning(f"the queue of the engine is not limited: {unknown}")

    def finalize(self):
        self.refused.close()
