"""Prediction with several windows on their way at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from prediction.test_predict import LENGTH, write_mp4
from support.toy_engine import write_toy_engine

from mssts.prediction.predictor import predict
from mssts.segmenters.base import Instances
from mssts.segmenters.local import LocalSegmenter


def test_windows_in_flight_change_no_result(tmp_path: Path) -> None:
    """A segmenter that takes windows ahead of its results, as a server's does."""
    ahead = 3

    class Ahead(LocalSegmenter):
        def segment_many(
            self, clips: Iterable[np.ndarray | Sequence[bytes]], score_threshold: float = 0.0
        ) -> Iterator[Instances]:
            taken: list[np.ndarray | Sequence[bytes]] = []
            for clip in clips:
                taken.append(clip)
                if len(taken) == ahead:
                    yield self.segment(taken.pop(0), score_threshold)
            for clip in taken:
                yield self.segment(clip, score_threshold)

    engine = write_toy_engine(tmp_path / "engine").parent
    source = write_mp4(tmp_path / "scene.mp4", 2 * LENGTH)
    written = []
    for kind in (LocalSegmenter, Ahead):
        with kind(engine) as segmenter:
            report = predict(source, segmenter, tmp_path / kind.__name__, progress=False)
        assert report.clips == 6 and report.frames == 2 * LENGTH
        stages = {name: seconds for name, seconds in report.stage_seconds.items() if name != "render"}
        assert all(0 <= seconds <= report.seconds for seconds in stages.values())  # they overlap
        written.append([(tmp_path / kind.__name__ / name).read_bytes() for name in ("results.json", "scene.mp4")])
    assert written[0] == written[1]
