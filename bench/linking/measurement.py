"""Figures of linking: the same windows of long videos, linked in several ways.

The engine sees each window once. What it found is then linked by the default, by the default with one part changed,
and by an oracle that knows the ground truth. The oracle shows what perfect identities are worth, not a strict bound: it
leaves unlinked what overlaps no object.
"""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment
from tqdm import tqdm

from mssts.categories import map_by_name
from mssts.data.moving_shapes import MovingShapesConfig, write_dataset
from mssts.evaluation import evaluate, evaluate_tracking
from mssts.evaluation.tracks import read_ground_truth
from mssts.files import read_json
from mssts.media.sources import open_source
from mssts.prediction.appearance import colour_histograms, without_hues
from mssts.prediction.detections import Detection, mask_iou
from mssts.prediction.results import submission_entries
from mssts.prediction.tracking import Linker, LinkOptions, _OpenTrack
from mssts.prediction.windowing import MIN_SCORE, windows
from mssts.segmenters.base import Instances, Segmenter

_MIN_ORACLE_IOU = 0.1
_MAX_ENTRIES = 100  # a video, as in `predict`

DEFAULT = LinkOptions()
VARIANTS = {
    "default": DEFAULT,
    "no classes": replace(DEFAULT, class_power=0),
    "grey": DEFAULT,
    "grey, no classes": replace(DEFAULT, class_power=0),
    "no colours": replace(DEFAULT, colour_power=0),
    "no re-entry": replace(DEFAULT, reentry_frames=0),
    "no certainty": replace(DEFAULT, score_prior_frames=0),
}
GREY = ("grey", "grey, no classes")
"""The variants that are given the colours of grey pictures; the engine saw coloured ones."""


@dataclass(frozen=True)
class VideoWindows:
    """What an engine found in a video.

    `windows` has of each window its start, number of frames, instances and their colours.
    """

    video_id: int
    windows: tuple[tuple[int, int, Instances, np.ndarray], ...]


@dataclass(frozen=True)
class SetWindows:
    """What an engine found in a data set.

    `truth` is the JSON value of its `instances.json`.
    """

    truth: dict[str, Any]
    videos: tuple[VideoWindows, ...]


def measure_linking(data: SetWindows, frames: int) -> list[dict[str, Any]]:
    """A row of figures for each way to link, the oracle first."""
    rows = []
    categories = read_ground_truth(data.truth, "truth").categories
    by_label = map_by_name(data.videos[0].windows[0][2].categories, categories, "MovingShapes").by_label
    for name in tqdm(["oracle", *VARIANTS, "greedy assignment"], desc=f"{frames} frames", disable=None):
        entries: list[dict[str, Any]] = []
        best: list[dict[str, Any]] = []
        for video in data.videos:
            linker = _linker(name, data, video)
            for start, length, found, colours_ND in video.windows:
                linker.add(start, length, found, without_hues(colours_ND) if name in GREY else colours_ND)
            tracks = linker.tracks()
            size = video.windows[0][2].size
            entries += submission_entries(video.video_id, size, tracks, by_label)[:_MAX_ENTRIES]
            # Identities are counted under the one class that is drawn.
            drawn = [replace(track, class_scores={track.label: track.score}, certainty=1) for track in tracks]
            best += submission_entries(video.video_id, size, drawn, by_label)
        metrics, tracking = evaluate(data.truth, entries), evaluate_tracking(data.truth, best)
        precision = {"ap": metrics.ap, "ap50": metrics.ap50, "ap75": metrics.ap75}
        rows.append({"frames": frames, "videos": len(data.videos), "linking": name, **precision, **tracking.to_json()})
    return rows


class _GreedyLinker(Linker):
    """Pairs the best first, then the best of the rest."""

    def _pairs(self, quality_KN: np.ndarray) -> list[tuple[int, int]]:
        pairs: list[tuple[int, int]] = []
        quality_KN = quality_KN.copy()
        while quality_KN.max() > 0:
            k, n = divmod(int(quality_KN.argmax()), quality_KN.shape[1])
            pairs.append((k, n))
            quality_KN[k] = 0
            quality_KN[:, n] = 0
        return pairs


class _OracleLinker(Linker):
    """Gives each object's best overlapping detection of each window to one track."""

    def __init__(self, truth_rles: list[tuple[bytes | None, ...]]) -> None:
        super().__init__()
        self._truth_rles = truth_rles
        self._track_of: dict[int, _OpenTrack] = {}

    def _match(self, start: int, objects: Sequence[Detection], size: tuple[int, int]) -> dict[int, _OpenTrack]:
        if not objects or not self._truth_rles:
            return {}
        frames = len(objects[0].rles)
        truth = [rles[start : start + frames] for rles in self._truth_rles]
        iou_NG = mask_iou([found.rles for found in objects], truth, size)
        linked = {}
        for n, g in zip(*linear_sum_assignment(iou_NG, maximize=True), strict=True):
            if iou_NG[n, g] >= _MIN_ORACLE_IOU:
                if g not in self._track_of:
                    self._track_of[g] = self._start_track()
                linked[int(n)] = self._track_of[g]
        return linked


def _linker(name: str, data: SetWindows, video: VideoWindows) -> Linker:
    if name == "oracle":
        tracks = read_ground_truth(data.truth, "truth").tracks
        return _OracleLinker([track.rles for track in tracks if track.video_id == video.video_id])
    return _GreedyLinker() if name == "greedy assignment" else Linker(options=VARIANTS[name])


def windows_of(segmenter: Segmenter, seed: int, videos: int, frames: int, cache: Path | None) -> SetWindows:
    """The windows of a MovingShapes set, from the cache if they are there."""
    kept = None
    if cache is not None:
        kept = cache / f"{segmenter.manifest.artefact_sha256[:12]}_{seed}_{videos}x{frames}.pickle"
        if kept.is_file():
            with kept.open("rb") as file:  # our own file, not a stranger's
                found: SetWindows = pickle.load(file)
            return found
    with tempfile.TemporaryDirectory(prefix="mssts-linking-") as folder:
        path = write_dataset(Path(folder) / "set", videos, seed, MovingShapesConfig(length=frames))
        found = _segmented(segmenter, path)
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_bytes(pickle.dumps(found))
    return found


def _segmented(segmenter: Segmenter, data: Path) -> SetWindows:
    """What an engine finds in each window of a data set."""
    manifest = segmenter.manifest
    source = open_source(data)
    listed = []
    for video in tqdm(source.videos, desc="windows", unit="video", disable=None):
        of_video = []
        for start, frames in windows(video.frames(), manifest.clip_frames, manifest.clip_overlap):
            clip = [frame.encoded for frame in frames if frame.encoded is not None]
            found = segmenter.segment(clip, MIN_SCORE)
            of_video.append((start, len(frames), found, colour_histograms(found, frames)))
        listed.append(VideoWindows(video.id, tuple(of_video)))
    return SetWindows(read_json(data), tuple(listed))


def pooled(sets: Sequence[SetWindows]) -> SetWindows:
    """Several sets as one, their videos numbered from 1."""
    videos: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    listed: list[VideoWindows] = []
    for data in sets:
        shift = len(videos)
        videos += [{**video, "id": video["id"] + shift} for video in data.truth["videos"]]
        first = len(annotations) + 1
        annotations += [
            {**annotation, "id": number, "video_id": annotation["video_id"] + shift}
            for number, annotation in enumerate(data.truth["annotations"], first)
        ]
        listed += [replace(video, video_id=video.video_id + shift) for video in data.videos]
    return SetWindows({**sets[0].truth, "videos": videos, "annotations": annotations}, tuple(listed))
