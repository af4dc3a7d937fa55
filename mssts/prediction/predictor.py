"""Prediction of videos: tracks, results and pictures from any source."""

from __future__ import annotations

import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from mssts.categories import CategoryMap, map_by_name, warnings_of
from mssts.errors import MsstsError
from mssts.files import reason, write_json
from mssts.media.sources import VideoSource, open_source
from mssts.media.video import Frame, Video, has_variable_rate
from mssts.prediction.appearance import colour_histograms
from mssts.prediction.clock import StageClock
from mssts.prediction.exports import FORMATS, FormatWriters
from mssts.prediction.overlay import Overlay
from mssts.prediction.report import PredictReport, VideoReport, VideoResult
from mssts.prediction.results import REPORT, RESULTS, submission_entries, write_archive, write_submission
from mssts.prediction.tracking import Linker, LinkOptions
from mssts.prediction.windowing import MIN_SCORE, clip_of, windows
from mssts.provenance import provenance
from mssts.segmenters.base import Segmenter

ARCHIVE = "results.zip"

# The released inference.py gives instances below it no mask. Such an entry matches nothing and ranks last, so leaving
# it out, as we do, changes no figure of the evaluation.
_MIN_SCORE_WHOLE_VIDEO = 0.001
# There the released inference puts no hypotheses together, and ranks them by their own scores.
_WHOLE_VIDEO = LinkOptions(same_object_iou=None, score_prior_frames=0)
_MAX_TRACKS = 100  # a video; the official evaluation looks at no more


@dataclass(frozen=True)
class PredictOptions:
    """Options of a prediction.

    Attributes:
        score_threshold: tracks whose score is below are not drawn; the results hold them all the same.
        max_videos: of a data set, the first so many; all if None.
        shard: (k, n): of those, every n-th from the k-th on, counting from 0, so that n processes share a data set.
        pictures: of how many videos, the first ones, pictures are written; of all if None.
        transfer: what the segmenter is sent. `auto`: the file's own bytes where frames are JPEG or PNG files, else raw
            pixels; `jpeg`: as `auto`, but raw pixels are encoded first (fewer bytes, slightly other pixels); `raw`.
        whole_video: each video is one clip, as in the released `inference.py`; nothing is linked. All its
            frames, and what the model computes of them, are held at once.
        archive: write `results.zip` too, which the benchmark's server takes.
        formats: what is written beside `results.json` (`ytvis`): `mots` (a text file a video, `NAME.txt`, of the tracks
            that are drawn) and `coco` (`coco.json`).
    """

    score_threshold: float = 0.3
    max_videos: int | None = None
    shard: tuple[int, int] = (0, 1)
    pictures: int | None = None
    transfer: Literal["auto", "jpeg", "raw"] = "auto"
    whole_video: bool = False
    archive: bool = False
    formats: tuple[str, ...] = ("ytvis",)

    def __post_init__(self) -> None:
        if not 0 <= self.score_threshold <= 1:
            raise MsstsError(f"the score threshold must be from 0 to 1, not {self.score_threshold}")
        if self.max_videos is not None and self.max_videos < 1:
            raise MsstsError(f"the number of videos must be at least 1, not {self.max_videos}")
        if not 0 <= self.shard[0] < self.shard[1]:
            raise MsstsError(f"the shard must be K/N with K from 0 to N-1, not {self.shard[0]}/{self.shard[1]}")
        if self.pictures is not None and self.pictures < 0:
            raise MsstsError(f"the number of videos with pictures must be at least 0, not {self.pictures}")
        unknown = set(self.formats) - set(FORMATS)
        if unknown:
            raise MsstsError(f"no format {min(unknown)!r}; expected {', '.join(FORMATS)}")


