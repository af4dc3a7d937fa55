"""COCO: its reader and its categories in YouTube-VIS."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
from support.coco_files import COCO_IDS, content, write, youtube_vis
from support.json_changes import Change, put

from mssts.data.coco import COCO_TO_YOUTUBE_VIS_2019, COCO_TO_YOUTUBE_VIS_2021, category_names, keep_for, read_coco
from mssts.data.youtube_vis import VideoDataset
from mssts.data.youtube_vis_classes import YOUTUBE_VIS_2019, YOUTUBE_VIS_2021
from mssts.errors import MsstsError
from mssts.manifest import Category

HEIGHT, WIDTH = 120, 160
# Pixels 40…69 × 60…99; its outline as COCO draws it.


def test_an_image_is_a_video_of_one_frame(coco: VideoDataset) -> None:
    assert [video.id for video in coco.videos] == [30, 10, 20] and all(video.length == 1 for video in coco.videos)
    (track,) = coco.tracks_of(coco.videos[0])
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[40:70, 60:100] = True
    np.testing.assert_array_equal(coco.mask(track, 0), expected)
    assert track.bboxes == ((60, 40, 40, 30),) and track.areas == (1200,) and not track.iscrowd
    derived = coco.tracks_of(coco.videos[1])[1]
    assert derived.bboxes == ((60, 40, 40, 30),) and derived.areas == (1200,)
    assert coco.read_frame(coco.videos[0], 0)[50, 80].tolist() == [250, 20, 20]


def test_images_lie_where_coco_puts_them(tmp_path: Path) -> None:
    for name in ("annotations", "train2017"):
        (tmp_path / name).mkdir()
    path = write(tmp_path / "annotations", content())
    assert read_coco(path).images == tmp_path / "annotations"
    official = path.rename(path.with_name("instances_train2017.json"))
    assert read_coco(official).images == tmp_path / "train2017"
    assert read_coco(official, tmp_path).images == tmp_path
    with pytest.raises(MsstsError, match=r"instances_train2017\.json lists it as image 30$"):
        read_coco(official).check_images()


BROKEN: dict[str, tuple[Change, str]] = {
    "no images": (lambda value: value.pop("images"), "the file has no field 'images'"),
    "no annotations": (lambda value: value.pop("annotations"), "the file has no field 'annotations'"),
    "no categories": (lambda value: value.pop("categories"), "the file has no field 'categories'"),
    "image no object": (put("images", 1, to="b.png"), "images[1] must be an object"),
    "no height": (lambda value: value["images"][2].pop("height"), "images[2] has no field 'height'"),
    "width of words": (put("images", 0, "width", to="160"), "images[0].width must be an integer"),
    "outside": (put("images", 0, "file_name", to="../a.png"), "images[0].file_name must be a path inside"),
    "image id twice": (put("images", 2, "id", to=30), "images[2] has the id 30, which images[0] has already"),
    "annotation id twice": (put("annotations", 4, "id", to=1), "annotations[4] has the id 1"),
    "unknown image": (
        put("annotations", 0, "image_id", to=5),
        "annotations[0].image_id is 5, which no entry of images",
    ),
    "unknown category": (put("annotations", 0, "category_id", to=99), "annotations[0].category_id is 99, which no"),
    "no mask": (
        lambda value: value["annotations"][1].pop("segmentation"),
        "annotations[1] has no field 'segmentation'",
    ),
    "mask null": (put("annotations", 1, "segmentation", to=None), "annotations[1].segmentation must be an object"),
    "no polygon": (put("annotations", 1, "segmentation", to=[]), "annotations[1].segmentation is an empty list"),
    "polygon of words": (
        put("annotations", 0, "segmentation", 0, 3, to="4"),
        "annotations[0].segmentation[0][3] must be a number",
    ),
    "polygon of nothing": (
        put("annotations", 0, "segmentation", 0, 3, to=float("nan")),
        "annotations[0].segmentation[0][3] must be a number",
    ),
    "mask of another size": (
        put("annotations", 0, "segmentation", to={"size": [WIDTH, HEIGHT], "counts": [WIDTH * HEIGHT]}),
        "annotations[0].segmentation.size is [160, 120], but image 30 is [120, 160]",
    ),
    "runs too long": (
        put("annotations", 0, "segmentation", to={"size": [HEIGHT, WIDTH], "counts": [20000]}),
        "annotations[0].segmentation.counts covers 20000 pixels, the frame has 19200",
    ),
    "box of 3": (put("annotations", 0, "bbox", to=[1, 2, 3]), "annotations[0].bbox must be x, y, width, height"),
    "crowd 2": (put("annotations", 0, "iscrowd", to=2), "annotations[0].iscrowd must be 0 or 1"),
}


@pytest.mark.parametrize(("change", "named"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_file_gives_one_line_with_the_file_and_the_field(tmp_path: Path, change: Change, named: str) -> None:
    value = copy.deepcopy(content())
    change(value)
    path = write(tmp_path, value)
    with pytest.raises(MsstsError) as caught:
        read_coco(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and named in message and "\n" not in message


# Categories


def test_the_categories_are_those_of_the_released_joint_training() -> None:
    """The ids of `category_map` in the released datasets/coco2seq.py.

    For 2021, they are those in its comment.
    """
    released_2019 = {
        1: 1, 2: 21, 3: 6, 4: 21, 5: 28, 7: 17, 8: 29, 9: 34, 17: 14, 18: 8, 19: 18, 21: 15, 22: 32, 23: 20, 24: 30,
        25: 22, 36: 33, 41: 5, 42: 27, 43: 40,
    }  # fmt: skip
    released_2021 = {
        1: 26, 2: 23, 3: 5, 4: 23, 5: 1, 7: 36, 8: 37, 9: 4, 16: 3, 17: 6, 18: 9, 19: 19, 21: 7, 22: 12, 23: 2, 24: 40,
        25: 18, 36: 31, 41: 29, 42: 33, 43: 34,
    }  # fmt: skip
    for table, names, expected in (
        (COCO_TO_YOUTUBE_VIS_2019, YOUTUBE_VIS_2019, released_2019),
        (COCO_TO_YOUTUBE_VIS_2021, YOUTUBE_VIS_2021, {**released_2021, 34: names_id("flying_disc")}),
    ):
        assert {COCO_IDS[coco]: names.index(name) + 1 for coco, name in table.items()} == expected
        assert category_names(youtube_vis(names)) == table


def names_id(name: str) -> int:
    return YOUTUBE_VIS_2021.index(name) + 1


def test_what_youtube_vis_lacks_is_dropped_and_counted(coco: VideoDataset) -> None:
    kept, dropped = keep_for(coco, youtube_vis(YOUTUBE_VIS_2019))
    assert dropped == {"chair": 2, "mouse": 1}
    assert [YOUTUBE_VIS_2019[kept.label_of[track.category_id]] for track in kept.tracks] == ["sedan", "dog"]
    assert [video.id for video in kept.videos] == [30, 10], "an image with nothing left is no image to learn from"


def test_other_data_sets_share_the_names_that_coco_has(coco: VideoDataset) -> None:
    kept, dropped = keep_for(coco, [Category(7, "mouse"), Category(3, "tennis_racket"), Category(9, "robot")])
    assert dropped == {"car": 1, "chair": 2, "dog": 1}
    assert [(track.id, kept.label_of[track.category_id]) for track in kept.tracks] == [(5, 0)]
    with pytest.raises(MsstsError, match=r"instances\.json: no annotation of a category of the videos"):
        keep_for(coco, [Category(1, "robot")])
