"""Sources of frames: order, size, and what is wrong with a bad one."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from mssts.errors import MsstsError
from mssts.media.sources import Video, open_source


def write_image(path: Path, value: int = 0, height: int = 24, width: int = 32) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((height, width, 3), value, np.uint8))
    return path


def write_mp4(path: Path, frames: list[np.ndarray], width: int = 32, height: int = 24) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=12)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = width, height, "yuv420p", 4_000_000
        container.start_encoding()
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def levels(video: Video) -> list[int]:
    """The mean brightness of each frame, to the nearest ten.

    Lossy coding does not change that.
    """
    return [int(round(frame.rgb_HWC.mean(), -1)) for frame in video.frames()]


def only(path: Path) -> Video:
    (video,) = open_source(path).videos
    return video


def test_a_folder_is_one_video(tmp_path: Path) -> None:
    for number in (10, 2, 1, 100, 20):
        write_image(tmp_path / "clip" / f"frame_{number}.{'png' if number != 20 else 'PNG'}", number)
    (tmp_path / "clip" / "notes.txt").write_text("not a frame")
    video = only(tmp_path / "clip")
    assert (video.name, video.size, video.length, video.fps) == ("clip", (24, 32), 5, None)
    assert levels(video) == [0, 0, 10, 20, 100]
    assert levels(video) == [0, 0, 10, 20, 100]  # again, from the first
    assert next(video.frames()).encoded == (tmp_path / "clip" / "frame_1.png").read_bytes()


def test_a_video_file_is_streamed_in_order(tmp_path: Path) -> None:
    shades = [20 * i for i in range(11)]
    path = write_mp4(tmp_path / "shades.mp4", [np.full((24, 32, 3), shade, np.uint8) for shade in shades])
    video = only(path)
    assert (video.name, video.size, video.length, video.fps) == ("shades", (24, 32), 11, 12)
    assert levels(video) == shades
    assert next(video.frames()).encoded is None


def write_dataset(folder: Path, file_names: list[list[str]], write: bool = True) -> Path:
    for name in itertools.chain(*file_names) if write else ():
        write_image(folder / "JPEGImages" / name)
    videos = [
        {"id": 7 + i, "width": 32, "height": 24, "length": len(names), "file_names": names}
        for i, names in enumerate(file_names)
    ]
    path = folder / "instances.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"videos": videos, "categories": [{"id": 1, "name": "thing"}], "annotations": []}))
    return path


def test_a_data_set_has_its_videos(tmp_path: Path) -> None:
    path = write_dataset(tmp_path, [["a/00.jpg", "a/01.jpg"], ["b/00.jpg"]])
    source = open_source(path)
    assert [(video.id, video.name, video.length, video.size) for video in source.videos] == [
        (7, "a", 2, (24, 32)),
        (8, "b", 1, (24, 32)),
    ]
    assert [len(list(video.frames())) for video in source.videos] == [2, 1]


@pytest.mark.parametrize("names", [[["0.jpg"], ["1.jpg"]], [["a/0.jpg"], ["a/1.jpg"]]])
def test_videos_that_share_a_folder_have_names_of_their_own(tmp_path: Path, names: list[list[str]]) -> None:
    videos = open_source(write_dataset(tmp_path, names)).videos
    assert [video.name for video in videos] == ["video_7", "video_8"]


def broken_sources(folder: Path) -> dict[str, tuple[Path, str]]:
    """Sources that cannot be opened, each with what the message must say."""
    (folder / "text.mp4").write_text("not a video at all")
    (folder / "empty.mp4").touch()
    write_mp4(folder / "no_frames.mp4", [])
    with av.open(str(folder / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        sound.rate = 8000
        container.mux(stream.encode(sound))
    (folder / "no_images").mkdir()
    (folder / "bad_first").mkdir()
    (folder / "bad_first" / "0.jpg").write_text("not a JPEG")
    (folder / "broken.json").write_text("{")
    return {
        "absent": (folder / "absent.mp4", "no such file"),
        "not a video": (folder / "text.mp4", "not a video"),
        "empty file": (folder / "empty.mp4", "not a video"),
        "zero frames": (folder / "no_frames.mp4", "without frames"),
        "sound": (folder / "sound.wav", "no video stream"),
        "no images": (folder / "no_images", "no images"),
        "first image corrupt": (folder / "bad_first", r"0\.jpg: not a JPEG"),
        "broken JSON": (folder / "broken.json", "not valid JSON"),
        "missing image": (write_dataset(folder / "set", [["a/0.jpg"]], write=False), r"a/0\.jpg: no such image"),
        "no videos": (write_dataset(folder / "none", []), "videos is empty"),
    }


def test_a_broken_source_is_named_when_it_is_opened(tmp_path: Path) -> None:
    for path, message in broken_sources(tmp_path).values():
        with pytest.raises(MsstsError, match=f"{re.escape(str(path.parent))}.*{message}"):
            open_source(path)


def test_a_frame_of_another_size_is_named(tmp_path: Path) -> None:
    for i in range(4):
        write_image(tmp_path / f"{i}.png", height=24 if i < 3 else 26)
    frames = only(tmp_path).frames()
    assert len([next(frames) for _ in range(3)]) == 3
    with pytest.raises(MsstsError, match=r"3\.png: 32×26, expected 32×24"):
        next(frames)
