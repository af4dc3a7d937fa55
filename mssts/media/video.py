"""A video and its frames, whatever they are stored as."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from mssts.errors import MsstsError
from mssts.media.images import decode_image, exif_tag
from mssts.media.orientation import Exif

_JITTER_SECONDS = 0.002  # Matroska and FLV round times to milliseconds


class Frame:
    """One frame as it is displayed, decoded when its pixels are first asked for.

    Attributes:
        time: seconds since the video's first frame, None where the source does not tell.
    """

    def __init__(
        self,
        rgb_HWC: np.ndarray | None = None,
        encoded: bytes | None = None,
        source: str = "",
        time: float | None = None,
        exif: Exif = "apply",
    ) -> None:
        self.time = time
        self._rgb_HWC = rgb_HWC
        self._encoded = encoded
        self._source = source
        self._exif = exif

    @property
    def encoded(self) -> bytes | None:
        """The JPEG or PNG it is stored as, if it decodes to the same pixels everywhere.

        None if it comes from a video file, or if its EXIF orientation is to be ignored: decoders apply it.
        """
        if self._encoded is not None and self._exif == "ignore" and exif_tag(self._encoded) != 1:
            return None
        return self._encoded

    @property
    def rgb_HWC(self) -> np.ndarray:
        """The pixels, RGB uint8 [H, W, 3].

        Raises:
            MsstsError: the image is corrupt; the message names its file.
        """
        if self._rgb_HWC is None:
            assert self._encoded is not None
            try:
                self._rgb_HWC = decode_image(self._encoded, self._exif)
            except MsstsError as error:
                raise MsstsError(f"{self._source}: {error}") from None
        return self._rgb_HWC


@dataclass(frozen=True)
class Video:
    """One video of a source.

    Attributes:
        id: of the data set; 1 for a file or a folder.
        name: for people, and for the files that are written about it.
        size: height and width of its frames as they are displayed.
        fps: frames a second, on average; None where the source does not tell.
        length: frames, by the container's claim, which may be wrong; None where there is none.
        frames: starts from the first frame at every call, and raises `MsstsError` at a frame that is missing, broken or
            of another size.
        notes: what a user of the results should know, a line each; complete when `frames()` has come to its end.
    """

    id: int
    name: str
    size: tuple[int, int]
    fps: float | None
    length: int | None
    frames: Callable[[], Iterator[Frame]]
    notes: list[str] = field(default_factory=list)


def has_variable_rate(times: Sequence[float]) -> bool:
    """Whether frames shown at these seconds follow at unequal intervals."""
    intervals = np.diff(times)
    return bool(len(intervals) and np.abs(intervals - np.median(intervals)).max() > _JITTER_SECONDS)


def gaps_in(times: Sequence[float]) -> dict[int, int]:
    """Numbers of missing frames by the index of the frame before, from times shown.

    Nothing is missing of a video whose rate varies by nature: gaps are few, and all other intervals equal.
    """
    intervals = np.diff(times)
    if len(intervals) < 2 or np.median(intervals) <= _JITTER_SECONDS:
        return {}
    steps = np.rint(intervals / np.median(intervals))
    on_grid = np.abs(intervals - steps * np.median(intervals)) <= _JITTER_SECONDS * np.maximum(steps, 1)
    long = np.flatnonzero(steps > 1)
    if not on_grid.all() or len(long) > max(3, len(intervals) // 20):
        return {}
    return {int(index): int(steps[index]) - 1 for index in long}
