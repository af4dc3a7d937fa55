"""Results drawn over their frames, and written as a video."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import cv2
import numpy as np

from mssts.errors import MsstsError
from mssts.media.rendering import VisibleInstance, draw_instances, legible_scale
from mssts.media.video_writer import VideoWriter
from mssts.streaming.results import FrameResult
from mssts.streaming.sinks import Monitored, Sink

_DEFAULT_FPS = 12.0  # of sources that do not tell


def annotated(result: FrameResult, scale: int = 1) -> np.ndarray:
    """The frame with its tracks drawn over it, RGB uint8 [H, W, 3].

    It is enlarged `scale` times. The result must carry its image.
    """
    image_HWC = result.image
    assert image_HWC is not None, "the stream was not asked for images"
    visible = [
        VisibleInstance(
            item.track, item.name, item.score, item.segmentation["counts"].encode("ascii"), _corners(item.bbox)
        )
        for item in result.instances
    ]
    return draw_instances(image_HWC, visible, scale)


class OverlayVideo(Sink):
    """Writes an mp4 with the tracks drawn in, which appears when the stream ends.

    Frames keep their times, so what was dropped is seen as a pause. Frames of another size than the first are fitted
    into it.

    Args:
        path: the file.
        fps: frames a second of the source, None if it does not tell.
    """

    needs_images = True

    def __init__(self, path: Path, fps: float | None) -> None:
        self._path = path
        self._fps = fps or _DEFAULT_FPS
        self._resources = ExitStack()
        self._writer: VideoWriter | None = None
        self._size = (0, 0)
        self._is_broken = False

    def open(self, stream: Monitored) -> None:
        """Checks that the file can be written.

        Raises:
            MsstsError: it cannot.
        """
        if self._path.is_dir():
            raise MsstsError(f"{self._path}: is a folder; expected the name of an mp4 to write")
        if self._path.suffix.lower() != ".mp4":
            raise MsstsError(f"{self._path}: expected a name that ends with .mp4")

    def write(self, result: FrameResult) -> None:
        """Draws and appends a frame.

        Raises:
            MsstsError: it cannot be written; what follows is left out.
        """
        if self._is_broken:
            return
        image_HWC = annotated(result, legible_scale(*_size(result.image)))
        try:
            if self._writer is None:
                self._size = _size(image_HWC)
                self._writer = VideoWriter(self._path, self._fps, self._size)
                self._resources.enter_context(self._writer)
            self._writer.write(_fitted(image_HWC, self._size), result.time)
        except MsstsError as error:
            self._is_broken = True
            raise MsstsError(f"{error}; the overlay ends before frame {result.frame}") from None

    def close(self) -> None:
        """Finishes the file.

        Raises:
            MsstsError: it cannot be written.
        """
        self._resources.close()


def _size(image_HWC: np.ndarray | None) -> tuple[int, int]:
    assert image_HWC is not None
    return image_HWC.shape[0], image_HWC.shape[1]


def _corners(bbox: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    x, y, width, height = bbox
    return x, y, x + width, y + height


def _fitted(image_HWC: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The image, scaled and centred on black if it is of another size."""
    if image_HWC.shape[:2] == size:
        return image_HWC
    height, width = image_HWC.shape[:2]
    scale = min(size[0] / height, size[1] / width)
    inner = max(1, int(height * scale)), max(1, int(width * scale))
    top, left = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
    fitted_HWC = np.zeros((*size, 3), np.uint8)
    fitted_HWC[top : top + inner[0], left : left + inner[1]] = cv2.resize(
        image_HWC, (inner[1], inner[0]), interpolation=cv2.INTER_AREA
    )
    return fitted_HWC
