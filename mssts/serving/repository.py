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


def _find_engine(model: Path) -> Artefact:
    """The engine, whose hashes are left to the server: it reads the file anyway."""
    if is_checkpoint(model):
        raise MsstsError(
            f"{model}: a checkpoint, and a server takes an exported engine; run `mssts export {model} --out DIR`, "
            "then serve DIR"
        )
    return Artefact.find(model)


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
    engine = _find_engine(Path(model))
    manifest = engine.described()
    if not _SOURCE.is_dir():
        raise MsstsError(f"{_SOURCE}: missing; install the project from its checkout with `pip install -e .`")
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
    for name in STAGES:
        (destination / name / "1").mkdir(parents=True)
        shutil.copyfile(_SOURCE / name / "1" / "model.py", destination / name / "1" / "model.py")
    # An ensemble has nothing in its version folder, but Triton wants one, and git keeps no empty folder.
    (destination / contract.ENSEMBLE / "1").mkdir(parents=True)
    (destination / "engine" / "1" / manifest.artefact).symlink_to(engine.path.resolve())
    for name, of_model in (
        ("preprocess", {**parameters, **waiting}),
        ("engine", engine_parameters),
        ("postprocess", {}),
        (contract.ENSEMBLE, parameters),
    ):
        (destination / name / "config.pbtxt").write_text(config_pbtxt(name, of_model), encoding="utf-8")


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
