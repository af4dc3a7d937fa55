"""Self-contained model repositories, for a Triton without `mssts serve`.

Beside the engine, `preprocess` and `postprocess` are models of the Python backend and import this package.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from mssts import contract, kernels
from mssts.artefact import Artefact, Kind
from mssts.errors import MsstsError, first_line
from mssts.files import atomic_folder, reason, sha256
from mssts.manifest import FILE_NAME, FixedShape, Manifest
from mssts.runners import AUTO, runners_of
from mssts.serving import NONE, USUAL
from mssts.serving.admission import QueueLimits
from mssts.serving.model_config import STAGES, WARM_SIZES, NativeEngine, config_pbtxt, native_engine_pbtxt
from mssts.serving.repository import (
    check_is_engine,
    model_parameters,
    usual_shape,
    write_ensemble,
    write_stage,
)

PYTHON, ONNXRUNTIME, TENSORRT = TARGETS = ("python", "onnxruntime", "tensorrt")
_TAKES = {ONNXRUNTIME: Kind.ONNX, TENSORRT: Kind.PLAN}


@dataclass(frozen=True)
class Options:
    """How a repository is to be used.

    Attributes:
        target: one of `TARGETS`: who runs the engine, our models in Python or a backend of Triton's own.
        threads: cores of the processor for the engine, all that there are if None.
        runner: who runs the engine in Python, one of `mssts.runners.RUNNERS`.
        warm: an input shape that the engine runs once before the server is ready, or a name of `mssts.serving`.
        queue: how many clips may wait, and how long. With a backend of Triton's own only their number is limited.
        seen_at: the folder's path on the server, which ONNX Runtime's backend needs to open our library; where it is
            written, if None.
    """

    target: str
    threads: int | None = None
    runner: str = AUTO
    warm: FixedShape | str | None = USUAL
    queue: QueueLimits = field(default_factory=QueueLimits)
    seen_at: Path | None = None

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise MsstsError(f"unknown target {self.target!r}; expected one of: {', '.join(TARGETS)}")
        if self.threads is not None and self.threads < 1:
            raise MsstsError(f"--threads must be at least 1, not {self.threads}")
        if self.target != PYTHON and self.runner != AUTO:
            raise MsstsError(f"--runner is for the target python; {self.target} is a backend of Triton's own")


@dataclass(frozen=True)
class Built:
    """A repository that was written.

    Attributes:
        kernels: which of our kernels the engine runs, in words.
        flags: what its server needs on the command line, beside the folder.
    """

    kernels: str
    flags: tuple[str, ...] = ()


def build_repository(model: Path | str, out: Path | str, options: Options) -> Built:
    """Writes a model repository into the new folder `out`, whole or not at all.

    Nothing in it is a link, so it can be copied to another machine.

    Args:
        model: an engine's file with a manifest beside it, or the folder of both.
        out: absent, or an empty folder.
        options: see there.

    Raises:
        MsstsError: the engine is absent, broken or not one for the target; the plugin library that a plan needs is not
            the one that is here; `out` is there already or cannot be made.
    """
    model, out = Path(model), Path(out)
    check_is_engine(model)
    engine = Artefact.open(model)
    manifest = engine.described()
    if options.target == PYTHON:
        if options.runner not in (AUTO, *runners_of(engine.kind)):
            choices = ", ".join((AUTO, *runners_of(engine.kind)))
            raise MsstsError(f"{engine.path}: {engine.kind.value}; expected a --runner of: {choices}")
    else:
        _check_native(engine, manifest, options)
    parameters = model_parameters(manifest, options.threads, options.runner, options.warm, options.queue)
    native = options.target != PYTHON
    try:
        with atomic_folder(out) as folder:
            for name in STAGES:
                if name != "engine" or not native:
                    write_stage(folder, name, config_pbtxt(name, parameters[name]))
            ensemble = contract.ENSEMBLE
            write_ensemble(folder, config_pbtxt(ensemble, parameters[ensemble], native))
            version = folder / "engine" / "1"
            version.mkdir(parents=True, exist_ok=True)
            for name in (manifest.artefact, *manifest.companions, FILE_NAME):
                shutil.copyfile(engine.path.with_name(name), version / name)
            if not native:
                return Built("those of the package that the server's Python imports")
            return _write_native(folder / "engine", engine, manifest, options, (options.seen_at or out).absolute())
    except OSError as error:
        raise MsstsError(f"{out} cannot be made ({reason(error)}); expected a folder that does not exist yet") from None


def _check_native(engine: Artefact, manifest: Manifest, options: Options) -> None:
    """Checks that a backend of Triton's own can run an engine."""
    target = options.target
    if engine.kind is not _TAKES[target]:
        advice = {
            ONNXRUNTIME: "pass the folder that `mssts export` wrote",
            TENSORRT: f"build one with `mssts build-engine {engine.path.parent} --target tensorrt --out DIR`",
        }
        raise MsstsError(
            f"{engine.path}: {engine.kind.value}, and the target {target} takes {_TAKES[target].value}; "
            f"{advice[target]}"
        )
    if manifest.shape is not None:
        raise MsstsError(
            f"{engine.path}: takes clips of {manifest.shape} alone, and only the target python fills shorter ones up; "
            f"take an engine of free shapes for {target}"
        )
    built_for = _built(manifest).get("target")
    if target == TENSORRT and built_for != TENSORRT:
        raise MsstsError(
            f"{engine.path}: built for {built_for or 'an unknown runtime'}, which Triton has no backend for; build it "
            "with `mssts build-engine --target tensorrt`"
        )
    if target == ONNXRUNTIME and manifest.runner not in (AUTO, "onnxruntime", "onnxruntime-cuda"):
        raise MsstsError(
            f"{engine.path}: made for {manifest.runner}; take the target python, or an engine for ONNX Runtime"
        )


