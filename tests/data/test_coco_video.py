"""The COCO-video reader: agreement with the YouTube-VIS reader, and its errors."""

from __future__ import annotations

import copy
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from support.json_changes import Change, drop, put

from mssts.data.coco_video import read_coco_video
from mssts.data.moving_shapes import MovingShapesConfig, write_dataset
from mssts.data.videos import read_videos, read_youtube_vis_value
from mssts.data.youtube_vis import VideoDataset, read_youtube_vis, to_youtube_vis
from mssts.errors import MsstsError
from mssts.evaluation import check_submission, evaluate
from mssts.media.sources import open_source
from mssts.training.config import recipe
from mssts.training.sources import training_data

HEIGHT, WIDTH = 6, 8


def rectangle(width: int) -> list[list[int]]:
    return [[0, 0, width, 0, width, 4, 0, 4]]


def image(identity: int, video: int, frame: int) -> dict[str, Any]:
    name = f"v{video}/{frame}.jpg"
    return {"id": identity, "video_id": video, "frame_id": frame, "file_name": name, "width": WIDTH, "height": HEIGHT}


def annotation(identity: int, image_id: int, instance: int, category: int, width: int, **more: Any) -> dict[str, Any]:
    entry = {"id": identity, "image_id": image_id, "instance_id": instance, "category_id": category}
    return {**entry, "segmentation": rectangle(width), **more}


def content() -> dict[str, Any]:
    """Frames out of order and with gaps, and an object that leaves and returns.

    One id occurs in two videos.
    """
    return {
        "categories": [{"id": 3, "name": "left hand"}, {"id": 17, "name": "teapot"}],
        "videos": [{"id": 2, "name": "second"}, {"id": 1, "name": "first"}],
        "images": [image(11, 1, 30), image(12, 1, 4), image(13, 1, 10), image(21, 2, 0)],
        "annotations": [
            annotation(1, 11, 5, 3, 3, bbox=[0, 0, 3, 4], area=11.5, iscrowd=0),
            annotation(2, 12, 5, 3, 2),
            annotation(3, 13, 6, 17, 5, iscrowd=1),
            annotation(4, 21, 5, 17, 7),
        ],
    }


def same_in_youtube_vis() -> dict[str, Any]:
    """The expected reading of `content`, written by hand."""
    size = {"width": WIDTH, "height": HEIGHT}
    return {
        "categories": [{"id": 3, "name": "left hand"}, {"id": 17, "name": "teapot"}],
        "videos": [
            {"id": 2, **size, "file_names": ["v2/0.jpg"]},
            {"id": 1, **size, "file_names": ["v1/4.jpg", "v1/10.jpg", "v1/30.jpg"]},
        ],
        "annotations": [
            {
                "id": 1,
                "video_id": 1,
                "category_id": 3,
                "segmentations": [rectangle(2), None, rectangle(3)],
                "bboxes": [[0, 0, 2, 4], None, [0, 0, 3, 4]],
                "areas": [8, None, 11.5],
            },
            {"id": 2, "video_id": 1, "category_id": 17, "iscrowd": 1, "segmentations": [None, rectangle(5), None]},
            {"id": 3, "video_id": 2, "category_id": 17, "segmentations": [rectangle(7)]},
        ],
    }


def write(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value))
    return path


def write_images(folder: Path) -> None:
    for entry in content()["images"]:
        path = folder / entry["file_name"]
        path.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(path), np.zeros((HEIGHT, WIDTH, 3), np.uint8))


def assert_same(found: VideoDataset, expected: VideoDataset) -> None:
    assert replace(found, source=expected.source) == expected


@pytest.mark.parametrize("key", ["instance_id", "track_id"])
def test_is_the_same_as_in_youtube_vis(tmp_path: Path, key: str) -> None:
    value = content()
    for entry in value["annotations"]:
        entry[key] = entry.pop("instance_id")
    found = read_coco_video(write(tmp_path / "coco_video.json", value))
    assert_same(found, read_youtube_vis(write(tmp_path / "youtube_vis.json", same_in_youtube_vis())))
    (first, _) = found.tracks_of(found.videos_by_id[1])
    assert [int(found.mask(first, t).sum()) for t in range(3)] == [8, 0, 12], "in the order of frame_id"


