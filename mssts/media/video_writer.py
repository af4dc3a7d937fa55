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

_BT709 = 1  # the code of BT.709 for primaries, transfer and matrix (ITU-T H.273)
_OPTIONS = {"crf": "20", "preset": "veryfast"}
_TICKS = 1000  # of the clock, a frame at the constant rate
_ROUNDING_SECONDS = 0.0006  # of the times that Matroska and FLV store, in milliseconds


class VideoWriter:
    """Context manager that writes RGB frames to an mp4 file.

    The file appears when the block ends well.

    H.264 in yuv420p, BT.709, with the index in front, so that it plays while it loads. An odd width or height, which
    yuv420p cannot have, is made even by repeating the last column or row.

    Args:
        path: the file.
        fps: frames a second, where frames come without a time.
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
        self._ticks = -1  # at which the last frame is shown
        self._resources = ExitStack()

    def __enter__(self) -> VideoWriter:
        with self._refusing(), ExitStack() as resources:
            temporary = resources.enter_context(atomic_path(self._path))
            options = {"movflags": "+faststart"}
            # FFmpeg takes what is before a colon for a protocol, unless it stands behind a slash.
            file = str(temporary.absolute())
            self._container = resources.enter_context(av.open(file, "w", format="mp4", options=options))
            self._stream = self._container.add_stream("libx264", self._rate, options=_OPTIONS)
            height, width = self._size
            self._stream.height, self._stream.width = height + height % 2, width + width % 2
            self._stream.pix_fmt = "yuv420p"
            context = self._stream.codec_context
            context.time_base = self._tick
            context.color_primaries = context.color_trc = context.colorspace = _BT709
            context.color_range = ColorRange.MPEG
            resources.push(self._finish)
            self._resources = resources.pop_all()
        return self

    def write(self, frame_HWC: np.ndarray, time: float | None = None) -> None:
        """Appends a frame, RGB uint8 of the size given.

        Args:
            frame_HWC: the frame.
            time: when it is shown, in seconds; if None, one frame's time after the one before.
        """
        if frame_HWC.shape != (*self._size, 3):
            raise ValueError(f"a frame of shape {frame_HWC.shape} does not fit a video of size {self._size}")
        height, width = self._size
        padded = np.pad(frame_HWC, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        frame = av.VideoFrame.from_ndarray(padded, "rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG)
        self._ticks = self._place(time)
        frame.pts, frame.time_base, frame.duration = self._ticks, self._tick, _TICKS
        with self._refusing():
            self._container.mux(self._stream.encode(frame))
        self._frames += 1

    @property
    def _tick(self) -> Fraction:
        return 1 / (self._rate * _TICKS)

    def _place(self, time: float | None) -> int:
        """The tick at which a frame is shown.

        It is that of the constant rate if `time` is no further off than rounding.
        """
        if time is None:
            return self._ticks + _TICKS if self._frames else 0
        nearest = round(time * self._rate) * _TICKS
        off_grid = abs(time - float(nearest * self._tick)) > _ROUNDING_SECONDS
        return max(self._ticks + 1, round(time / self._tick) if off_grid else nearest)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._refusing():
            self._resources.__exit__(kind, error, traceback)

    def _finish(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Writes what the encoder still holds.

        Afterwards the file is closed, and renamed or removed.
        """
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
