"""Video files: choice of the film, display, and messages about broken files."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from support.media_files import add_cover, as_displayed, set_display_matrix, write_sound, write_video

from mssts.errors import MsstsError
from mssts.media.sources import open_source
from mssts.media.video import Video

HEIGHT, WIDTH = 48, 80


def picture(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Four corners of four colours, none in the middle.

    No two of the eight orientations look the same.
    """
    image = np.full((height, width, 3), 90, np.uint8)
    image[: height // 3, : width // 3] = (220, 30, 30)
    image[: height // 3, -(width // 3) :] = (30, 200, 30)
    image[-(height // 3) :, : width // 3] = (40, 40, 220)
    return image


def shades(count: int) -> list[np.ndarray]:
    return [np.full((HEIGHT, WIDTH, 3), 20 + 8 * i, np.uint8) for i in range(count)]


def noise(count: int) -> list[np.ndarray]:
    """Frames that take many bytes, each of its own brightness."""
    rng = np.random.default_rng(0)
    return [rng.integers(6 * i, 6 * i + 100, (HEIGHT, WIDTH, 3), np.uint8) for i in range(count)]


def only(path: Path) -> Video:
    (video,) = open_source(path).videos
    return video


def levels(video: Video) -> list[int]:
    return [round(float(frame.rgb_HWC.mean())) for frame in video.frames()]


# --- the film -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["cover", "still.mp4", "still.mkv", "cover and sound"])
def test_the_film_is_read_and_not_the_picture_before_it(variant: str, tmp_path: Path) -> None:
    big = np.full((4 * HEIGHT, 4 * WIDTH, 3), 255, np.uint8)  # larger than the film
    name = variant if variant.startswith("still") else "film.mp4"
    still = big if variant.startswith("still") else None
    path = write_video(tmp_path / name, shades(7), still=still, sound=variant == "cover and sound")
    if still is None:
        add_cover(path, big)
    with av.open(str(path)) as container:
        assert [stream.codec_context.name for stream in container.streams.video] == ["mjpeg", "h264"]
    video = only(path)
    assert video.size == (HEIGHT, WIDTH)
    np.testing.assert_allclose(levels(video), [20 + 8 * i for i in range(7)], atol=2)
    assert video.notes == []


def test_of_two_films_the_larger_is_read_and_it_is_said(tmp_path: Path) -> None:
    path = tmp_path / "two.mkv"
    with av.open(str(path), "w") as file:
        streams = []
        for height, width in ((24, 40), (HEIGHT, WIDTH)):
            stream = file.add_stream("mpeg4", rate=10)
            stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
            streams.append(stream)
        file.start_encoding()
        for stream in streams:
            for _ in range(5):
                frame = av.VideoFrame.from_ndarray(np.full((stream.height, stream.width, 3), 99, np.uint8), "rgb24")
                file.mux(stream.encode(frame))
            file.mux(stream.encode())
    video = only(path)
    assert video.size == (HEIGHT, WIDTH)
    assert video.notes == ["2 films in one file; read is stream 1 of 80×48"]


def test_a_file_without_a_film_is_refused(tmp_path: Path) -> None:
    song = write_sound(tmp_path / "song.m4a")
    add_cover(song, picture())
    still = write_video(tmp_path / "still.mkv", [picture()], codec="mjpeg", pix_fmt="yuvj420p", sound=True)
    texts = []
    for suffix in ("nfo", "ans", "txt", "diz"):
        path = tmp_path / f"text.{suffix}"
        path.write_text("\x1b[31mRELEASE\x1b[0m of the year\n" * 40)
        texts.append(path)
    refused = "a text|not a video|line 1 is not a path"  # a .txt is a list of videos
    for path, reason in [(song, "no film"), (still, "no film"), *((text, refused) for text in texts)]:
        with pytest.raises(MsstsError, match=f"{path.name}: .*({reason})"):
            open_source(path)


def test_a_film_of_one_frame_is_one(tmp_path: Path) -> None:
    assert len(levels(only(write_video(tmp_path / "one.mkv", [picture()], codec="mjpeg", pix_fmt="yuvj420p")))) == 1


def test_a_relative_path_with_a_colon_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("12:30:05.mp4", "http:a.mp4", "file:b.mp4"):
        write_video(tmp_path / name, shades(3))
        assert len(levels(only(Path(name)))) == 3


# --- as displayed -------------------------------------------------------------------------------------------------

TURNS = [(1, 0, 0, 1), (-1, 0, 0, 1), (1, 0, 0, -1), (-1, 0, 0, -1), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, -1, 0), (0, -1, -1, 0)]  # fmt: skip  # noqa: E501


@pytest.mark.parametrize("turn", TURNS)
def test_a_film_is_turned_and_mirrored_as_its_display_matrix_says(turn: tuple[int, ...], tmp_path: Path) -> None:
    path = write_video(tmp_path / "turned.mp4", [picture()] * 2)
    set_display_matrix(path, turn)
    expected = as_displayed(picture(), turn)
    video = only(path)
    assert video.size == expected.shape[:2]
    for frame in video.frames():
        assert np.abs(frame.rgb_HWC.astype(int) - expected).max() <= 3


@pytest.mark.parametrize(
    ("stored", "aspect", "displayed", "suffix"),
    [
        ((144, 180), Fraction(64, 45), (144, 256), "mp4"),  # PAL, wide
        ((120, 180), Fraction(8, 9), (120, 160), "mkv"),  # NTSC, narrow
        ((48, 80), Fraction(4, 3), (48, 107), "h264"),  # stated by the frames alone
        ((48, 80), Fraction(1), (48, 80), "mp4"),
    ],
)
def test_pixels_become_square(
    stored: tuple[int, int], aspect: Fraction, displayed: tuple[int, int], suffix: str, tmp_path: Path
) -> None:
    path = write_video(tmp_path / f"wide.{suffix}", [picture(*stored)] * 2, aspect=aspect)
    video = only(path)
    assert video.size == displayed
    shown = next(video.frames()).rgb_HWC
    assert shown.shape[:2] == displayed
    expected = picture(*displayed)
    near = np.abs(shown.astype(int) - expected).max(-1) <= 3
    assert near.mean() > 0.96  # but for the edges of the corners
    assert near[:, [0, displayed[1] // 2, -1]].all()


def test_wide_pixels_lie_along_the_stored_rows_of_a_turned_film(tmp_path: Path) -> None:
    path = write_video(tmp_path / "both.mp4", [picture(48, 60)], aspect=Fraction(4, 3))
    set_display_matrix(path, (0, 1, -1, 0))
    shown = next(only(path).frames()).rgb_HWC
    assert shown.shape == (80, 48, 3)
    assert np.abs(shown[:20, -10:].astype(int) - (220, 30, 30)).max() <= 3  # a quarter turn clockwise


def test_pixels_of_an_absurd_width_are_refused(tmp_path: Path) -> None:
    path = write_video(tmp_path / "wide.mkv", [picture(1080, 1920)], aspect=Fraction(50, 1))
    with pytest.raises(MsstsError, match=r"limit of \d+ pixels"):
        open_source(path)


# --- broken -------------------------------------------------------------------------------------------------------


@contextmanager
def cores(count: int) -> Iterator[None]:
    """Leaves this process so many cores: as many threads does FFmpeg start."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(sorted(before)[:count]))
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def packets(path: Path) -> list[tuple[int, int]]:
    """Position and size of the packets of a file."""
    with av.open(str(path)) as container:
        return [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]


@pytest.mark.parametrize("count", [1, 2, 64])
@pytest.mark.parametrize("within", [0.0, 0.5], ids=["between frames", "within a frame"])
def test_a_copy_that_broke_off_says_what_is_missing(within: float, count: int, tmp_path: Path) -> None:
    path = write_video(tmp_path / "cut.mp4", noise(20), container={"movflags": "+faststart"})
    position, size = packets(path)[13]
    path.write_bytes(path.read_bytes()[: position + int(size * within)])
    with cores(count):
        video = only(path)
        assert len(levels(video)) == 13
        assert video.notes == ["cut off: 13 of the 20 frames that the container claims are there"]
        assert len(levels(video)) == 13
        assert len(video.notes) == 1  # not said twice


def test_a_container_that_states_seconds_is_held_to_them(tmp_path: Path) -> None:
    path = write_video(tmp_path / "whole.mkv", noise(20), sound=True)
    video = only(path)
    assert len(levels(video)) == 20
    assert video.notes == []
    position, size = packets(path)[13]
    (tmp_path / "cut.mkv").write_bytes(path.read_bytes()[: position + size])
    video = only(tmp_path / "cut.mkv")
    found = len(levels(video))
    assert 13 <= found <= 14
    (note,) = video.notes
    assert note.startswith(f"cut off: {found} of about 20 frames are there, 1.")
    assert "of the 2.0" in note


@pytest.mark.parametrize("count", [1, 2, 64])
def test_damage_in_the_middle_is_refused_with_the_frame(count: int, tmp_path: Path) -> None:
    path = write_video(tmp_path / "damaged.mp4", noise(20))
    position, size = packets(path)[9]
    data = bytearray(path.read_bytes())
    data[position : position + size] = bytes(size)
    path.write_bytes(data)
    with cores(count), pytest.raises(MsstsError, match=r"damaged\.mp4: a corrupt video: frame 9 of 20 cannot"):
        levels(only(path))


@pytest.mark.parametrize("count", [1, 2])
def test_damage_that_the_decoder_hides_is_said(count: int, tmp_path: Path) -> None:
    path = write_video(tmp_path / "damaged.mp4", noise(20), codec="mpeg4", pix_fmt="yuv420p")
    position, size = packets(path)[9]
    data = bytearray(path.read_bytes())
    data[position + size // 2 : position + size // 2 + 40] = b"\xff" * 40
    path.write_bytes(data)
    with cores(count):
        video = only(path)
        assert len(levels(video)) == 20
    assert video.notes == ["damaged in 1 of 20 frames, the first is frame 9; the decoder filled in what is missing"]


# --- times --------------------------------------------------------------------------------------------------------


def test_frames_have_the_times_of_their_container(tmp_path: Path) -> None:
    times = [0, 0.1, 0.5, 0.55, 1.7, 1.8]
    for suffix in ("mp4", "mkv"):
        video = only(write_video(tmp_path / f"varies.{suffix}", shades(6), times=times))
        assert [frame.time for frame in video.frames()] == pytest.approx(times, abs=1e-3)
    late = [time + 3 for time in times]  # counted from the first frame
    video = only(write_video(tmp_path / "late.mkv", shades(6), times=late))
    assert [frame.time for frame in video.frames()] == pytest.approx(times, abs=1e-3)
    raw = only(write_video(tmp_path / "raw.h264", shades(3)))
    assert [frame.time for frame in raw.frames()] == [None] * 3


def test_frames_that_are_missing_in_the_middle_leave_a_gap_that_is_said(tmp_path: Path) -> None:
    times = [t / 10 for t in (0, 1, 2, 5, 6, 7, 8, 9)]
    video = only(write_video(tmp_path / "gap.mkv", shades(8), times=times))
    assert len(levels(video)) == 8
    assert video.notes == ["2 frames are missing, or were never recorded: there is a gap after frame 2"]
    video = only(write_video(tmp_path / "varies.mkv", shades(8), times=[0, 0.1, 0.25, 0.3, 0.9, 1.1, 1.2, 1.34]))
    assert len(levels(video)) == 8
    assert video.notes == []  # nothing is known to be missing
    for name in ("whole.mkv", "whole.flv"):
        video = only(write_video(tmp_path / name, shades(8), rate=30, pix_fmt="yuv420p"))
        assert len(levels(video)) == 8
        assert video.notes == []


def test_a_fragmented_file_that_broke_off_says_what_is_missing(tmp_path: Path) -> None:
    options = {"movflags": "+frag_keyframe+empty_moov"}
    path = write_video(tmp_path / "live.mp4", noise(20), container=options)
    video = only(path)
    assert len(levels(video)) == 20
    assert video.notes == []
    position, size = packets(path)[13]
    path.write_bytes(path.read_bytes()[: position + size // 2])
    video = only(path)
    assert len(levels(video)) == 13
    assert video.notes == ["cut off: 13 of the 20 frames that the container claims are there"]


def test_decoded_frames_are_freed_at_once(tmp_path: Path) -> None:
    """Not when Python next looks for cycles.

    By then, those of a large video would fill the memory.
    """
    path = write_video(tmp_path / "scene.mp4", [np.full((48, 64, 3), t, np.uint8) for t in range(60)])
    frames = open_source(path).videos[0].frames()
    gc.collect()  # those of other tests
    gc.disable()
    try:
        for _ in range(50):
            next(frames)
        held = sum(type(thing) is av.VideoFrame for thing in gc.get_objects())
    finally:
        gc.enable()
    assert held < 20  # what the decoder's threads hold