def _built(manifest: Manifest) -> dict[str, object]:
    """What `mssts build-engine` says of a plan."""
    built = manifest.provenance.get("engine")
    return built if isinstance(built, dict) else {}


def _write_native(folder: Path, engine: Artefact, manifest: Manifest, options: Options, seen_at: Path) -> Built:
    """Writes the engine's model for a backend of Triton's own."""
    free = {spec.name: spec.triton_dims for spec in contract.ENGINE_OUTPUTS}
    native = NativeEngine(options.target, manifest.artefact, free, warm=_warm(manifest, options))
    if options.target == TENSORRT:
        dims = {name: (dims[0], manifest.top_k, *dims[2:]) for name, dims in free.items()}
        native, built = replace(native, output_dims=dims), _add_plugins(folder, engine, manifest, seen_at)
    else:
        library = kernels.library("onnxruntime")
        native = replace(
            native,
            output_dims=_onnx_output_dims(engine, library),
            threads=options.threads,
            optimize=manifest.precision != "fp8",  # ONNX Runtime 1.31 optimises such graphs into wrong ones
        )
        if library.path is not None and not library.reason:
            shutil.copyfile(library.path, folder / library.path.name)
            native = replace(native, libraries=(str(seen_at / "engine" / library.path.name),))
            built = Built(native.libraries[0])
        else:
            built = Built(f"none, the function bodies of the file are run: {library.reason}")
    (folder / "config.pbtxt").write_text(native_engine_pbtxt(native), encoding="utf-8")
    if native.warm is not None:
        shape = native.warm
        (folder / "warmup").mkdir()
        sizes_B2 = np.tile(np.array([shape.height, shape.width], contract.SIZES.numpy_dtype), (shape.clips, 1))
        (folder / "warmup" / WARM_SIZES).write_bytes(sizes_B2.tobytes())
    return built


def _warm(manifest: Manifest, options: Options) -> FixedShape | None:
    """The shape that the engine runs first."""
    if isinstance(options.warm, FixedShape):
        return options.warm
    if options.warm == NONE:
        return None
    profile = _built(manifest).get("profile")
    # The shape that a plan was tuned for.
    return FixedShape.parse("opt", profile["opt"]) if isinstance(profile, dict) else usual_shape(manifest)


def _onnx_output_dims(engine: Artefact, library: kernels.Library) -> dict[str, tuple[int, ...]]:
    """The shapes of an ONNX file's outputs as ONNX Runtime knows them.

    Its backend compares the configuration with these.
    """
    import onnxruntime

    from mssts.runners.onnx_runtime import session_options

    settings = session_options(threads=1)
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        if library.path is not None and not library.reason:
            settings.register_custom_ops_library(str(library.path))
        session = onnxruntime.InferenceSession(str(engine.path), settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        raise MsstsError(
            f"{engine.path}: ONNX Runtime cannot load it ({first_line(error)}); take the target python"
        ) from None
    return {
        tensor.name: tuple(size if isinstance(size, int) else -1 for size in tensor.shape)
        for tensor in session.get_outputs()
    }


def _add_plugins(folder: Path, engine: Artefact, manifest: Manifest, seen_at: Path) -> Built:
    """Copies the plugin library that a plan was built with, if it was built with one."""
    wanted = _built(manifest).get("plugin_sha256")
    if wanted is None:
        return Built("none, the plan was built without plugins")
    library = kernels.library("tensorrt")
    if library.path is None or library.reason:
        raise MsstsError(f"{engine.path}: the plugin library that the plan needs is missing: {library.reason}")
    if sha256(library.path) != wanted:
        raise MsstsError(
            f"{engine.path}: built with another plugin library than {library.path}; build the plan again with this one"
        )
    shutil.copyfile(library.path, folder / library.path.name)
    path = seen_at / "engine" / library.path.name
    return Built(str(path), (f"--backend-config=tensorrt,plugins={path}",))