def predict(
    source: VideoSource | Path | str,
    segmenter: Segmenter,
    out: Path | str,
    options: PredictOptions | None = None,
    progress: bool = True,
) -> PredictReport:
    """Segments and tracks every video of a source.

    Each video goes through the segmenter in the windows that its manifest states, whose instances are linked; a video
    no longer than a window is one clip. However long the video, no more frames are held at once than those of the
    windows in flight (`Segmenter.segment_many`) and of the one being cut, unless `options.whole_video` asks for all.

    Writes to the folder `out`: `results.json` (a YouTube-VIS submission; `results.zip` too if `options.archive` says
    so), `report.json`, and for the first `options.pictures` videos an overlay `NAME.mp4` and a contact sheet
    `NAME.png`. All of it appears in the end, or none.

    Args:
        source: what `open_source` opens, or what it made of it.
        segmenter: from `mssts.load`; it stays open.
        out: a folder, made if it is not there.
        options: `PredictOptions()` if None.
        progress: show a progress bar if stderr is a terminal.

    Results are in the categories of a data set, which are matched to the engine's by name.

    Raises:
        MsstsError: no class of the engine is in the data set, a frame cannot be read, a clip was refused (a whole video
            that is more than a server takes is one), or `out` cannot be written.
    """
    options = options or PredictOptions()
    if not isinstance(source, VideoSource):
        source = open_source(source)
    categories = segmenter.manifest.categories
    mapped = map_by_name(categories, source.categories, str(source.path))
    part, parts = options.shard
    videos = source.videos[: options.max_videos][part::parts]
    lengths = [video.length for video in videos if video.length is not None]
    total = sum(lengths) if len(lengths) == len(videos) else None
    entries: list[dict[str, Any]] = []
    reports = []
    seconds_by_stage: Counter[str] = Counter()
    start = time.perf_counter()
    with (
        _staged(Path(out)) as folder,
        tqdm(total=total, unit="frame", desc="predict", disable=None if progress else True) as bar,
        FormatWriters(folder, mapped.by_label, options.formats, options.score_threshold) as writers,
    ):
        for i, video in enumerate(videos):
            overlay = None
            if options.pictures is None or i < options.pictures:
                overlay = Overlay(folder, video, categories, options.score_threshold)
            result = predict_video(video, segmenter, mapped, options, overlay, bar.update)
            entries += result.entries
            writers.add(video, result.report.frames, result.tracks)
            reports.append(result.report)
            seconds_by_stage.update(result.stage_seconds)
        seconds = time.perf_counter() - start - seconds_by_stage["render"]
        report = PredictReport(
            source=str(source.path),
            engine=segmenter.describe(),
            frames=sum(video_report.frames for video_report in reports),
            clips=sum(video_report.clips for video_report in reports),
            seconds=seconds,
            stage_seconds=dict(seconds_by_stage),
            videos=tuple(reports),
            shard=options.shard,
            categories=tuple(category for category in mapped.by_label if category is not None),
            notes=tuple(warnings_of(mapped, str(source.path))),
        )
        write_submission(folder / RESULTS, entries)
        if options.archive:
            write_archive(folder / ARCHIVE, folder / RESULTS)
        write_json(folder / REPORT, {**report.to_json(), **provenance()})
    return report


def predict_video(
    video: Video,
    segmenter: Segmenter,
    mapped: CategoryMap,
    options: PredictOptions,
    overlay: Overlay | None = None,
    progress: Callable[[int], object] = lambda frames: None,
) -> VideoResult:
    """Segments and tracks one video, as `predict` does each of them.

    Args:
        video: opened.
        segmenter: it stays open.
        mapped: its classes in the table of the results.
        options: how.
        overlay: where pictures are drawn, if they are.
        progress: called with the number of frames that were done since the last call.

    Raises:
        MsstsError: a frame cannot be read, or a clip was refused.
    """
    clock = StageClock()
    before = segmenter.stage_seconds()
    linker = Linker(options=_WHOLE_VIDEO if options.whole_video else None)
    clips = covered = 0
    times: list[float | None] = []
    with _opened(overlay, clock):
        waiting: list[Frame] = []  # of the last window, not drawn yet: the next one may change them
        waiting_start = 0
        sent: deque[tuple[int, list[Frame]]] = deque()  # windows whose instances are yet to come
        min_score = _MIN_SCORE_WHOLE_VIDEO if options.whole_video else MIN_SCORE
        results = segmenter.segment_many(_clips(video, segmenter, options, clock, sent), min_score)
        while True:
            with clock.stage("segment"):
                found = next(results, None)
            if found is None:
                break
            start, frames = sent.popleft()
            if overlay is not None:
                _draw(overlay, waiting[: start - waiting_start], waiting_start, linker, clock)
                waiting, waiting_start = frames, start
            with clock.stage("link"):
                colours_ND = None if options.whole_video else colour_histograms(found, frames)  # one window, no links
                linker.add(start, len(frames), found, colours_ND)
            clips += 1
            times += [frame.time for frame in frames[covered - start :]]
            progress(start + len(frames) - covered)
            covered = start + len(frames)
        if overlay is not None:
            _draw(overlay, waiting, waiting_start, linker, clock)
    with clock.stage("link"):
        # Tracks of classes that the data set lacks must not take the places of others.
        tracks = [track for track in linker.tracks() if track.in_categories(mapped.by_label)][:_MAX_TRACKS]
    known = [round(time, 6) for time in times if time is not None]
    varies = len(known) == len(times) and has_variable_rate(known)
    report = VideoReport(
        id=video.id,
        name=video.name,
        frames=covered,
        clips=clips,
        tracks=len(tracks),
        overlay=overlay.video_path.name if overlay else None,
        contact_sheet=overlay.sheet_path.name if overlay else None,
        fps=video.fps,
        variable_frame_rate=varies,
        times=tuple(known) if varies else None,
        notes=tuple(video.notes),
    )
    return VideoResult(
        entries=submission_entries(video.id, video.size, tracks, mapped.by_label)[:_MAX_TRACKS],
        report=report,
        stage_seconds=clock.split(before, segmenter.stage_seconds()),
        tracks=tuple(tracks),
    )


