"""Writes H.264 video that browsers play."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace

from mssts.errors import MsstsError
from mssts.files import atomic_path, reason

_BT709 = 1  # the code of BT.709 for primaries, transfer and matrix alike (ITU-T H.273)
_OPTIONS = {"crf": "20", "preset": "veryfast"}


class VideoWriter:
    """A context manager that writes RGB frames to an mp4 file, which appears when the block ends well.

    H.264 in yuv420p, BT.709, with the index in front, so that it plays while it loads. An odd width or height, which
    yuv420p cannot have, is made even by repeating the last column or row.

    Args:
        path: the file.
        fps: frames a second.
        size: height and width of the frames.

    Raises:
        MsstsError: the file cannot be written, or no frame was.
    """

    def __init__(self, path: Path | str, fps: float, size: tuple[int, int]) -> None:
        if not fps > 0:
            raise ValueError(f"frames a second must be more than 0, not {fps}")
        self._path = Path(path)
        # Denominators up to 1001 hold the rates of television, 30000/1001 for one.
        self._rate = Fraction(fps).limit_denominator(1001)
        self._size = size
        self._frames = 0
        self._resources = ExitStack()

    def __enter__(self) -> VideoWriter:
        with self._refusing(), ExitStack() as resources:
            temporary = resources.enter_context(atomic_path(self._path))
            options = {"movflags": "+faststart"}
            self._container = resources.enter_context(av.open(str(temporary), "w", format="mp4", options=options))
            self._stream = self._container.add_stream("libx264", self._rate, options=_OPTIONS)
            height, width = self._size
            self._stream.height, self._stream.width = height + height % 2, width + width % 2
            self._stream.pix_fmt = "yuv420p"
            context = self._stream.codec_context
            context.color_primaries = context.color_trc = context.colorspace = _BT709
            context.color_range = ColorRange.MPEG
            resources.push(self._finish)
            self._resources = resources.pop_all()
        return self

    def write(self, frame_HWC: np.ndarray) -> None:
        """Appends a frame, RGB uint8 of the size given."""
        if frame_HWC.shape != (*self._size, 3):
            raise ValueError(f"a frame of shape {frame_HWC.shape} does not fit a video of size {self._size}")
        height, width = self._size
        padded = np.pad(frame_HWC, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        frame = av.VideoFrame.from_ndarray(padded, "rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG)
        frame.pts, frame.time_base = self._frames, 1 / self._rate
        with self._refusing():
            self._container.mux(self._stream.encode(frame))
        self._frames += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._refusing():
            self._resources.__exit__(kind, error, traceback)

    def _finish(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Writes what the encoder still holds; the file is closed, and renamed or removed, after it."""
        if kind is not None:
            return
        if not self._frames:
            raise MsstsError(f"{self._path}: not written, as there was no frame to write")
        self._container.mux(self._stream.encode(None))

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise MsstsError(f"{self._path}: cannot be written: {reason(error)}") from None
