"""The engine: frames → scores, labels, boxes and mask logits."""

from pathlib import Path

from mssts import contract
from mssts.manifest import FixedShape
from mssts.runners import load_runner
from mssts.serving.backend import answer, check_numpy, manifest_of, model_parameters


class TritonPythonModel:
    def initialize(self, args):
        check_numpy()
        parameters = model_parameters(args)
        path = Path(args["model_repository"], args["model_version"], manifest_of(parameters).artefact)
        # `mssts serve` places a link here; errors shall name the user's file.
        threads = int(parameters["threads"]) if "threads" in parameters else None
        self.runner = load_runner(path.resolve(), threads, parameters.get("runner", "auto"))
        warm = FixedShape.parse("the parameter `warm`", parameters.get("warm"))
        if warm is not None:
            self.runner.warm(warm)

    def execute(self, requests):
        return answer(requests, self.infer)

    def infer(self, inputs):
        output = self.runner.infer(inputs[contract.FRAMES.name], inputs[contract.SIZES.name])
        return {spec.name: getattr(output, spec.name) for spec in contract.ENGINE_OUTPUTS}

    def finalize(self):
        self.runner.close()
