"""Annotated videos that a benchmark scores against."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mssts.errors import MsstsError

if TYPE_CHECKING:
    from mssts.evaluation.tracks import GroundTruth


def read_annotations(data: Path) -> tuple[Path, GroundTruth]:
    """The file of `--data`, which may be its folder, and what is annotated there.

    Raises:
        MsstsError: it is absent or broken, or no object is annotated.
    """
    from mssts.data.videos import read_youtube_vis_value
    from mssts.evaluation.tracks import read_ground_truth

    path = data / "instances.json" if data.is_dir() else data
    truth = read_ground_truth(read_youtube_vis_value(path), path)
    if all(track.is_crowd for track in truth.tracks):
        raise MsstsError(f"--data {path}: no object is annotated in its {len(truth.videos)} videos; nothing to score")
    return path, truth
