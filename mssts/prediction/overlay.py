"""Pictures of one video's tracks, drawn while the video streams."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np

from mssts.manifest import Category
from mssts.media.rendering import VisibleInstance, contact_sheet, draw_instances, legible_scale, write_png
from mssts.media.video import Frame, Video
from mssts.media.video_writer import VideoWriter
from mssts.prediction.tracking import TrackedInstance

_DEFAULT_FPS = 6.0  # of YouTube-VIS, whose files do not tell
_SHEET_IMAGES = 9
_SHEET_COLUMNS = 3
_SHEET_IMAGE_WIDTH = 640


class Overlay:
    """Context manager that writes an overlay video and a contact sheet.

    Both files, `NAME.mp4` and `NAME.png`, appear when the block ends well. Small frames are enlarged so that labels
    can be read.

    Args:
        folder: where to.
        video: which video; its frames come through `add`.
        categories: the manifest's, which `label` indexes.
        score_threshold: tracks whose score is below are not drawn.
    """

    def __init__(self, folder: Path, video: Video, categories: Sequence[Category], score_threshold: float) -> None:
        self.video_path = folder / f"{video.name}.mp4"
        self.sheet_path = folder / f"{video.name}.png"
        self._categories = categories
        self._score_threshold = score_threshold
        height, width = video.size
        self._scale = legible_scale(height, width)
        self._writer = VideoWriter(
            self.video_path, video.fps or _DEFAULT_FPS, (height * self._scale, width * self._scale)
        )
        self._sheet = _EvenlySpaced(_SHEET_IMAGES)

    def __enter__(self) -> Overlay:
        self._writer.__enter__()
        return self

    def add(self, frame: Frame, tracked: Sequence[TrackedInstance]) -> None:
        """Draws the next frame with its tracks, best first, at its own time."""
        visible = [
            VisibleInstance(item.track_id, self._categories[item.label].name, item.score, item.rle, item.box)
            for item in tracked
            if item.score >= self._score_threshold
        ]
        image = draw_instances(frame.rgb_HWC, visible, self._scale)
        self._writer.write(image, frame.time)
        self._sheet.add(image)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._writer.__exit__(kind, error, traceback)
        if kind is None:
            chosen = self._sheet.chosen()
            captions = [f"frame {index}" for index, _ in chosen]
            write_png(self.sheet_path, contact_sheet([image for _, image in chosen], _SHEET_COLUMNS, captions))


class _EvenlySpaced:
    """Keeps a few images spread over a stream of unknown length.

    Whenever there are twice as many as are wanted, every second one is dropped, and from then on they are taken half as
    often.
    """

    def __init__(self, wanted: int) -> None:
        self._wanted = wanted
        self._step = 1
        self._seen = 0
        self._kept: list[tuple[int, np.ndarray]] = []

    def add(self, image_HWC: np.ndarray) -> None:
        if self._seen % self._step == 0:
            self._kept.append((self._seen, _shrunk(image_HWC)))
            if len(self._kept) == 2 * self._wanted:
                self._kept = self._kept[::2]
                self._step *= 2
        self._seen += 1

    def chosen(self) -> list[tuple[int, np.ndarray]]:
        """Index in the stream and image, in order (all if there were fewer)."""
        count = min(self._wanted, len(self._kept))
        return [self._kept[round(place)] for place in np.linspace(0, len(self._kept) - 1, count)]


def _shrunk(image_HWC: np.ndarray) -> np.ndarray:
    height, width = image_HWC.shape[:2]
    if width <= _SHEET_IMAGE_WIDTH:
        return image_HWC
    size = (_SHEET_IMAGE_WIDTH, max(1, round(height * _SHEET_IMAGE_WIDTH / width)))
    return cv2.resize(image_HWC, size, interpolation=cv2.INTER_AREA)
