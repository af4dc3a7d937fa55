"""The `config.pbtxt` files of model repositories, written from `mssts.contract`.

`python -m mssts.serving.model_config triton_repo` writes those of `triton_repo/` again after a change of the contract;
a test compares. `mssts repo build` writes those of a repository whose engine runs in a backend of Triton's own.
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
from mssts.manifest import FixedShape


@dataclass(frozen=True)
class _Stage:
    """A step of the ensemble, with the names of its tensors in there."""

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
WARM_SIZES = "sizes"  # the file in the engine's folder `warmup`
_NOTE = "# Written by mssts/serving/model_config.py from mssts/contract.py; change it there."


@dataclass(frozen=True)
class NativeEngine:
    """An engine that a backend of Triton's own runs, without Python.

    Attributes:
        backend: `onnxruntime` or `tensorrt`.
        file: the model's file in its version folder.
        output_dims: the shape of each output by name, −1 for every free size. ONNX Runtime's backend refuses a
            configuration that is vaguer than the file.
        libraries: custom-op libraries for ONNX Runtime, by the paths that the server opens. TensorRT's are named on the
            server's command line.
        threads: cores of the processor for ONNX Runtime, its own choice if None.
        warm: an input shape that the engine runs once before the server is ready.
        optimize: let ONNX Runtime optimise the graph.
    """

    backend: str
    file: str
    output_dims: Mapping[str, tuple[int, ...]]
    libraries: tuple[str, ...] = ()
    threads: int | None = None
    warm: FixedShape | None = None
    optimize: bool = True


def config_pbtxt(model_name: str, parameters: Mapping[str, str] | None = None, native: bool = False) -> str:
    """The text of the `config.pbtxt` of a model, but for an engine without Python.

    Args:
        model_name: one of `MODELS`.
        parameters: the model's string parameters: what belongs to one engine, such as its manifest.
        native: of an ensemble whose engine has the tensors of the ONNX file alone.

    Raises:
        MsstsError: there is no such model in the repository.
    """
    if model_name == contract.ENSEMBLE:
        body = _tensors("input", contract.REQUEST_INPUTS) + _tensors("output", contract.RESULT_OUTPUTS) + _steps(native)
        head = [f'name: "{model_name}"', 'platform: "ensemble"']
    elif model_name in _STAGES:
        stage = _STAGES[model_name]
        body = _tensors("input", stage.inputs) + _tensors("output", stage.outputs)
        body += ["instance_group [", "  { count: 1 kind: KIND_CPU }", "]"]
        head = [f'name: "{model_name}"', 'backend: "python"']
    else:
        raise MsstsError(f"{model_name}: no such model; the model repository has {', '.join(MODELS)}")
    body += [_parameter(key, value) for key, value in (parameters or {}).items()]
    # One request is one clip, so the B of the engine's tensors is an ordinary dimension of size 1.
    return "\n".join([_NOTE, *head, "max_batch_size: 0", *body]) + "\n"


def native_engine_pbtxt(engine: NativeEngine) -> str:
    """The text of the `config.pbtxt` of an engine that a backend of Triton's own runs."""
    head = ['name: "engine"', f'backend: "{engine.backend}"']
    kind = "KIND_AUTO"  # the GPU where there is one
    body = []
    if engine.backend == "tensorrt":
        head.append('platform: "tensorrt_plan"')
        kind = "KIND_GPU"
    else:
        # TF32 has 10 bits of mantissa, which is not what was exported. Level 2 is none, whatever its number says.
        level = [] if engine.optimize else ["  graph { level: 2 }"]
        cuda = '{ name: "cuda" parameters { key: "use_tf32" value: "0" } }'
        body += ["optimization {", *level, f"  execution_accelerators {{ gpu_execution_accelerator [ {cuda} ] }}", "}"]
    body += [f"model_operations {{ op_library_filename: {_quoted(library)} }}" for library in engine.libraries]
    if engine.threads is not None:
        body.append(_parameter("intra_op_thread_count", str(engine.threads)))
    if engine.warm is not None:
        body += _warm_up(engine.warm)
    return (
        "\n".join(
            [
                _NOTE,
                *head,
                f"default_model_filename: {_quoted(engine.file)}",
                "max_batch_size: 0",
                *_tensors("input", contract.ENGINE_INPUTS),
                *_tensors("output", contract.ENGINE_OUTPUTS, engine.output_dims),
                "instance_group [",
                f"  {{ count: 1 kind: {kind} }}",
                "]",
                *body,
            ]
        )
        + "\n"
    )


def _warm_up(shape: FixedShape) -> list[str]:
    frames = f"{shape.clips}, {shape.frames}, {shape.height}, {shape.width}, 3"
    return [
        "model_warmup [",
        '  { name: "usual" batch_size: 1',
        f'    inputs {{ key: "{contract.FRAMES.name}" value {{ data_type: TYPE_UINT8 dims: [ {frames} ] '
        "zero_data: true } }",
        # Zeros would be frames without a pixel.
        f'    inputs {{ key: "{contract.SIZES.name}" value {{ data_type: TYPE_INT32 dims: [ {shape.clips}, 2 ] '
        f'input_data_file: "{WARM_SIZES}" }} }}',
        "  }",
        "]",
    ]


def _parameter(key: str, value: str) -> str:
    return f'parameters {{ key: "{key}" value {{ string_value: {_quoted(value)} }} }}'


def _quoted(text: str) -> str:
    """A string literal of protobuf's text format."""
    for plain, escaped in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n")):
        text = text.replace(plain, escaped)
    return f'"{text}"'


def _tensors(
    kind: str, specs: Iterable[TensorSpec], known_dims: Mapping[str, tuple[int, ...]] | None = None
) -> list[str]:
    lines = []
    for spec in specs:
        dims = ", ".join(map(str, (known_dims or {}).get(spec.name, spec.triton_dims)))
        # The type of byte strings is TYPE_STRING here and BYTES everywhere else in Triton.
        dtype = "STRING" if spec.triton_dtype == "BYTES" else spec.triton_dtype
        optional = " optional: true" if spec.optional and kind == "input" else ""
        lines.append(f'  {{ name: "{spec.name}" data_type: TYPE_{dtype} dims: [ {dims} ]{optional} }}')
    return [f"{kind} [", ",\n".join(lines), "]"]


def _steps(native: bool) -> list[str]:
    # Only an engine in Python takes the time at which a clip arrived.
    left_out = (contract.ARRIVED,) if native else ()
    steps = []
    for name, stage in _STAGES.items():
        lines = [f'      model_name: "{name}"', "      model_version: -1"]
        for kind, specs, names in (
            ("input_map", stage.inputs, stage.input_names),
            ("output_map", stage.outputs, stage.output_names),
        ):
            for spec in (spec for spec in specs if spec not in left_out):
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