def as_coco_video(value: dict[str, Any], shuffled: random.Random) -> dict[str, Any]:
    """A YouTube-VIS file frame by frame, its images and annotations in any order."""
    images = [
        {"id": 1000 * video["id"] + t, "video_id": video["id"], "frame_id": t, "file_name": name,
         "width": video["width"], "height": video["height"]}
        for video in value["videos"]
        for t, name in enumerate(video["file_names"])
    ]  # fmt: skip
    annotations = [
        {"image_id": 1000 * track["video_id"] + t, "instance_id": track["id"], "category_id": track["category_id"],
         "iscrowd": track["iscrowd"], "segmentation": mask, "bbox": track["bboxes"][t], "area": track["areas"][t]}
        for track in value["annotations"]
        for t, mask in enumerate(track["segmentations"])
        if mask is not None
    ]  # fmt: skip
    shuffled.shuffle(images)
    shuffled.shuffle(annotations)
    annotations = [{"id": identity, **entry} for identity, entry in enumerate(annotations, 1)]
    return {"categories": value["categories"], "images": images, "annotations": annotations}


def test_shuffled_moving_shapes(tmp_path: Path) -> None:
    """A data set reads the same in any order, and evaluates the same in both formats."""
    youtube_vis = write_dataset(tmp_path, 3, 5, MovingShapesConfig(), progress=False)
    value = json.loads(youtube_vis.read_text())
    coco_video = write(tmp_path / "coco_video.json", as_coco_video(value, random.Random(0)))
    expected, found = read_youtube_vis(youtube_vis), read_videos(coco_video)
    assert sorted(found.videos, key=lambda video: video.id) == list(expected.videos)

    def tracks(dataset: VideoDataset) -> list[str]:
        return sorted(repr(replace(track, id=0)) for track in dataset.tracks)

    assert tracks(found) == tracks(expected)

    generator = np.random.default_rng(0)
    predictions = [
        {"video_id": track["video_id"], "category_id": track["category_id"], "score": float(generator.random()),
         "segmentations": track["segmentations"][1:] + track["segmentations"][:1]}
        for track in value["annotations"]
    ]  # fmt: skip
    results = write(tmp_path / "results.json", predictions)
    figures = evaluate(youtube_vis, results).to_json()
    assert 0 < figures["ap"] < 1
    assert evaluate(coco_video, results).to_json() == figures
    assert check_submission(results, coco_video).problem_count == 0


def test_videos_and_annotations_may_be_absent(tmp_path: Path) -> None:
    value = content()
    del value["videos"], value["annotations"]
    dataset = read_coco_video(write(tmp_path / "coco_video.json", value))
    assert [video.id for video in dataset.videos] == [1, 2] and dataset.tracks == ()


def test_a_mask_may_be_null_where_the_object_is_hidden(tmp_path: Path) -> None:
    value = content()
    value["annotations"][1]["segmentation"] = None
    dataset = read_coco_video(write(tmp_path / "coco_video.json", value))
    assert [rle is not None for rle in dataset.tracks[0].rles] == [False, False, True]


def test_as_youtube_vis_and_back(tmp_path: Path) -> None:
    path = write(tmp_path / "coco_video.json", content())
    dataset = read_coco_video(path)
    assert_same(read_youtube_vis(write(tmp_path / "youtube_vis.json", to_youtube_vis(dataset))), dataset)
    assert read_youtube_vis_value(path) == to_youtube_vis(dataset)


def test_each_format_is_recognised(tmp_path: Path) -> None:
    (tmp_path / "JPEGImages").mkdir()
    coco_video = write(tmp_path / "coco_video.json", content())
    # Some YouTube-VIS files have a list of images as well.
    youtube_vis = write(tmp_path / "youtube_vis.json", {**same_in_youtube_vis(), "images": []})
    assert_same(read_videos(coco_video), read_videos(youtube_vis))
    assert read_youtube_vis_value(youtube_vis) == json.loads(youtube_vis.read_text())
    assert read_videos(coco_video).images == tmp_path / "JPEGImages"
    assert read_videos(coco_video, tmp_path).images == tmp_path
    with pytest.raises(MsstsError, match="the file must be an object, not 3"):
        read_videos(write(tmp_path / "number.json", 3))


def test_predicts_and_trains_on_it(tmp_path: Path) -> None:
    write_images(tmp_path)
    path = write(tmp_path / "instances.json", content())
    videos = open_source(path).videos
    assert [(video.id, video.name, video.length) for video in videos] == [(2, "v2", 1), (1, "v1", 3)]
    data = training_data(recipe("tiny"), seed=0, data=tmp_path)
    assert [category.name for category in data.categories] == ["left hand", "teapot"]
    (tmp_path / "v1" / "10.jpg").unlink()
    with pytest.raises(MsstsError, match=r"10\.jpg: no such image; instances\.json lists it as a frame of video 1"):
        open_source(path)


