"""Chooses the stream of a video file that a player would show: the film."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import av

from mssts.errors import MsstsError
from mssts.media.images import size_text

# Dispositions as libavformat numbers them. The last marks a tile of a picture, as phones store photos.
_DEFAULT, _ATTACHED_PICTURE, _TIMED_THUMBNAILS, _DEPENDENT = 1, 1 << 10, 1 << 11, 1 << 19
_NO_FILM = _ATTACHED_PICTURE | _TIMED_THUMBNAILS | _DEPENDENT
_TEXT_CODECS = frozenset({"ansi", "bintext", "idf", "xbin"})  # FFmpeg draws the letters of a text file
_PICTURE_CODECS = frozenset({"bmp", "gif", "jpeg2000", "jpegls", "mjpeg", "png", "tiff", "webp"})

_EXPECTED = "expected an mp4 or the like"


def open_container(path: Path) -> av.container.InputContainer:
    """Opens a file by FFmpeg.

    Raises:
        MsstsError: FFmpeg does not know what it is.
    """
    try:
        # FFmpeg takes what is before a colon for a protocol, unless it stands behind a slash.
        return av.open(str(path.absolute()))
    except (av.FFmpegError, OSError) as error:
        raise MsstsError(f"{path}: not a video that FFmpeg can read ({error.strerror}); {_EXPECTED}") from None


def find_film(path: Path, container: av.container.InputContainer) -> tuple[av.VideoStream, str]:
    """The film among the streams of an open file.

    A line about the other streams comes with it if there are any.

    Cover pictures and thumbnails are none. Of several streams, one with more than one frame goes first, then one that
    the file marks as default, then one that is not much shorter than the longest, then the largest, then the first.

    Raises:
        MsstsError: there is no film: sound with a cover, a text, or nothing of that.
    """
    streams = container.streams.video
    if not streams:
        raise MsstsError(f"{path}: has no video stream, or one without frames; {_EXPECTED}")
    if any(_codec(stream) in _TEXT_CODECS for stream in streams):
        raise MsstsError(f"{path}: a text, which FFmpeg would draw as pictures, and no video; {_EXPECTED}")
    films = [stream for stream in streams if not int(stream.disposition) & _NO_FILM]
    sound = bool(container.streams.audio)
    doubtful = sound and len(films) == 1 and _codec(films[0]) in _PICTURE_CODECS
    counts = _frame_counts(path, films) if len(films) > 1 or doubtful else {}
    only_picture = doubtful and counts[films[0].index] == 1
    if not films or only_picture:
        raise MsstsError(f"{path}: a picture{' with sound' if sound else ''} and no film; {_EXPECTED}")
    if len(films) == 1:
        return films[0], ""

    def rank(stream: av.VideoStream) -> tuple[bool, bool, bool, int, int]:
        frames, default = counts[stream.index], bool(int(stream.disposition) & _DEFAULT)
        long = 2 * frames >= max(counts.values())
        return frames > 1, default, long, stream.width * stream.height, -stream.index

    film = max(films, key=rank)
    others = sum(counts[stream.index] > 1 for stream in films if stream is not film)
    size = size_text((film.height, film.width))
    return film, f"{others + 1} films in one file; read is stream {film.index} of {size}" if others else ""


def _codec(stream: av.VideoStream) -> str:
    return stream.codec_context.name if stream.codec_context is not None else ""


def _frame_counts(path: Path, films: list[av.VideoStream]) -> dict[int, int]:
    """The number of frames of each stream, by its index.

    As the container states them, else counted by reading the file once.
    """
    counts = {stream.index: stream.frames for stream in films}
    if all(counts.values()):
        return counts
    found: Counter[int] = Counter()
    with open_container(path) as container:
        try:
            for packet in container.demux():
                found[packet.stream_index] += packet.size > 0
        except av.FFmpegError:  # what was counted until here tells a picture from a film
            pass
    return {index: found[index] for index in counts}
