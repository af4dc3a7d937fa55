"""Encoded or raw frames of one clip → the engine's input."""

import numpy as np

from mssts import contract
from mssts.errors import MsstsError
from mssts.segmenters.preprocessing import decode_frames, engine_input
from mssts.serving.backend import answer, check_numpy, manifest_of, model_parameters


class TritonPythonModel:
    def initialize(self, args):
        check_numpy()
        self.manifest = manifest_of(model_parameters(args))

    def execute(self, requests):
        return answer(requests, self.preprocess)

    def preprocess(self, inputs):
        encoded, raw = (inputs.get(spec.name) for spec in (contract.FRAMES_JPEG, contract.FRAMES_RAW))
        if (encoded is None) == (raw is None):
            given = "neither" if raw is None else "both"
            names = f"{contract.FRAMES_JPEG.name} and {contract.FRAMES_RAW.name}"
            raise MsstsError(f"a request holds one of {names}, but this one holds {given}")
        frames_THWC = decode_frames(list(encoded)) if raw is None else raw
        frames_BTHWC, sizes_B2 = engine_input(frames_THWC, self.manifest.input, shape=self.manifest.shape)
        return {
            contract.FRAMES.name: frames_BTHWC,
            contract.SIZES.name: sizes_B2,
            contract.ORIGINAL_SIZE.name: np.array(frames_THWC.shape[1:3], np.int32),
        }
