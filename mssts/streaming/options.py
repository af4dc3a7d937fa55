"""Options of a stream."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from mssts.errors import MsstsError

_LONGEST_SIDE = 1 << 14


@dataclass(frozen=True)
class RawFormat:
    """Frames without a container, as `ffmpeg -f rawvideo -pix_fmt rgb24` writes them.

    Attributes:
        size: height and width.
        fps: frames a second, None if frames have no times.
    """

    size: tuple[int, int]
    fps: Fraction | None = None

    @classmethod
    def parse(cls, text: str) -> RawFormat:
        """Reads `WIDTHxHEIGHT` or `WIDTHxHEIGHT@FPS`.

        Raises:
            ValueError: it is not of that form.
        """
        size, at, fps = text.partition("@")
        width, height = map(int, size.split("x"))
        rate = Fraction(fps) if at else None
        if not (0 < width <= _LONGEST_SIDE and 0 < height <= _LONGEST_SIDE) or (rate is not None and rate <= 0):
            raise ValueError(text)
        return cls((height, width), rate)


@dataclass(frozen=True)
class StreamOptions:
    """Options of a stream.

    Attributes:
        stride: new frames in each window, those of the engine's manifest if None.
        live: whether frames are dropped when the engine is slower than the source. A file is then played at its own
            speed. If None, it is so for cameras and other sources without an end.
        score_threshold: tracks whose score so far is below are left out.
        in_flight: windows that the segmenter works on at once, as many as it says if None.
        images: whether results carry their frame's pixels.
        timeout: seconds within which a network source or a camera must deliver.
        reconnect: seconds for which a source that was lost is tried again.
        raw: what comes on stdin, if it is frames without a container.
    """

    stride: int | None = None
    live: bool | None = None
    score_threshold: float = 0.3
    in_flight: int | None = None
    images: bool = False
    timeout: float = 5.0
    reconnect: float = 300.0
    raw: RawFormat | None = None

    def __post_init__(self) -> None:
        if self.stride is not None and self.stride < 1:
            raise MsstsError(f"the stride must be at least 1 frame, not {self.stride}")
        if not 0 <= self.score_threshold <= 1:
            raise MsstsError(f"the score threshold must be from 0 to 1, not {self.score_threshold}")
        if self.in_flight is not None and self.in_flight < 1:
            raise MsstsError(f"at least 1 window must be in flight, not {self.in_flight}")
        if not self.timeout > 0 or not self.reconnect >= 0:
            raise MsstsError(
                f"the timeout must be above 0 s and reconnecting at least 0 s, not {self.timeout:g} and "
                f"{self.reconnect:g}"
            )
