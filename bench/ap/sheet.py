"""A sheet of the videos in which most is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mssts.data.videos import read_videos
from mssts.evaluation.average_precision import track_iou
from mssts.evaluation.tracks import GroundTruth, Track, by_video
from mssts.media.rendering import VisibleInstance, contact_sheet, draw_instances, legible_scale, write_png

_VIDEOS, _FRAMES = 5, 3
_DRAWN_SCORE = 0.3


def write_sheet(path: Path, data: Path, truth: GroundTruth, predictions: Sequence[Track]) -> None:
    """Draws the worst videos, two rows each.

    The first row is what is annotated, the second what was found.

    Raises:
        MsstsError: a frame cannot be read, or the sheet cannot be written.
    """
    videos = read_videos(data)
    annotated, found = by_video(_objects(truth)), by_video(predictions)
    names = truth.names
    images, captions = [], []
    for video_id, overlap in worst_videos(truth, predictions)[:_VIDEOS]:
        video = videos.videos_by_id[video_id]
        frames = np.unique(np.linspace(0, video.length - 1, _FRAMES).round().astype(int))
        shown = [track for track in found[video_id] if track.score >= _DRAWN_SCORE]
        for what, tracks in (("annotated", annotated[video_id]), ("found", shown)):
            for t in frames:
                drawn = [
                    VisibleInstance(i, names[track.category_id], track.score or None, track.rles[t])
                    for i, track in enumerate(tracks, start=1)
                    if track.rles[t] is not None
                ]
                images.append(draw_instances(videos.read_frame(video, t), drawn, legible_scale(*video.size)))
                captions.append(f"video {video_id}, frame {t}, {what}; overlap {overlap:.2f}")
        # A short video fills its rows with what it has, so each starts a row of its own.
        while len(images) % _FRAMES:
            images.append(np.zeros_like(images[-1]))
            captions.append("")
    write_png(path, contact_sheet(images, _FRAMES, captions))


def worst_videos(truth: GroundTruth, predictions: Sequence[Track]) -> list[tuple[int, float]]:
    """Videos with objects, worst first, each with its overlap.

    A video's overlap is the mean over its objects of the IoU of the best prediction of the class.
    """
    annotated, found = by_video(_objects(truth)), by_video(predictions)
    scored = []
    for video_id, tracks in annotated.items():
        best = []
        for track in tracks:
            same = [other for other in found[video_id] if other.category_id == track.category_id]
            best.append(float(track_iou(same, [track]).max()) if same else 0.0)
        scored.append((video_id, float(np.mean(best))))
    return sorted(scored, key=lambda entry: (entry[1], entry[0]))


def _objects(truth: GroundTruth) -> list[Track]:
    """The annotated tracks without crowds."""
    return [track for track in truth.tracks if not track.is_crowd]
