"""The model repository of a server: `triton_repo/` with one engine in it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mssts
from mssts import contract
from mssts.artefact import Artefact, is_checkpoint
from mssts.errors import MsstsError
from mssts.manifest import FixedShape, Manifest
from mssts.runners import check_runner
from mssts.segmenters.preprocessing import input_size
from mssts.serving import NONE, USUAL
from mssts.serving.admission import QueueLimits
from mssts.serving.installation import make_temporary_folder
from mssts.serving.model_config import STAGES, config_pbtxt

_SOURCE = Path(mssts.__file__).parent / "triton_repo"


def check_is_engine(model: Path) -> None:
    """Raises MsstsError for a checkpoint."""
    if is_checkpoint(model):
        raise MsstsError(
            f"{model}: a checkpoint, and a server takes an exported engine; run `mssts export {model} --out DIR`, "
            "then serve DIR"
        )


def usual_shape(manifest: Manifest) -> FixedShape:
    """The engine's one input shape, else a clip of its length at 16:9."""
    if manifest.shape is not None:
        return manifest.shape
    height, width = input_size(720, 1280, manifest.input)
    return FixedShape(1, manifest.clip_frames, height, width)


def write_model_repository(
    destination: Path,
    model: Path | str,
    threads: int | None = None,
    runner: str = "auto",
    warm: FixedShape | str | None = None,
    queue: QueueLimits | None = None,
) -> None:
    """Fills `destination` with `triton_repo/`, the engine (a link) and its manifest.

    The manifest travels in the models' configurations, the ensemble's included, so that a client asks the server how
    the engine wants to be used.

    Args:
        destination: the folder.
        model: an engine's file with a manifest beside it, or the folder of both.
        threads: cores the engine uses; all the server may use if None.
        runner: who runs the engine, one of `mssts.runners.RUNNERS`.
        warm: an input shape that the engine runs once before the server is ready; `mssts.serving.USUAL` for
            `usual_shape`.
        queue: how many clips may wait, and how long, `QueueLimits()` if None.

    Raises:
        MsstsError: the engine or its manifest is missing or broken; there is no such runner.
    """
    check_runner(runner)
    check_is_engine(Path(model))
    engine = Artefact.find(model)  # its hashes are left to the server, which reads the file anyway
    manifest = engine.described()
    parameters = model_parameters(manifest, threads, runner, warm, queue)
    for name in STAGES:
        write_stage(destination, name, config_pbtxt(name, parameters[name]))
    write_ensemble(destination, config_pbtxt(contract.ENSEMBLE, parameters[contract.ENSEMBLE]))
    (destination / "engine" / "1" / manifest.artefact).symlink_to(engine.path.resolve())


def model_parameters(
    manifest: Manifest,
    threads: int | None,
    runner: str,
    warm: FixedShape | str | None,
    queue: QueueLimits | None,
) -> dict[str, dict[str, str]]:
    """The parameters of each model's configuration.

    The arguments are those of `write_model_repository`.
    """
    queue = queue or QueueLimits()
    waiting = {"max_queue": str(queue.clips), "max_queue_seconds": str(queue.seconds)}
    parameters = {"manifest": json.dumps(manifest.to_json(), separators=(",", ":"))}
    engine_parameters = {**parameters, **waiting, "runner": runner}
    if threads is not None:
        engine_parameters["threads"] = str(threads)
    if warm == USUAL:
        warm = usual_shape(manifest)
    if warm not in (None, NONE):
        engine_parameters["warm"] = str(warm)
    return {
        "preprocess": {**parameters, **waiting},
        "engine": engine_parameters,
        "postprocess": {},
        contract.ENSEMBLE: parameters,
    }


def write_stage(destination: Path, name: str, config: str) -> None:
    """Writes a model of the Python backend."""
    if not _SOURCE.is_dir():
        raise MsstsError(f"{_SOURCE}: missing; install the project from its checkout with `pip install -e .`")
    (destination / name / "1").mkdir(parents=True)
    shutil.copyfile(_SOURCE / name / "1" / "model.py", destination / name / "1" / "model.py")
    (destination / name / "config.pbtxt").write_text(config, encoding="utf-8")


def write_ensemble(destination: Path, config: str) -> None:
    """Writes the ensemble."""
    # It has nothing in its version folder, but Triton wants one, and git and object stores keep no empty folder.
    (destination / contract.ENSEMBLE / "1").mkdir(parents=True)
    (destination / contract.ENSEMBLE / "1" / ".keep").touch()
    (destination / contract.ENSEMBLE / "config.pbtxt").write_text(config, encoding="utf-8")


@contextmanager
def model_repository(
    model: Path | str,
    threads: int | None = None,
    runner: str = "auto",
    warm: FixedShape | str | None = None,
    queue: QueueLimits | None = None,
) -> Iterator[Path]:
    """A model repository in a temporary folder, for as long as the block runs.

    See `write_model_repository`.
    """
    folder = make_temporary_folder("mssts-models-")
    try:
        write_model_repository(folder, model, threads, runner, warm, queue)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
