"""Bulk prediction from end to end: list, drive, merge."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mssts.artefact import Artefact
from mssts.bulk.driver import Driver, WorkerRecord
from mssts.bulk.options import BulkOptions
from mssts.bulk.parts import Parts
from mssts.bulk.report import BulkReport, FailedVideo, LeftOut
from mssts.bulk.worker import Job, Started
from mssts.errors import MsstsError
from mssts.files import read_json, write_json
from mssts.media.orientation import Exif
from mssts.media.sources import SourceList, VideoItem, list_source
from mssts.prediction.predictor import ARCHIVE, PredictOptions
from mssts.prediction.results import REPORT, RESULTS, write_archive, write_submission_lines
from mssts.provenance import provenance


def predict_many(
    source: Path | str,
    model: Path | str,
    out: Path | str,
    address: str,
    options: PredictOptions,
    bulk: BulkOptions,
    *,
    runner: str = "auto",
    as_released: bool = False,
    exif: Exif | None = None,
    progress: bool = True,
) -> BulkReport:
    """Segments and tracks every video of a source on the machines of a Ray cluster.

    A video is predicted whole by one worker, as `predict_video` does it, so the results are those of one process with
    as many threads. A video that fails is reported and costs the others nothing. Writes what `predict` writes;
    `results.json` holds the videos that did not fail.

    Args:
        source: what `open_source` opens, on a disk that all machines see.
        model: an artefact or a checkpoint, likewise.
        out: the output folder, likewise.
        address: `local`, `auto` or HOST:PORT, see `mssts.bulk.ray_cluster.connected`.
        options: of each video. `shard` is not used.
        bulk: of the workers.
        runner: what runs the engine, one of `mssts.runners.RUNNERS`.
        as_released: as in `mssts.load`.
        exif: as in `open_source`.
        progress: show a progress bar if stderr is a terminal.

    Raises:
        MsstsError: the source or the engine is wrong, no machine can work, or `out` cannot be written. Videos that are
            done stay done for `bulk.resume`.
    """
    begun = time.perf_counter()
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise MsstsError(f"{out}: not a folder; name one to write the results to")
    artefact = Artefact.open(model)
    listed = list_source(Path(source).absolute(), exif)
    items = listed.items[: options.max_videos]
    run = _run(items, artefact, runner, as_released, options, exif)
    parts = Parts(out.absolute())
    if bulk.resume and not parts.folder.exists() and (report := _complete(out, run)) is not None:
        return report
    done = parts.begin(run, bulk.resume)
    todo = [index for index in range(len(items)) if index not in done]
    job = Job(
        model=str(Path(model).absolute()),
        model_sha256=artefact.sha256,
        runner=runner,
        threads=bulk.threads,
        as_released=as_released,
        options=options,
        source=str(source),
        categories=listed.categories,
        out=str(out.absolute()),
        run=run,
    )
    driver = _drive(items, todo, job, address, bulk, parts, progress) if todo else None
    report = _merge(listed, items, driver, parts, out, run, begun, set(todo), options.archive)
    if not report.failed:
        parts.remove()
    return report


def _run(
    items: tuple[VideoItem, ...],
    artefact: Artefact,
    runner: str,
    as_released: bool,
    options: PredictOptions,
    exif: Exif | None,
) -> dict[str, Any]:
    """All that the results depend on.

    Folders are not part of it: they may be mounted elsewhere when a run goes on.
    """
    digest = hashlib.sha256()
    for item in items:
        names = item.dataset.videos[0].file_names if item.dataset is not None else (item.path.name,)
        digest.update(repr((item.id, item.name, names)).encode())
    return {
        "videos": digest.hexdigest(),
        "model": artefact.sha256,
        "runner": runner,
        "transfer": options.transfer,
        "whole video": options.whole_video,
        "as released": as_released,
        "exif": exif,
    }


def _drive(
    items: tuple[VideoItem, ...],
    todo: list[int],
    job: Job,
    address: str,
    bulk: BulkOptions,
    parts: Parts,
    progress: bool,
) -> Driver:
    from mssts.bulk.ray_cluster import connected

    described = bool(parts.description())
    with (
        connected(address, bulk, job) as cluster,
        tqdm(
            total=len(items),
            initial=len(items) - len(todo),
            unit="video",
            desc="predict",
            disable=None if progress else True,
        ) as bar,
    ):
        start = time.perf_counter()
        frames = failed = 0

        def on_start(started: Started) -> None:
            nonlocal described
            if not described:
                parts.describe({"engine": started.engine, "categories": started.categories, "notes": started.notes})
                described = True

        def on_video(count: int | None) -> None:
            nonlocal frames, failed
            frames, failed = frames + (count or 0), failed + (count is None)
            rate = frames / (time.perf_counter() - start)
            bar.set_postfix_str(f"{rate:.1f} frames/s, {failed} failed", refresh=False)
            bar.update()

        driver = Driver(cluster, items, todo, bulk, on_start, on_video)
        driver.run()
    return driver


def _merge(
    listed: SourceList,
    items: tuple[VideoItem, ...],
    driver: Driver | None,
    parts: Parts,
    out: Path,
    run: dict[str, Any],
    begun: float,
    todo: set[int],
    archive: bool,
) -> BulkReport:
    """Writes `results.json` in the order of the source, and the report."""
    failures = driver.failures if driver else {}
    heads: list[dict[str, Any]] = []
    stage_seconds: Counter[str] = Counter()
    here = 0

    def lines() -> Iterator[str]:
        nonlocal here
        for index in range(len(items)):
            if index in failures:
                continue
            head, entries = parts.read(index)
            heads.append(head["video"])
            stage_seconds.update(head["stage_seconds"])
            here += head["video"]["frames"] * (index in todo)
            yield from entries

    write_submission_lines(out / RESULTS, lines())
    if archive:
        write_archive(out / ARCHIVE, out / RESULTS)
    seconds = time.perf_counter() - begun
    described = parts.description()
    report = BulkReport(
        source=str(listed.path),
        run=run,
        engine=described.get("engine", {}),
        frames=sum(video["frames"] for video in heads),
        clips=sum(video["clips"] for video in heads),
        tracks=sum(video["tracks"] for video in heads),
        seconds=seconds,
        frames_per_second=here / seconds,
        stage_seconds=dict(stage_seconds),
        videos=heads,
        failed=[
            FailedVideo(items[index].id, items[index].name, str(items[index].path), failure.reason, failure.attempts)
            for index, failure in sorted(failures.items())
        ],
        workers=driver.records if driver else [],
        retries=driver.retries if driver else 0,
        left_out=[LeftOut(host, why) for host, why in driver.left_out.values()] if driver else [],
        categories=described.get("categories", []),
        notes=described.get("notes", []),
    )
    write_json(out / REPORT, {**report.to_json(), **provenance()})
    return report


def _complete(out: Path, run: dict[str, Any]) -> BulkReport | None:
    """The report of a run that is done, None if it is not."""
    path = out / REPORT
    if not path.is_file() or not (out / RESULTS).is_file():
        return None
    value = read_json(path)
    if not isinstance(value, dict) or value.get("run") != run or value.get("failed"):
        return None
    known = {key: value[key] for key in BulkReport.__dataclass_fields__}
    known["workers"] = [WorkerRecord(**worker) for worker in value["workers"]]
    known["left_out"] = [LeftOut(**machine) for machine in value["left_out"]]
    return BulkReport(**known)
