"""Frames of a video file as a player shows them.

The frames of its film, upright, in square pixels and SDR colours.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av

from mssts.errors import MsstsError
from mssts.media.display import Display
from mssts.media.film import find_film, open_container
from mssts.media.images import size_text
from mssts.media.video import Frame, Video, gaps_in

# Containers whose header states how long they are, so that an earlier end tells of a broken copy. Of others, FFmpeg
# estimates it from what is there.
_STATE_DURATION = frozenset({"asf", "flv", "matroska", "mov"})
_MICROSECONDS = 1_000_000


def open_video_file(path: Path) -> Video:
    """Opens a video file and decodes its first frame.

    Raises:
        MsstsError: no video that FFmpeg reads, none with a film in it, or its first frame is broken.
    """
    film = _Film(path)
    first = next(film.frames(), None)
    if first is None:
        raise MsstsError(f"{path}: a video without frames; expected at least one")
    height, width, _ = first.rgb_HWC.shape
    return Video(1, path.stem, (height, width), film.fps, film.claimed_frames, film.frames, film.notes)


class _DoubtError(Exception):
    """Decoding by several threads came to an error, or lost a frame."""


@dataclass
class _Reading:
    """State of a file that is being read.

    Attributes:
        packets: whole ones of the film.
        end: the seconds at which the last frame or sound ends.
        indexed: the frames that an mp4's index lists, that of its fragments included; 0 of other containers.
    """

    packets: int = 0
    end: float = 0.0
    indexed: int = 0


class _Clock:
    """Seconds since the first frame."""

    def __init__(self, time_base: Fraction) -> None:
        self._time_base = time_base
        self._start: int | None = None

    def time(self, frame: av.VideoFrame) -> float | None:
        """When a frame is shown, None if its container does not tell."""
        shown = frame.pts if frame.pts is not None else frame.dts
        if shown is None or not self._time_base:
            return None
        if self._start is None:
            self._start = shown
        return float((shown - self._start) * self._time_base)


class _Film:
    """The film of a file.

    Attributes:
        fps: frames a second on average, None if the file does not tell.
        claimed_frames: by the container, None if it does not tell.
        notes: complete when `frames()` has come to its end.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with open_container(path) as container:
            stream, note = find_film(path, container)
            if stream.codec_context is None:
                raise MsstsError(f"{path}: FFmpeg has no decoder for its film; convert it to an mp4 of H.264")
            formats = set(container.format.name.split(","))
            self.notes = [note] if note else []
            self.fps = float(stream.average_rate) if stream.average_rate else None
            self.claimed_frames = stream.frames or None
            self._index = stream.index
            self._has_index = "mov" in formats
            # An edit list leaves out frames that are in the file: the index holds what is to be read.
            if stream.frames and (indexed := self._indexed(stream)):
                self.claimed_frames = min(stream.frames, indexed)
            self._time_base = Fraction(stream.time_base or 0)
            self._aspect = Fraction(stream.sample_aspect_ratio or 1)
            self._claimed_end: float | None = None
            if formats & _STATE_DURATION and container.duration and not stream.frames:
                # Of an mp4 it counts from the first frame, elsewhere from 0.
                start = (container.start_time or 0) if self._has_index else 0
                self._claimed_end = (container.duration + start) / _MICROSECONDS

    def _indexed(self, stream: av.VideoStream) -> int:
        return len(getattr(stream, "index_entries", ())) if self._has_index else 0

    def frames(self) -> Iterator[Frame]:
        """The frames as displayed.

        Raises:
            MsstsError: a frame cannot be decoded, or is not of the size of the first.
        """
        first_size: tuple[int, int] | None = None
        clock = _Clock(self._time_base)
        display = Display(self._aspect, str(self._path))
        times: list[float] = []
        damaged: list[int] = []
        reading = _Reading()
        index = -1
        for index, (frame, transfer) in enumerate(self._decoded(reading)):
            rgb_HWC = display.pixels(frame, transfer)
            size = (rgb_HWC.shape[0], rgb_HWC.shape[1])
            first_size = first_size or size
            if size != first_size:
                raise MsstsError(
                    f"{self._path}: frame {index} is {size_text(size)}, the first {size_text(first_size)}; "
                    "the frames of a video must be of one size"
                )
            if frame.is_corrupt:
                damaged.append(index)
            time = clock.time(frame)
            if time is not None:
                times.append(time)
            yield Frame(rgb_HWC, time=time)
        self._note_end(index + 1, damaged, reading, times)

    def _note_end(self, frames: int, damaged: list[int], reading: _Reading, times: list[float]) -> None:
        notes = []
        if damaged:
            notes.append(
                f"damaged in {len(damaged)} of {frames} frames, the first is frame {damaged[0]}; the decoder filled in "
                "what is missing"
            )
        missing = (self.claimed_frames or reading.indexed) - reading.packets
        if missing > 0:
            notes.append(f"cut off: {frames} of the {frames + missing} frames that the container claims are there")
        elif self._claimed_end is not None and frames:
            interval = 1 / (self.fps or 25)
            if self._claimed_end - reading.end > 1.25 * interval + 0.01:
                claimed = frames + round((self._claimed_end - reading.end) / interval)
                notes.append(
                    f"cut off: {frames} of about {claimed} frames are there, {reading.end:.2f} of the "
                    f"{self._claimed_end:.2f} seconds that the container claims"
                )
        if missing <= 0 and self.claimed_frames is None and (gaps := gaps_in(times)):
            notes.append(
                f"{sum(gaps.values())} frames are missing, or were never recorded: there is a gap after frame "
                + ", ".join(map(str, gaps))
            )
        self.notes += [note for note in notes if note not in self.notes]

    def _decoded(self, reading: _Reading) -> Iterator[tuple[av.VideoFrame, int]]:
        """The frames as stored, each with the code of its transfer function.

        With several threads, a decoder may lose an error and the frame with it, or the mark of a damaged frame, and
        which depends on their number. So they stop at the least damage, and one thread alone decides what it is.
        """
        given = 0
        try:
            for decoded in self._decoded_by(None, reading):
                yield decoded
                given += 1
        except _DoubtError:
            yield from itertools.islice(self._decoded_by(1, reading), given, None)

    def _decoded_by(self, threads: int | None, reading: _Reading) -> Iterator[tuple[av.VideoFrame, int]]:
        reading.packets, reading.end = 0, 0.0
        sent = received = 0
        with self._opened() as (container, stream):
            context = stream.codec_context
            if threads is None:
                stream.thread_type = "AUTO"
                context.options = {"err_detect": "explode"}  # damage is an error, not filled in
            else:
                context.thread_count = threads
            try:
                for packet in self._packets(container, reading):
                    sent += packet.size > 0 and not packet.is_discard
                    for frame in packet.decode():
                        assert isinstance(frame, av.VideoFrame)
                        received += 1
                        yield frame, context.color_trc
            except av.FFmpegError as error:
                if threads is None:
                    raise _DoubtError from None
                claimed = f" of {self.claimed_frames}" if self.claimed_frames else ""
                raise MsstsError(
                    f"{self._path}: a corrupt video: frame {received}{claimed} cannot be decoded ({error.strerror}); "
                    "copy the file again, or cut it before that frame"
                ) from None
            reading.indexed = self._indexed(stream)
            if threads is None and received < sent:
                raise _DoubtError

    def _packets(self, container: av.container.InputContainer, reading: _Reading) -> Iterator[av.Packet]:
        """The film's whole packets, then an empty one.

        The empty one makes the decoder return the frames it still holds.
        """
        broken: av.Packet | None = None
        for packet in container.demux():
            if packet.pts is not None and packet.time_base and not packet.is_corrupt:
                reading.end = max(reading.end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            if packet.stream.index != self._index:  # packet.stream_index is wrong in PyAV's empty packets at the end
                continue
            if packet.size == 0 and packet.dts is None:
                # A frame within which the file breaks off is left out. That none comes after it tells it from damage
                # in the middle, which is left to the decoder.
                yield packet
                return
            if broken is not None:
                reading.packets += 1
                yield broken
                broken = None
            if packet.is_corrupt:
                broken = packet
                continue
            reading.packets += 1
            if packet.size:  # an empty one is AVI's sign that the frame before is shown once more
                yield packet

    @contextmanager
    def _opened(self) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
        with open_container(self._path) as container:
            stream = container.streams[self._index]
            assert isinstance(stream, av.VideoStream)
            yield container, stream