def _clips(
    video: Video,
    segmenter: Segmenter,
    options: PredictOptions,
    clock: StageClock,
    sent: deque[tuple[int, list[Frame]]],
) -> Iterator[np.ndarray | list[bytes]]:
    """The windows of a video as they are sent, each appended to `sent` as well."""
    for start, frames in _windows(video, segmenter, options.whole_video, clock):
        sent.append((start, frames))
        with clock.stage("read"):
            clip = clip_of(frames, options.transfer)
        yield clip


def _windows(
    video: Video, segmenter: Segmenter, whole_video: bool, clock: StageClock
) -> Iterator[tuple[int, list[Frame]]]:
    """The clips of a video, as `mssts.prediction.windowing.windows`."""
    manifest = segmenter.manifest
    frames = clock.reading(video.frames())
    if whole_video:
        return iter([(0, _all_frames(video, segmenter, frames))])
    return windows(frames, manifest.clip_frames, manifest.clip_overlap)


def _all_frames(video: Video, segmenter: Segmenter, frames: Iterator[Frame]) -> list[Frame]:
    """All frames of a video, refused as soon as there are more than the limits allow."""
    height, width = video.size
    limit = min(segmenter.limits.frames, segmenter.limits.total_pixels // (height * width))
    whole: list[Frame] = []
    for frame in frames:
        if len(whole) == limit:
            raise MsstsError(
                f"{video.name}: longer than the {limit} frames of {width}×{height} that a server takes in one clip; "
                "predict without --whole-video, or with --model instead of --url"
            )
        whole.append(frame)
    return whole


@contextmanager
def _opened(overlay: Overlay | None, clock: StageClock) -> Iterator[None]:
    """Opens and closes the pictures, and counts the time as `render`."""
    with ExitStack() as stack:
        if overlay is not None:
            with clock.stage("render"):
                stack.enter_context(overlay)
        yield
        with clock.stage("render"):
            stack.close()


def _draw(overlay: Overlay, frames: Sequence[Frame], start: int, linker: Linker, clock: StageClock) -> None:
    with clock.stage("render"):
        for t, frame in enumerate(frames, start):
            overlay.add(frame, linker.visible(t))


@contextmanager
def _staged(out: Path) -> Iterator[Path]:
    """Yields a temporary folder whose files move into `out` if the block succeeds."""
    if out.exists() and not out.is_dir():
        raise MsstsError(f"{out}: not a folder; name one to write the results to")
    # On the same file system as `out`, so that files move by renaming.
    beside = out if out.exists() else next(parent for parent in out.absolute().parents if parent.exists())
    try:
        temporary = tempfile.TemporaryDirectory(dir=beside, prefix=f".{out.name}.")
    except OSError as error:
        raise MsstsError(f"{out}: cannot write there: {reason(error)}") from None
    with temporary as name:
        yield Path(name)
        out.mkdir(parents=True, exist_ok=True)
        for path in Path(name).iterdir():
            path.replace(out / path.name)
