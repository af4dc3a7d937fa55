"""Sources of many videos: folders and lists."""

from __future__ import annotations

import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
from support.bulk import write_video

from mssts.errors import MsstsError
from mssts.media.sources import list_source, open_source


def write_images(folder: Path, count: int = 3) -> Path:
    folder.mkdir(parents=True)
    for t in range(count):
        cv2.imwrite(str(folder / f"{t}.png"), np.full((16, 24, 3), 40 * t, np.uint8))
    return folder


def test_a_folder_of_videos(tmp_path: Path) -> None:
    for n, name in enumerate(("b.mp4", "a.mp4", "c.avi"), 2):
        write_video(tmp_path / name, n)
    (tmp_path / "notes.md").write_text("no video")
    (tmp_path / ".hidden.mp4").write_bytes(b"")
    source = open_source(tmp_path)
    assert [(video.id, video.name) for video in source.videos] == [(1, "a"), (2, "b"), (3, "c")]
    assert [len(list(video.frames())) for video in source.videos] == [3, 2, 4]


def test_a_folder_of_frames_may_hold_their_video(tmp_path: Path) -> None:
    write_images(tmp_path / "scene")
    write_video(tmp_path / "scene" / "overlay.mp4", 2)
    (video,) = open_source(tmp_path / "scene").videos
    assert (video.name, video.length) == ("scene", 3)
    write_video(tmp_path / "scene" / "more.mp4", 2)
    with pytest.raises(MsstsError, match=r"2 videos and 3 images .*expected videos, or the frames of one"):
        open_source(tmp_path / "scene")


def test_a_list_of_paths(tmp_path: Path) -> None:
    write_video(tmp_path / "one" / "video.mp4", 2)
    write_video(tmp_path / "two" / "video.mp4", 4)
    write_images(tmp_path / "frames")
    listed = tmp_path / "list.txt"
    listed.write_text(f"# ours\none/video.mp4\n\n{tmp_path / 'two' / 'video.mp4'}\nframes\n")
    source = open_source(listed)
    assert [video.name for video in source.videos] == ["video_1", "video_2", "video_3"], "as two have one name"
    assert [len(list(video.frames())) for video in source.videos] == [2, 4, 3]


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"\n# nothing\n", "lists no video"), (b"\xff\xfe\x00", "not UTF-8"), (b"gone.mp4\n", "gone.mp4: no such file")],
)
def test_a_list_that_is_wrong(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(content)
    with pytest.raises(MsstsError, match=words):
        open_source(path)


def test_a_data_set_is_no_video_of_a_list(tmp_path: Path) -> None:
    (tmp_path / "set.json").write_text("{}")
    (tmp_path / "list.txt").write_text("set.json\n")
    with pytest.raises(MsstsError, match="a data set in a list"):
        open_source(tmp_path / "list.txt")


def test_a_list_opens_nothing_before_it_is_asked(tmp_path: Path) -> None:
    """A broken video is found when it is opened, and items are small."""
    write_video(tmp_path / "a.mp4", 30)
    (tmp_path / "b.mp4").write_bytes(b"broken")
    first, second = list_source(tmp_path).items
    assert first.weight() > second.weight() > 0
    assert len(pickle.dumps(first)) < 1000
    assert first.open().name == "a"
    with pytest.raises(MsstsError, match=r"b\.mp4"):
        second.open()
    assert first.weight() == (tmp_path / "a.mp4").stat().st_size
