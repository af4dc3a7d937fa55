"""Folders of images: which files are frames, and in which order."""

from __future__ import annotations

import random
from pathlib import Path

import cv2
import numpy as np
import pytest

from mssts.errors import MsstsError
from mssts.media.folders import frame_paths, in_order


def write(path: Path, grey: bool = False) -> Path:
    image = np.full((24, 32) if grey else (24, 32, 3), 100, np.uint8)
    path.write_bytes(cv2.imencode(path.suffix, image)[1].tobytes())
    return path


@pytest.mark.parametrize(
    "names",
    [
        ["frame_1", "frame_2", "frame_10", "frame_100"],
        ["1.05", "1.4", "1.5", "2.0"],
        ["t1699999999.9", "t1700000000.25", "t1700000000.5"],
        ["0", "5e-05", "0.0001", "0.5", "1"],
        ["-2", "-1", "0", "10"],
        ["9.5", "10.0", "10.5"],
        ["1.8", "1.9", "1.10", "1.11"],  # a counter behind the point, as 1.10 is not written of a fraction
        ["cam1.1", "cam1.2", "cam1.10", "cam1.100"],
        ["2024-01-05T12:30:05.25", "2024-01-05T12:30:05.3", "2024-01-05T12:30:06"],
        ["12.9.1", "12.30.5", "12.30.06"],
        ["clip.0009", "clip.0010", "clip.0100"],
        ["scene1_9", "scene1_10", "scene2_1"],
    ],
)
def test_names_are_in_the_order_of_their_numbers(names: list[str]) -> None:
    paths = [Path(f"{name}.jpg") for name in names]
    for seed in range(3):
        shuffled = random.Random(seed).sample(paths, len(paths))
        assert in_order(shuffled) == paths


def test_hidden_files_are_no_frames(tmp_path: Path) -> None:
    frames = [write(tmp_path / f"{i:05}.jpg") for i in range(3)]
    (tmp_path / "._00000.jpg").write_bytes(b"\x00\x05\x16\x07Mac OS X")
    write(tmp_path / ".thumbnail.png")
    (tmp_path / "Thumbs.db").touch()
    (tmp_path / "masks").mkdir()
    write(tmp_path / "masks" / "00000.png")
    assert frame_paths(tmp_path) == frames


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ("00000.png", "3 .jpg and 1 .png images"),
        ("00007.webp", "3 .jpg and 1 .webp images"),
        ("00007.tif", "3 .jpg and 1 .tif images"),
        ("00000_mask.jpg", "00000.jpg and 00000_mask.jpg have the same number"),
        ("mask_00002.JPEG", "00002.jpg and mask_00002.JPEG have the same number"),
        ("00000_1.jpg", "00000_1.jpg and 00000.jpg have the same number"),
        ("00000.jpeg", "00000.jpeg and 00000.jpg have the same number"),
        ("cover.jpg", "cover.jpg has no number, unlike 00000.jpg"),
    ],
)
def test_what_does_not_belong_to_the_frames_is_refused(extra: str, says: str, tmp_path: Path) -> None:
    for i in range(3):
        write(tmp_path / f"{i:05}.jpg")
    if Path(extra).suffix == ".webp":
        (tmp_path / extra).write_bytes(b"RIFF")
    else:
        write(tmp_path / extra)
    with pytest.raises(MsstsError) as refused:
        frame_paths(tmp_path)
    assert str(refused.value).startswith(f"{tmp_path}: {says}")


@pytest.mark.parametrize("kind", ["palette", "grey"])
def test_masks_among_frames_of_the_same_kind_are_refused(kind: str, tmp_path: Path) -> None:
    for i in range(4):
        mask = write(tmp_path / f"{i}.png", grey=i % 2 == 1)
        if kind == "palette" and i % 2 == 1:
            data = bytearray(mask.read_bytes())
            data[25] = 3  # the colour type, which is all that is looked at
            mask.write_bytes(data)
    with pytest.raises(MsstsError, match=r"2 of 4 images have a palette or one channel.*1\.png"):
        frame_paths(tmp_path)


def test_a_grey_film_is_one(tmp_path: Path) -> None:
    for suffix in (".jpg", ".png"):
        folder = tmp_path / suffix[1:]
        folder.mkdir()
        paths = [write(folder / f"{i}{suffix}", grey=True) for i in range(3)]
        assert frame_paths(folder) == paths


def test_a_folder_of_images_that_are_not_read_says_which(tmp_path: Path) -> None:
    (tmp_path / "0.webp").write_bytes(b"RIFF")
    with pytest.raises(MsstsError, match=r"1 \.webp images, which are not read; convert"):
        frame_paths(tmp_path)
