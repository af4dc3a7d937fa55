"""Report on a bulk prediction."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from mssts.bulk.driver import WorkerRecord

_SHOWN = 10  # failed videos in what is printed


@dataclass(frozen=True)
class FailedVideo:
    """A video that has no result.

    Attributes:
        id: the video's.
        name: the video's.
        path: its file or folder; of a data set, the JSON.
        reason: what is wrong.
        attempts: how often it was tried.
    """

    id: int
    name: str
    path: str
    reason: str
    attempts: int


@dataclass(frozen=True)
class LeftOut:
    """A machine on which no worker could work, and why."""

    host: str
    reason: str


@dataclass(frozen=True)
class BulkReport:
    """Report on a bulk prediction.

    Attributes:
        source: the path that was read.
        run: all that the results depend on, as `Parts.begin` compares it.
        engine: what ran on the first worker, as it describes itself.
        frames: of all videos with a result.
        clips: the windows they were cut into.
        tracks: in the results.
        seconds: that this run took, the start of the workers included.
        frames_per_second: of this run, which may have resumed another.
        stage_seconds: as in `PredictReport`, added over all workers.
        videos: one report a video with a result, as in `PredictReport`.
        failed: videos without one.
        workers: what each has done in this run.
        retries: how often a video was tried again.
        left_out: machines on which no worker could work.
        categories: the classes of the results.
        notes: for which classes results can hold nothing, a line each.
        shard: (0, 1): the results are whole, as those of `mssts predict` without shards.
    """

    source: str
    run: dict[str, Any]
    engine: dict[str, Any]
    frames: int
    clips: int
    tracks: int
    seconds: float
    frames_per_second: float
    stage_seconds: dict[str, float]
    videos: list[dict[str, Any]]
    failed: list[FailedVideo]
    workers: list[WorkerRecord]
    retries: int
    left_out: list[LeftOut]
    categories: list[dict[str, Any]]
    notes: list[str]
    shard: tuple[int, int] = field(default=(0, 1))

    def to_json(self) -> dict[str, Any]:
        """A JSON value."""
        lists: dict[str, list[Any]] = {"failed": self.failed, "workers": self.workers, "left_out": self.left_out}
        written = {name: [asdict(entry) for entry in entries] for name, entries in lists.items()}
        return {**vars(self), **written}

    def warnings(self) -> list[str]:
        """What a user should know, a line each."""
        lines = [f"warning: {note}" for note in self.notes]
        lines += [f"warning: {video['name']}: {note}" for video in self.videos for note in video["notes"]]
        lines += [f"warning: no worker on {machine.host}: {machine.reason}" for machine in self.left_out]
        lines += [f"failed: {video.name}: {video.reason}" for video in self.failed[:_SHOWN]]
        if len(self.failed) > _SHOWN:
            lines.append(f"failed: … {len(self.failed) - _SHOWN} more videos, which report.json names")
        return lines
