"""A worker: one segmenter, which predicts one whole video after another."""

from __future__ import annotations

import os
import platform
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mssts.artefact import Artefact
from mssts.bulk.parts import Parts
from mssts.categories import CategoryMap, map_by_name, warnings_of
from mssts.errors import MsstsError
from mssts.files import DISK_FULL, is_disk_full
from mssts.manifest import Category
from mssts.media.sources import VideoItem
from mssts.prediction.overlay import Overlay
from mssts.prediction.predictor import PredictOptions, predict_video
from mssts.segmenters import load
from mssts.segmenters.base import Segmenter


@dataclass(frozen=True)
class Job:
    """What every worker does, whichever video it is given.

    Attributes:
        model: an artefact or a checkpoint, seen from every machine.
        model_sha256: of its file, as the driver sees it.
        runner: one of `mssts.runners.RUNNERS`.
        threads: cores of the engine.
        as_released: as in `mssts.load`.
        options: of the prediction.
        source: the path of the videos, for messages.
        categories: of the source.
        out: the output folder.
        run: as in `Parts.begin`.
    """

    model: str
    model_sha256: str
    runner: str
    threads: int
    as_released: bool
    options: PredictOptions
    source: str
    categories: tuple[Category, ...]
    out: str
    run: dict[str, Any]


@dataclass(frozen=True)
class Started:
    """A worker's first answer.

    Attributes:
        host: its machine.
        pid: its process.
        seconds: that it took to load the engine.
        error: why it cannot work, None if it can. What follows is of one that can.
        engine: what runs, as it describes itself.
        categories: the classes of the results.
        notes: for which classes results can hold nothing, a line each.
    """

    host: str
    pid: int
    seconds: float
    error: str | None = None
    engine: dict[str, Any] | None = None
    categories: tuple[dict[str, Any], ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """How it went with a video.

    Attributes:
        seconds: that it took.
        frames: of the video.
        error: what is wrong with the video, None if its result is written.
        unwritable: why its result cannot be written; no other could be either.
    """

    seconds: float
    frames: int = 0
    error: str | None = None
    unwritable: str | None = None


class Worker:
    """A worker. `start` comes first."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._parts = Parts(job.out)
        self._segmenter: Segmenter | None = None
        self._mapped: CategoryMap | None = None

    def start(self) -> Started:
        """Loads the engine."""
        begun = time.perf_counter()
        host, pid = platform.node(), os.getpid()
        try:
            self._parts.check(self._job.run)
            if Artefact.find(self._job.model).sha256 != self._job.model_sha256:
                raise MsstsError(f"{self._job.model}: not the same file as on the driver's machine; copy it there")
            segmenter = load(
                self._job.model,
                threads=self._job.threads,
                runner=self._job.runner,
                as_released=self._job.as_released,
            )
            mapped = map_by_name(segmenter.manifest.categories, self._job.categories, self._job.source)
        except MsstsError as error:
            return Started(host, pid, time.perf_counter() - begun, str(error))
        self._segmenter, self._mapped = segmenter, mapped
        return Started(
            host,
            pid,
            time.perf_counter() - begun,
            engine=segmenter.describe(),
            categories=tuple(asdict(category) for category in mapped.by_label if category is not None),
            notes=tuple(warnings_of(mapped, self._job.source)),
        )

    def predict(self, index: int, item: VideoItem) -> Outcome:
        """Predicts the video at `index` of the source and writes its part."""
        assert self._segmenter is not None and self._mapped is not None
        options = self._job.options
        begun = time.perf_counter()

        def seconds() -> float:
            return time.perf_counter() - begun

        with ExitStack() as stack:
            try:
                video = item.open()
                overlay = None
                if options.pictures is None or index < options.pictures:
                    folder = stack.enter_context(tempfile.TemporaryDirectory(dir=self._parts.folder))
                    overlay = Overlay(Path(folder), video, self._segmenter.manifest.categories, options.score_threshold)
                result = predict_video(video, self._segmenter, self._mapped, options, overlay)
            except Exception as error:
                if DISK_FULL in str(error) or is_disk_full(error, self._parts.folder):  # by pictures
                    return Outcome(seconds(), unwritable=f"{self._job.out}: {DISK_FULL}")
                if isinstance(error, MsstsError):
                    return Outcome(seconds(), error=str(error))
                raise
            try:
                for picture in (overlay.video_path, overlay.sheet_path) if overlay else ():
                    picture.replace(Path(self._job.out) / picture.name)
                self._parts.write(index, result)
            except (MsstsError, OSError) as error:
                return Outcome(seconds(), unwritable=str(error))
        return Outcome(seconds(), frames=result.report.frames)
