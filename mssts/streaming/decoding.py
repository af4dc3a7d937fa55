"""Frames of a live film, decoded packet by packet."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction

import av
import av.error
import numpy as np
from av.video.codeccontext import VideoCodecContext

from mssts.media.display import Display


def decoded_frames(
    packets: Iterable[av.Packet], context: VideoCodecContext, aspect: Callable[[], Fraction | None], name: str
) -> Iterator[tuple[np.ndarray, float | None]]:
    """The frames, RGB uint8 [H, W, 3], and their seconds by the source's clock.

    None where it tells none. A packet that cannot be decoded is left out.

    Args:
        packets: as they come, with their time base.
        context: the decoder.
        aspect: of a pixel, width to height, asked for when the first frame is there.
        name: of the source, for people.

    Raises:
        av.FFmpegError, OSError, MsstsError: as `packets` does.
    """
    display: Display | None = None
    for packet in packets:
        try:
            decoded = context.decode(packet)
        except av.error.InvalidDataError:  # before the first key frame, or damaged; the next ones may be whole
            continue
        for frame in decoded:
            assert isinstance(frame, av.VideoFrame)
            if display is None:
                display = Display(Fraction(aspect() or 1), name)
            shown = frame.pts if frame.pts is not None else frame.dts
            base = frame.time_base
            yield display.pixels(frame, context.color_trc), None if shown is None or not base else float(shown * base)
