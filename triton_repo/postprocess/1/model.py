"""The engine's output → scores, labels, boxes and masks of the sent frames' size.

Masks are run lengths.
"""

import numpy as np

from mssts import contract
from mssts.runners.base import EngineOutput
from mssts.segmenters.postprocessing import to_instances
from mssts.serving.backend import answer, check_numpy


class TritonPythonModel:
    def initialize(self, args):
        check_numpy()

    def execute(self, requests):
        return answer(requests, self.postprocess)

    def is_ready(self):
        # Newer releases of Triton ask this behind /v2/models/NAME/ready. That it answers is the news.
        return True

    def postprocess(self, inputs):
        threshold = inputs.get(contract.SCORE_THRESHOLD.name)
        height, width = inputs[contract.ORIGINAL_SIZE.name]
        found = to_instances(
            EngineOutput(**{spec.name: inputs[spec.name] for spec in contract.ENGINE_OUTPUTS}),
            inputs[contract.SIZES.name],
            (int(height), int(width)),
            score_threshold=0.0 if threshold is None else float(threshold[0]),
        )
        rles_NT = np.empty(found.boxes.shape[:2], object)
        for n, rles in enumerate(found.rles):
            rles_NT[n] = [rle or b"" for rle in rles]
        return {
            contract.RESULT_SCORES.name: found.scores,
            contract.RESULT_LABELS.name: found.labels,
            contract.RESULT_BOXES.name: found.boxes,
            contract.RESULT_RLES.name: rles_NT,
            contract.RESULT_SIZE.name: np.array(found.size, np.int32),
        }
