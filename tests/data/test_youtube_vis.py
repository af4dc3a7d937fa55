"""The YouTube-VIS reader: the forms it accepts, and its messages about others."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from support.json_changes import Change, drop, put

from mssts.data.youtube_vis import read_youtube_vis
from mssts.errors import MsstsError

HEIGHT, WIDTH = 6, 8

# Pixels 1…3 × 2…5 in every form that COCO has. Runs go down the columns, background first.
MASK = np.zeros((HEIGHT, WIDTH), bool)
MASK[1:4, 2:6] = True
UNCOMPRESSED = {"size": [HEIGHT, WIDTH], "counts": [13, 3, 3, 3, 3, 3, 3, 3, 14]}
COMPRESSED = {"size": [HEIGHT, WIDTH], "counts": "=3300000;"}
POLYGON = [[2, 1, 6, 1, 6, 4, 2, 4]]


def content() -> dict[str, Any]:
    """A small file without fault: ids neither from 0 nor in order."""
    return {
        "info": {},
        "videos": [
            {"id": 7, "width": WIDTH, "height": HEIGHT, "length": 2, "file_names": ["a/0.jpg", "a/1.jpg"]},
            {"id": 3, "width": WIDTH, "height": HEIGHT, "file_names": ["b/0.jpg"]},
        ],
        "categories": [{"id": 20, "name": "cat"}, {"id": 10, "name": "dog"}],
        "annotations": [
            {
                "id": 1,
                "video_id": 7,
                "category_id": 10,
                "iscrowd": 0,
                "height": HEIGHT,
                "width": WIDTH,
                "segmentations": [COMPRESSED, None],
                "bboxes": [[2, 1, 4, 3], None],
                "areas": [12, None],
            },
            {"id": 2, "video_id": 7, "category_id": 20, "iscrowd": 1, "segmentations": [POLYGON, UNCOMPRESSED]},
            {"id": 9, "video_id": 3, "category_id": 20, "segmentations": [None]},
        ],
    }


def write(folder: Path, value: Any) -> Path:
    path = folder / "instances.json"
    path.write_text(json.dumps(value))
    return path


def test_reads_every_form_of_mask(tmp_path: Path) -> None:
    dataset = read_youtube_vis(write(tmp_path, content()))
    assert [category.name for category in dataset.categories] == ["cat", "dog"]
    assert dataset.label_of == {20: 0, 10: 1}
    first, second = dataset.tracks_of(dataset.videos[0])
    np.testing.assert_array_equal(dataset.mask(first, 0), MASK)
    assert not dataset.mask(first, 1).any()
    np.testing.assert_array_equal(dataset.mask(second, 0), MASK)
    np.testing.assert_array_equal(dataset.mask(second, 1), MASK)
    assert not first.iscrowd and second.iscrowd
    assert first.bboxes == ((2, 1, 4, 3), None) and first.areas == (12, None)
    assert second.bboxes == ((2, 1, 4, 3),) * 2 and second.areas == (12, 12), "derived where the file has none"


@pytest.mark.parametrize("absent", [True, False])
def test_a_test_split_has_no_annotations(tmp_path: Path, absent: bool) -> None:
    value = {**content(), "annotations": None}
    if absent:
        del value["annotations"]
    dataset = read_youtube_vis(write(tmp_path, value))
    assert dataset.tracks == () and dataset.tracks_of(dataset.videos[0]) == ()


def rle(counts: Any) -> dict[str, Any]:
    return {"size": [HEIGHT, WIDTH], "counts": counts}


SEGMENTATION = ("annotations", 0, "segmentations", 0)

BROKEN: dict[str, tuple[Change, str]] = {
    "no videos": (drop("videos"), "the file has no field 'videos'"),
    "no categories": (drop("categories"), "the file has no field 'categories'"),
    "videos no list": (put("videos", to={}), "videos must be a list"),
    "annotations no list": (put("annotations", to="x"), "annotations must be a list"),
    "video no object": (put("videos", 1, to=4), "videos[1] must be an object, not 4"),
    "no width": (drop("videos", 0, "width"), "videos[0] has no field 'width'"),
    "width 0": (put("videos", 0, "width", to=0), "videos[0].width must be from 1"),
    "width enormous": (put("videos", 0, "width", to=10**30), "videos[0].width must be from 1"),
    "width a string": (put("videos", 0, "width", to="8"), "videos[0].width must be an integer"),
    "width a truth value": (put("videos", 0, "width", to=True), "videos[0].width must be an integer"),
    "id a fraction": (put("videos", 0, "id", to=1.5), "videos[0].id must be an integer"),
    "length differs": (put("videos", 0, "length", to=3), "videos[0].length is 3, but the number of file_names is 2"),
    "no frames": (put("videos", 1, "file_names", to=[]), "videos[1].file_names is empty"),
    "name no string": (
        put("videos", 0, "file_names", 1, to=None),
        "videos[0].file_names[1] must be a non-empty string",
    ),
    "name outside": (put("videos", 0, "file_names", 0, to="../x.jpg"), "videos[0].file_names[0] must be a path inside"),
    "name absolute": (put("videos", 0, "file_names", 0, to="/x.jpg"), "videos[0].file_names[0] must be a path inside"),
    "video id twice": (put("videos", 1, "id", to=7), "videos[1] has the id 7, which videos[0] has already"),
    "category id twice": (put("categories", 1, "id", to=20), "categories[1] has the id 20"),
    "category without name": (drop("categories", 0, "name"), "categories[0] has no field 'name'"),
    "annotation id twice": (put("annotations", 2, "id", to=1), "annotations[2] has the id 1"),
    "no id": (drop("annotations", 0, "id"), "annotations[0] has no field 'id'"),
    "unknown video": (
        put("annotations", 0, "video_id", to=8),
        "annotations[0].video_id is 8, which no entry of videos",
    ),
    "unknown category": (put("annotations", 0, "category_id", to=1), "annotations[0].category_id is 1, which no entry"),
    "other height": (
        put("annotations", 0, "height", to=5),
        "annotations[0].height is 5, but the height of video 7 is 6",
    ),
    "crowd 2": (put("annotations", 0, "iscrowd", to=2), "annotations[0].iscrowd must be 0 or 1"),
    "no masks": (drop("annotations", 0, "segmentations"), "annotations[0] has no field 'segmentations'"),
    "masks null": (put("annotations", 0, "segmentations", to=None), "annotations[0].segmentations must be a list"),
    "too few masks": (
        put("annotations", 0, "segmentations", to=[None]),
        "annotations[0].segmentations has 1 entries, video 7 has 2 frames",
    ),
    "too many boxes": (
        put("annotations", 0, "bboxes", to=[None] * 3),
        "annotations[0].bboxes has 3 entries, video 7 has 2 frames",
    ),
    "too few areas": (put("annotations", 0, "areas", to=[]), "annotations[0].areas has 0 entries"),
    "box of 3": (put("annotations", 0, "bboxes", 0, to=[1, 2, 3]), "annotations[0].bboxes[0] must be x, y, width"),
    "box inside out": (put("annotations", 0, "bboxes", 0, to=[1, 2, -3, 4]), "annotations[0].bboxes[0] has a negative"),
    "box of words": (
        put("annotations", 0, "bboxes", 0, to=list("abcd")),
        "annotations[0].bboxes[0][0] must be a number",
    ),
    "area not a number": (
        put("annotations", 0, "areas", 0, to=float("nan")),
        "annotations[0].areas[0] must be a number",
    ),
    "area enormous": (put("annotations", 0, "areas", 0, to=10**400), "annotations[0].areas[0] must be a number"),
    "mask a number": (put(*SEGMENTATION, to=5), "annotations[0].segmentations[0] must be an object"),
    "mask without counts": (
        put(*SEGMENTATION, to={"size": [6, 8]}),
        "annotations[0].segmentations[0] has no field 'co",
    ),
    "mask without size": (
        put(*SEGMENTATION, to={"counts": "1"}),
        "annotations[0].segmentations[0] has no field 'size'",
    ),
    "mask turned": (
        put(*SEGMENTATION, to={**COMPRESSED, "size": [WIDTH, HEIGHT]}),
        "annotations[0].segmentations[0].size is [8, 6], but video 7 is [6, 8]",
    ),
    "runs too short": (
        put(*SEGMENTATION, to=rle([13, 3])),
        "segmentations[0].counts covers 16 pixels, the frame has 48",
    ),
    "runs negative": (
        put(*SEGMENTATION, to=rle([50, -2])),
        "segmentations[0].counts[1] must be an integer of at least 0",
    ),
    "runs of fractions": (put(*SEGMENTATION, to=rle([48.0])), "segmentations[0].counts[0] must be an integer"),
    "string too short": (
        put(*SEGMENTATION, to=rle("=3300000")),
        "segmentations[0].counts is a COCO run-length string, but not",
    ),
    "string cut": (
        put(*SEGMENTATION, to=rle("=33P")),
        "segmentations[0].counts is not a COCO run-length string: '=33P'",
    ),
    "string of other letters": (put(*SEGMENTATION, to=rle("~é")), "segmentations[0].counts is not a COCO run-length"),
    "half a surrogate": (put(*SEGMENTATION, to=rle("\ud800")), "segmentations[0].counts is not a COCO run-length"),
    "string with a negative run": (
        put(*SEGMENTATION, to=rle("`1N")),
        "segmentations[0].counts is a COCO run-length string, but not of the 48 pixels",
    ),
    "string of one huge number": (put(*SEGMENTATION, to=rle("o" * 30 + "1")), "segmentations[0].counts is not a COCO"),
    "string empty": (put(*SEGMENTATION, to=rle("")), "segmentations[0].counts must be a non-empty string"),
    "no polygon": (put(*SEGMENTATION, to=[]), "annotations[0].segmentations[0] is an empty list of polygons"),
    "polygon of 2 points": (put(*SEGMENTATION, to=[[1, 1, 2, 2]]), "annotations[0].segmentations[0][0] has 4 numbers"),
    "polygon odd": (put(*SEGMENTATION, to=[[1] * 7]), "annotations[0].segmentations[0][0] has 7 numbers"),
    "polygon of words": (put(*SEGMENTATION, to=[["a"] * 6]), "annotations[0].segmentations[0][0][0] must be a number"),
    "polygon far away": (put(*SEGMENTATION, to=[[0, 0, 1e9, 0, 5, 5]]), "segmentations[0][0] lies far outside"),
}


@pytest.mark.parametrize(("change", "named"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_file_gives_one_line_with_the_file_and_the_field(tmp_path: Path, change: Change, named: str) -> None:
    value = copy.deepcopy(content())
    change(value)
    path = write(tmp_path, value)
    with pytest.raises(MsstsError) as caught:
        read_youtube_vis(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and named in message
    assert "\n" not in message and len(message) < len(str(path)) + 200


def test_a_file_that_is_no_object(tmp_path: Path) -> None:
    with pytest.raises(MsstsError, match=r"instances\.json: the file must be an object, not \[\]"):
        read_youtube_vis(write(tmp_path, []))


def test_images_lie_in_jpegimages_or_beside_the_file_or_where_given(tmp_path: Path) -> None:
    path = write(tmp_path, content())
    assert read_youtube_vis(path).images == tmp_path
    (tmp_path / "JPEGImages").mkdir()
    assert read_youtube_vis(path).images == tmp_path / "JPEGImages"
    (tmp_path / "elsewhere").mkdir()
    assert read_youtube_vis(path, tmp_path / "elsewhere").images == tmp_path / "elsewhere"
    with pytest.raises(MsstsError, match="absent: no such folder"):
        read_youtube_vis(path, tmp_path / "absent")


def write_images(folder: Path) -> None:
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    image[:] = (10, 20, 250)  # OpenCV writes BGR: red
    for name in ("a/0.jpg", "a/1.jpg", "b/0.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / name), image)


def test_frames_are_read_as_rgb(tmp_path: Path) -> None:
    write_images(tmp_path / "JPEGImages")
    dataset = read_youtube_vis(write(tmp_path, content()))
    dataset.check_images()
    frame = dataset.read_frame(dataset.videos[0], 1)
    assert frame.shape == (HEIGHT, WIDTH, 3) and frame.dtype == np.uint8
    assert np.abs(frame.astype(int) - (250, 20, 10)).max() <= 4  # JPEG is not exact


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    write_images(tmp_path)
    (tmp_path / "b/0.jpg").unlink()
    dataset = read_youtube_vis(write(tmp_path, content()))
    expected = r"b/0\.jpg: no such image; instances\.json lists it as a frame of video 3"
    with pytest.raises(MsstsError, match=expected):
        dataset.check_images()
    with pytest.raises(MsstsError, match=r"b/0\.jpg: No such file or directory; instances\.json lists it"):
        dataset.read_frame(dataset.videos[1], 0)


@pytest.mark.parametrize("data", [b"", b"not a picture"])
def test_a_broken_image_is_named(tmp_path: Path, data: bytes) -> None:
    write_images(tmp_path)
    (tmp_path / "b/0.jpg").write_bytes(data)
    dataset = read_youtube_vis(write(tmp_path, content()))
    with pytest.raises(MsstsError, match=r"b/0\.jpg: not an image that can be decoded"):
        dataset.read_frame(dataset.videos[1], 0)


def test_an_image_of_another_size_is_named(tmp_path: Path) -> None:
    write_images(tmp_path)
    cv2.imwrite(str(tmp_path / "b/0.jpg"), np.zeros((WIDTH, HEIGHT, 3), np.uint8))
    dataset = read_youtube_vis(write(tmp_path, content()))
    with pytest.raises(MsstsError, match=r"b/0\.jpg: 6x8 pixels, expected 8x6"):
        dataset.read_frame(dataset.videos[1], 0)
