"""The `config.pbtxt` files of `triton_repo/`, written from `mssts.contract`.

`python -m mssts.serving.model_config triton_repo` writes them again after a change of the contract; a test compares.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mssts import contract
from mssts.contract import TensorSpec
from mssts.errors import MsstsError
from mssts.files import write_text


@dataclass(frozen=True)
class _Stage:
    """A model of the Python backend, with the names of its tensors in the ensemble."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    input_names: Mapping[str, str]
    output_names: Mapping[str, str]


# The engine's outputs and the results share names (scores, labels, boxes) but not meanings, so inside the ensemble the
# engine's have a prefix.
_FROM_ENGINE = {spec.name: f"engine_{spec.name}" for spec in contract.ENGINE_OUTPUTS}

_STAGES = {
    "preprocess": _Stage(
        inputs=(contract.FRAMES_JPEG, contract.FRAMES_RAW, contract.FRAME_SIZE),
        outputs=(*contract.ENGINE_INPUTS, contract.ORIGINAL_SIZE, contract.ARRIVED),
        input_names={},
        output_names={},
    ),
    "engine": _Stage(
        inputs=(*contract.ENGINE_INPUTS, contract.ARRIVED),
        outputs=contract.ENGINE_OUTPUTS,
        input_names={},
        output_names=_FROM_ENGINE,
    ),
    "postprocess": _Stage(
        inputs=(*contract.ENGINE_OUTPUTS, contract.SIZES, contract.ORIGINAL_SIZE, contract.SCORE_THRESHOLD),
        outputs=contract.RESULT_OUTPUTS,
        input_names=_FROM_ENGINE,
        output_names={},
    ),
}

STAGES = tuple(_STAGES)
MODELS = (*STAGES, contract.ENSEMBLE)


def config_pbtxt(model_name: str, parameters: Mapping[str, str] | None = None) -> str:
    """The text of a model's `config.pbtxt`.

    `parameters` become the model's string parameters: what `mssts serve` adds for one engine (its manifest).

    Raises:
        MsstsError: there is no such model in the repository.
    """
    if model_name == contract.ENSEMBLE:
        body = _tensors("input", contract.REQUEST_INPUTS) + _tensors("output", contract.RESULT_OUTPUTS) + _steps()
        head = [f'name: "{model_name}"', 'platform: "ensemble"']
    elif model_name in _STAGES:
        stage = _STAGES[model_name]
        body = _tensors("input", stage.inputs) + _tensors("output", stage.outputs)
        body += ["instance_group [", "  { count: 1 kind: KIND_CPU }", "]"]
        head = [f'name: "{model_name}"', 'backend: "python"']
    else:
        raise MsstsError(f"{model_name}: no such model; the model repository has {', '.join(MODELS)}")
    for key, value in (parameters or {}).items():
        body.append(f'parameters {{ key: "{key}" value {{ string_value: {_quoted(value)} }} }}')
    note = "# Written by mssts/serving/model_config.py from mssts/contract.py; change it there."
    # One request is one clip, so the B of the engine's tensors is an ordinary dimension of size 1.
    return "\n".join([note, *head, "max_batch_size: 0", *body]) + "\n"


def _quoted(text: str) -> str:
    """A string literal of protobuf's text format."""
    for plain, escaped in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n")):
        text = text.replace(plain, escaped)
    return f'"{text}"'


def _tensors(kind: str, specs: Iterable[TensorSpec]) -> list[str]:
    lines = []
    for spec in specs:
        dims = ", ".join(map(str, spec.triton_dims))
        # The type of byte strings is TYPE_STRING here and BYTES everywhere else in Triton.
        dtype = "STRING" if spec.triton_dtype == "BYTES" else spec.triton_dtype
        optional = " optional: true" if spec.optional and kind == "input" else ""
        lines.append(f'  {{ name: "{spec.name}" data_type: TYPE_{dtype} dims: [ {dims} ]{optional} }}')
    return [f"{kind} [", ",\n".join(lines), "]"]


def _steps() -> list[str]:
    steps = []
    for name, stage in _STAGES.items():
        lines = [f'      model_name: "{name}"', "      model_version: -1"]
        for kind, specs, names in (
            ("input_map", stage.inputs, stage.input_names),
            ("output_map", stage.outputs, stage.output_names),
        ):
            for spec in specs:
                inside = names.get(spec.name, spec.name)
                lines.append(f'      {kind} {{ key: "{spec.name}" value: "{inside}" }}')
        steps.append("\n".join(["    {", *lines, "    }"]))
    return ["ensemble_scheduling {", "  step [", ",\n".join(steps), "  ]", "}"]


def write_configs(repository: Path) -> None:
    """Writes the `config.pbtxt` of every model of `triton_repo/`."""
    for model_name in MODELS:
        write_text(repository / model_name / "config.pbtxt", config_pbtxt(model_name))


if __name__ == "__main__":
    write_configs(Path(sys.argv[1]))
