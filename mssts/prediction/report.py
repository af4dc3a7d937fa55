"""Reports on predictions: what was done and how long it took."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from mssts.manifest import Category
from mssts.prediction.tracking import Track


@dataclass(frozen=True)
class VideoReport:
    """Report on one video.

    Attributes:
        id: the video's.
        name: the video's.
        frames: that were read.
        clips: the windows they were cut into.
        tracks: in the results.
        overlay: file name in the output folder, None without pictures.
        contact_sheet: likewise.
        fps: frames a second on average, None where the source does not tell.
        variable_frame_rate: whether intervals differ.
        times: of each frame in seconds from the first, where they do; else None.
        notes: what is doubtful, a line each: frames that are missing or damaged, other films in the file.
    """

    id: int
    name: str
    frames: int
    clips: int
    tracks: int
    overlay: str | None
    contact_sheet: str | None
    fps: float | None = None
    variable_frame_rate: bool = False
    times: tuple[float, ...] | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class VideoResult:
    """Result of one video.

    Attributes:
        entries: of the submission.
        report: on the video.
        stage_seconds: as in `PredictReport`.
        tracks: that the entries are of.
    """

    entries: list[dict[str, Any]]
    report: VideoReport
    stage_seconds: dict[str, float]
    tracks: tuple[Track, ...] = ()


@dataclass(frozen=True)
class PredictReport:
    """Report on a prediction: what was done and how long it took.

    Attributes:
        source: the path that was read.
        engine: what ran, as it describes itself.
        frames: of all videos.
        clips: the windows they were cut into, which is how often the engine ran.
        seconds: from the first frame read to the last track linked, without the drawing of pictures.
        stage_seconds: where they went: `read` (and encoding for transfer, if asked for), `decode`, `engine`,
            `postprocess`, `overhead` (of a server: queues, and copies from model to model), `transfer` (what a request
            took beyond its time in the server: network and serialisation), `link`; and `render`, which comes on top.
            They overlap where windows are in flight. A server's count what it did for others meanwhile.
        videos: one report a video.
        shard: as in `PredictOptions`.
        categories: the classes of the results, in the ids that were written.
        notes: for which classes results can hold nothing, a line each.
    """

    source: str
    engine: dict[str, Any]
    frames: int
    clips: int
    seconds: float
    stage_seconds: dict[str, float]
    videos: tuple[VideoReport, ...]
    shard: tuple[int, int]
    categories: tuple[Category, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def frames_per_second(self) -> float:
        """Frames of video a second, from end to end."""
        return self.frames / self.seconds

    @property
    def clips_per_second(self) -> float:
        """Clips a second, from end to end."""
        return self.clips / self.seconds

    def warnings(self) -> list[str]:
        """All notes, a line each."""
        notes = [f"warning: {note}" for note in self.notes]
        return notes + [f"warning: {video.name}: {note}" for video in self.videos for note in video.notes]

    def to_json(self) -> dict[str, Any]:
        """A JSON value, with the rates."""
        rates = {"frames_per_second": self.frames_per_second, "clips_per_second": self.clips_per_second}
        return {**asdict(self), **rates}
