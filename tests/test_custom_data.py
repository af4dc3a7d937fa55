"""docs/custom-data.md, taken at its word."""

from __future__ import annotations

import json
import runpy
import shlex
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from mssts.cli import parser
from mssts.data.youtube_vis import read_youtube_vis

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "custom-data.md").read_text(encoding="utf-8")
BLOCKS = PAGE.split("```")[1::2]  # each begins with its language, or an empty line
COMMANDS = [line for block in BLOCKS for line in block.splitlines() if line.startswith("mssts ")]
SIZE = (20, 30)


def test_there_are_commands() -> None:
    assert {command.split()[1] for command in COMMANDS} == {"train", "predict", "evaluate", "export", "serve"}


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_is_one(command: str) -> None:
    parser().parse_args(shlex.split(command, comments=True)[1:])


@pytest.mark.parametrize("key", ["instance_id", "track_id"])
def test_coco_video_becomes_youtube_vis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    """Two videos, their frames out of order; an object that leaves and returns, and two of one id in two videos."""
    (script,) = (block.removeprefix("python\n") for block in BLOCKS if block.startswith("python\n"))
    (tmp_path / "convert.py").write_text(script)

    frames = [(11, 1, 2), (12, 1, 0), (13, 1, 1), (21, 2, 0)]  # id, video, frame
    images = []
    for identity, video, frame in frames:
        name = f"v{video}/{frame}.jpg"
        (tmp_path / "JPEGImages" / f"v{video}").mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / "JPEGImages" / name), np.zeros((*SIZE, 3), np.uint8))
        image = {"id": identity, "video_id": video, "frame_id": frame, "file_name": name}
        images.append({**image, "height": SIZE[0], "width": SIZE[1]})
    seen = [(12, 5, 3, 4), (11, 5, 3, 6), (13, 6, 17, 8), (21, 5, 17, 10)]  # image, object, category, width
    annotations = [
        {"id": i, "image_id": image, key: track, "category_id": category,
         "segmentation": [[0, 0, width, 0, width, 10, 0, 10]]}
        for i, (image, track, category, width) in enumerate(seen, 1)
    ]  # fmt: skip
    categories = [{"id": 3, "name": "left hand"}, {"id": 17, "name": "teapot"}]
    videos = [{"id": 1, "name": "v1"}, {"id": 2, "name": "v2"}]
    value = {"videos": videos, "images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "coco_video.json").write_text(json.dumps(value))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["convert.py", "coco_video.json", "instances.json"])
    runpy.run_path("convert.py")

    dataset = read_youtube_vis(tmp_path / "instances.json")
    dataset.check_images()
    assert dataset.videos_by_id[1].file_names == ("v1/0.jpg", "v1/1.jpg", "v1/2.jpg")
    areas = {
        (track.video_id, track.category_id): [int(dataset.mask(track, t).sum()) for t in range(len(track.rles))]
        for track in dataset.tracks
    }
    assert areas == {(1, 3): [40, 0, 60], (1, 17): [0, 80, 0], (2, 17): [100]}