BROKEN: dict[str, tuple[Change, str]] = {
    "no categories": (drop("categories"), "the file has no field 'categories'"),
    "category id twice": (put("categories", 1, "id", to=3), "categories[1] has the id 3, which categories[0]"),
    "images no list": (put("images", to={}), "images must be a list, not {}"),
    "image no object": (put("images", 2, to=4), "images[2] must be an object, not 4"),
    "image id twice": (put("images", 2, "id", to=11), "images[2] has the id 11, which images[0] has already"),
    "plain COCO": (drop("images", 0, "video_id"), "images[0] has no field 'video_id'"),
    "no frame_id": (drop("images", 1, "frame_id"), "images[1] has no field 'frame_id'"),
    "frame_id a fraction": (put("images", 1, "frame_id", to=0.5), "images[1].frame_id must be an integer"),
    "frame_id twice": (put("images", 2, "frame_id", to=30), "images[2].frame_id is 30, which images[0] of video 1 has"),
    "unknown video": (put("images", 3, "video_id", to=9), "images[3].video_id is 9, which no entry of videos has"),
    "video_id a list": (put("images", 3, "video_id", to=[1]), "images[3].video_id must be an integer"),
    "video id twice": (put("videos", 1, "id", to=2), "videos[1] has the id 2, which videos[0] has already"),
    "video without id": (drop("videos", 0, "id"), "videos[0] has no field 'id'"),
    "video without frames": (
        lambda value: value["videos"].append({"id": 8}),
        "videos[2] has no entry in images; a video has at least 1 frame",
    ),
    "width 0": (put("images", 3, "width", to=0), "images[3].width must be from 1"),
    "sizes differ": (
        put("images", 0, "height", to=7),
        "images[0].height is 7, but the height of images[1] of the same video is 6",
    ),
    "no file_name": (drop("images", 3, "file_name"), "images[3] has no field 'file_name'"),
    "name outside": (put("images", 3, "file_name", to="../a.jpg"), "images[3].file_name must be a path inside"),
    "annotations no list": (put("annotations", to="x"), "annotations must be a list"),
    "unknown image": (put("annotations", 1, "image_id", to=99), "annotations[1].image_id is 99, which no entry of im"),
    "unknown category": (
        put("annotations", 1, "category_id", to=4),
        "annotations[1].category_id is 4, which no entry of categories has",
    ),
    "no object's id": (drop("annotations", 1, "instance_id"), "annotations[1] has neither a field 'instance_id' nor"),
    "object's id a string": (
        put("annotations", 1, "instance_id", to="5"),
        "annotations[1].instance_id must be an integer",
    ),
    "object twice in an image": (
        put("annotations", 1, "image_id", to=11),
        "annotations[1].instance_id is 5, which annotations[0] of the same image has already",
    ),
    "object of two categories": (
        put("annotations", 1, "category_id", to=17),
        "annotations[1].category_id is 17, but annotations[0], the same object of video 1, has 3",
    ),
    "object half a crowd": (
        put("annotations", 1, "iscrowd", to=1),
        "annotations[1] has iscrowd 1, but annotations[0], the same object of video 1, has 0",
    ),
    "crowd 2": (put("annotations", 1, "iscrowd", to=2), "annotations[1].iscrowd must be 0 or 1, not 2"),
    "boxes alone": (drop("annotations", 1, "segmentation"), "annotations[1] has no field 'segmentation'"),
    "mask of another size": (
        put("annotations", 1, "segmentation", to={"size": [8, 6], "counts": [48]}),
        "annotations[1].segmentation.size is [8, 6], but image 12 is [6, 8] (height, width)",
    ),
    "polygon odd": (put("annotations", 1, "segmentation", to=[[1] * 7]), "annotations[1].segmentation[0] has 7 number"),
    "box of 3": (put("annotations", 1, "bbox", to=[1, 2, 3]), "annotations[1].bbox must be x, y, width, height"),
    "area a string": (put("annotations", 1, "area", to="8"), "annotations[1].area must be a number"),
}


@pytest.mark.parametrize(("change", "named"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_file_gives_one_line_with_the_file_and_the_field(tmp_path: Path, change: Change, named: str) -> None:
    value = copy.deepcopy(content())
    change(value)
    path = write(tmp_path / "coco_video.json", value)
    with pytest.raises(MsstsError) as caught:
        read_videos(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and named in message
    assert "\n" not in message and len(message) < len(str(path)) + 200
