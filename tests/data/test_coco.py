"""COCO: its reader, its categories in YouTube-VIS, its images as pseudo clips, and joint training."""

from __future__ import annotations

import copy
import json
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from support.json_changes import Change, put

from mssts.cli import main
from mssts.data.clips import Clip, ClipDataset, ClipTransform
from mssts.data.coco import COCO_TO_YOUTUBE_VIS_2019, COCO_TO_YOUTUBE_VIS_2021, category_names, keep_for, read_coco
from mssts.data.joint_clips import JointClips
from mssts.data.moving_shapes import MovingShapesConfig, write_dataset
from mssts.data.pseudo_clips import CameraMotion, PseudoClipDataset, draw_view
from mssts.data.youtube_vis import VideoDataset, read_youtube_vis
from mssts.data.youtube_vis_classes import YOUTUBE_VIS_2019, YOUTUBE_VIS_2021
from mssts.errors import MsstsError
from mssts.manifest import Category
from mssts.model.config import PRESETS
from mssts.training.batches import batches, batches_in_epoch
from mssts.training.config import recipe

HEIGHT, WIDTH = 120, 160
# Pixels 40…69 × 60…99; its outline as COCO draws it.
SQUARE = [60, 40, 100, 40, 100, 70, 60, 70]
CORNER = [0, 0, 8, 0, 8, 8, 0, 8]

# COCO's own ids of the categories that these tests name.
COCO_IDS = {
    "person": 1, "bicycle": 2, "car": 3, "motorcycle": 4, "airplane": 5, "train": 7, "truck": 8, "boat": 9, "bird": 16,
    "cat": 17, "dog": 18, "horse": 19, "cow": 21, "elephant": 22, "bear": 23, "zebra": 24, "giraffe": 25, "frisbee": 34,
    "snowboard": 36, "skateboard": 41, "surfboard": 42, "tennis racket": 43, "chair": 62, "mouse": 74,
}  # fmt: skip


def annotation(identity: int, image: int, category: str, polygon: list[float], **more: Any) -> dict[str, Any]:
    entry = {"id": identity, "image_id": image, "category_id": COCO_IDS[category], "segmentation": [polygon]}
    return {**entry, **more}


def content() -> dict[str, Any]:
    return {
        "images": [
            {"id": 30, "file_name": "a.png", "height": HEIGHT, "width": WIDTH},
            {"id": 10, "file_name": "b.png", "height": HEIGHT, "width": WIDTH},
            {"id": 20, "file_name": "b.png", "height": HEIGHT, "width": WIDTH},
        ],
        "categories": [{"id": identity, "name": name} for name, identity in COCO_IDS.items()],
        "annotations": [
            annotation(1, 30, "car", SQUARE, bbox=[60, 40, 40, 30], area=1200, iscrowd=0),
            annotation(2, 10, "chair", CORNER),
            annotation(3, 10, "dog", SQUARE),
            annotation(4, 20, "chair", SQUARE),
            annotation(5, 20, "mouse", SQUARE),
        ],
    }


def write(folder: Path, value: Any) -> Path:
    """The file, and images on which a red square is where `SQUARE` says."""
    image = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    image[40:70, 60:100] = (20, 20, 250)  # OpenCV writes BGR
    for name in ("a.png", "b.png"):
        cv2.imwrite(str(folder / name), image)
    path = folder / "instances.json"
    path.write_text(json.dumps(value))
    return path


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> VideoDataset:
    return read_coco(write(tmp_path_factory.mktemp("coco"), content()))


def youtube_vis(names: tuple[str, ...]) -> list[Category]:
    return [Category(i, name) for i, name in enumerate(names, 1)]


def equal(a: Clip, b: Clip) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(astuple(a), astuple(b), strict=True))


# Reading


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
    """The ids of `category_map` in the released datasets/coco2seq.py; for 2021, those in its comment."""
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


# Pseudo clips

STILL_COLOURS = CameraMotion(brightness=0, hue=0, saturation=0, blur=0)


def test_a_pseudo_clip_depends_on_seed_epoch_and_index_only(coco: VideoDataset) -> None:
    first, again = (PseudoClipDataset(coco, ClipTransform(), 3, seed=5) for _ in range(2))
    clips = [first.sample(index, 2) for index in range(len(first))]
    for index in (2, 0, 1):
        assert equal(again.sample(index, 2), clips[index])
    assert not equal(first.sample(0, 3), clips[0])
    assert not equal(PseudoClipDataset(coco, ClipTransform(), 3, seed=6).sample(0, 2), clips[0])


def test_masks_and_boxes_move_with_the_pixels(coco: VideoDataset) -> None:
    """The red pixels, found by their colour, are the mask: within one pixel, as both are interpolated."""
    source = PseudoClipDataset(coco, ClipTransform((120, 180, 240), 400), 5, 0, STILL_COLOURS)
    untouched, views = 0, set()
    cross = cv2.getStructuringElement(cv2.MORPH_RECT, (3, 3))
    for epoch in range(12):
        clip = source.sample(0, epoch)
        assert clip.frames_THWC.shape[0] == clip.masks_NTHW.shape[1] == clip.boxes_NT4.shape[1] == 5
        assert clip.labels_N.tolist() == [list(COCO_IDS).index("car")]
        height, width = clip.frames_THWC.shape[1:3]
        for frame, mask, box in zip(clip.frames_THWC, clip.masks_NTHW[0], clip.boxes_NT4[0], strict=True):
            red = ((frame[..., 0].astype(int) - frame[..., 1]) > 115).astype(np.uint8)
            grown, shrunk = cv2.dilate(red, cross), cv2.erode(red, cross, borderValue=1)
            assert not (mask & (grown == 0)).any() and not (~mask & (shrunk == 1)).any()
            rows, columns = np.nonzero(mask)
            corners = (columns.min() / width, rows.min() / height)
            np.testing.assert_allclose(box[:2] - box[2:] / 2, corners, atol=1e-5)
            views.add(mask.tobytes())
            untouched += not (frame == 0).all(-1).any()
    assert len(views) > 40, "the camera should move from frame to frame"
    assert untouched >= 12, "one frame of each clip is the image itself"


def test_a_view_is_a_turn_and_a_crop_about_the_centre() -> None:
    """Without crop and shift, centre and distances are kept; without turn and shift, only the image is seen."""
    rng = np.random.default_rng(0)
    middle = np.array([WIDTH / 2 - 0.5, HEIGHT / 2 - 0.5, 1])
    turn = draw_view(rng, CameraMotion(shift=0, perspective=0), HEIGHT, WIDTH)
    np.testing.assert_allclose(turn @ middle, middle, atol=1e-4)
    assert 0 < np.degrees(np.arccos(turn[0, 0])) <= 20
    np.testing.assert_allclose(turn[:2, :2] @ turn[:2, :2].T, np.eye(2), atol=1e-6)
    for _ in range(20):
        crop = draw_view(rng, CameraMotion(rotation=0, shift=0), HEIGHT, WIDTH)
        # Pixels reach half a pixel about their middles.
        frame = np.array([[0, WIDTH, WIDTH, 0], [0, 0, HEIGHT, HEIGHT], [1, 1, 1, 1]]) - [[0.5], [0.5], [0]]
        seen = np.linalg.inv(crop) @ frame
        x, y = seen[:2] / seen[2] + 0.5
        assert (x > -1e-3).all() and (x < WIDTH + 1e-3).all() and (y > -1e-3).all() and (y < HEIGHT + 1e-3).all()
        assert (x[[0, 3]] < 0.41 * WIDTH).all() and (x[1:3] > 0.59 * WIDTH).all(), "no corner passes another"


def test_what_leaves_the_view_is_absent_there_and_dropped_if_never_seen(tmp_path: Path) -> None:
    value = content()
    value["annotations"] = [annotation(1, 30, "cat", CORNER), annotation(2, 30, "dog", SQUARE)]
    dataset = read_coco(write(tmp_path, value))
    transform = ClipTransform((96,), 400, crop=0.5)
    source = PseudoClipDataset(dataset, transform, 4, 0)
    came_and_went = dropped = 0
    for epoch in range(25):
        clip = source.sample(0, epoch)
        np.testing.assert_array_equal(clip.present_NT, clip.masks_NTHW.any((2, 3)))
        assert not clip.boxes_NT4[~clip.present_NT].any() and (clip.boxes_NT4[clip.present_NT][:, 2:] > 0).all()
        assert clip.present_NT.any(1).all()
        cat = clip.labels_N == list(COCO_IDS).index("cat")
        dropped += not cat.any()
        came_and_went += bool(cat.any()) and not clip.present_NT[cat].all()
    assert came_and_went > 5 and dropped > 2


def test_images_that_teach_nothing_are_left_out(tmp_path: Path) -> None:
    value = content()
    value["annotations"] = [
        annotation(1, 30, "cat", SQUARE, iscrowd=1),
        *(annotation(i, 10, "dog", SQUARE) for i in range(2, 5)),
        annotation(5, 20, "dog", SQUARE),
    ]
    dataset = read_coco(write(tmp_path, value))
    assert [p.id for p in PseudoClipDataset(dataset, ClipTransform(), 2, 0).pictures] == [10, 20]
    assert [p.id for p in PseudoClipDataset(dataset, ClipTransform(), 2, 0, max_instances=2).pictures] == [20]
    crowds = replace(dataset, tracks=dataset.tracks[:1])
    with pytest.raises(MsstsError, match=r"instances\.json: no image has 1 to 25 annotations"):
        PseudoClipDataset(crowds, ClipTransform(), 2, 0)


# Joint training


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shapes"
    return write_dataset(folder, 3, 0, MovingShapesConfig(width=64, height=48, length=4), progress=False)


def joint(shapes: Path, coco: VideoDataset) -> JointClips:
    transform = ClipTransform((48,), 64)
    videos = ClipDataset(read_youtube_vis(shapes), transform, 2, 0, every_frame=True)
    return JointClips([videos, PseudoClipDataset(coco, transform, 2, 0)])


def test_joint_clips_are_those_of_each_source(shapes: Path, coco: VideoDataset) -> None:
    clips = joint(shapes, coco)
    videos, images = clips.sources
    assert (len(clips), len(videos), len(images)) == (15, 12, 3)
    for index in (0, 11):
        assert equal(clips.sample(index, 1), videos.sample(index, 1))
    for index in (12, 14):
        assert equal(clips.sample(index, 1), images.sample(index - 12, 1))


def test_a_clip_about_every_frame_holds_that_frame(shapes: Path) -> None:
    dataset = read_youtube_vis(shapes)
    source = ClipDataset(dataset, ClipTransform((48,), 64), 2, 0, every_frame=True)
    for index in range(len(source)):
        clip = source.sample(index, 0)
        assert clip.video_id == dataset.videos[index // 4].id and index % 4 in clip.frame_indices


def test_the_joint_order_is_the_epochs_alone_and_can_be_resumed(shapes: Path, coco: VideoDataset) -> None:
    clips = joint(shapes, coco)

    def drawn(epoch: int, start: int = 0) -> list[torch.Tensor]:
        return [batch.frames_BTHWC for batch in batches(clips, 4, 9, epoch, start, workers=0)]

    whole = drawn(1)
    assert len(whole) == batches_in_epoch(clips, 4) == 3
    for a, b in zip(drawn(1, start=1), whole[1:], strict=True):
        assert torch.equal(a, b)
    assert any(a.shape != b.shape or not torch.equal(a, b) for a, b in zip(drawn(2), whole, strict=True))


# Recipes and the command


def test_every_released_configuration_has_its_recipe() -> None:
    """Of configs/*.sh of the released code: epochs, learning rate, drops; a batch that 8 processes can share."""
    for name in PRESETS:
        assert recipe(name).batch > 0
    for name in ("mssts_r50", "mssts_r101", "mssts_x101", "mssts_swin_l"):
        assert recipe(name).lr_drops == (4, 10)
    assert recipe("mssts_r50_ablation").lr_drops == (2, 10)
    assert PRESETS["mssts_r50_ablation"]().model == PRESETS["mssts_r50"]().model
    for name in PRESETS.keys() - {"tiny"}:
        config = recipe(name)
        assert (config.epochs, config.learning_rate, config.backbone_factor) == (12, 2e-4, 0.1)
        assert config.clip_frames == 5 and config.batch == 16 and config.every_frame
        before = recipe(name, "pretrain")
        assert (before.epochs, before.lr_drops, before.clip_frames, before.batch) == (50, (40,), 1, 16)
        assert before.learning_rate == config.learning_rate


def test_a_pretraining_clip_is_the_image(coco: VideoDataset) -> None:
    transform = replace(recipe("mssts_r50", "pretrain").transform, crop=0, flip=0, long_edge=400)
    source = PseudoClipDataset(coco, replace(transform, short_edges=(HEIGHT,)), 1, 0)
    for index, picture in enumerate(source.pictures):
        (frame,) = source.sample(index, 0).frames_THWC
        np.testing.assert_array_equal(frame, coco.read_frame(picture, 0))


@pytest.mark.parametrize("with_videos", [True, False])
def test_train_on_coco_alone_or_with_videos(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, with_videos: bool
) -> None:
    """What the trainer is given; that it trains on clips is tested with the trainer."""
    import mssts.training.trainer

    given: dict[str, Any] = {}

    class Stopped(Exception):
        pass

    def trainer(preset: Any, config: Any, clips: Any, categories: Any, *_: Any, **__: Any) -> None:
        given.update(preset=preset, clips=clips, categories=categories)
        raise Stopped

    monkeypatch.setattr(mssts.training.trainer, "Trainer", trainer)
    arguments = ["train", "--out", str(tmp_path / "run"), "--coco", str(write(tmp_path, content())), "--device", "cpu"]
    if with_videos:
        content_of_videos = {
            "videos": [{"id": 1, "width": WIDTH, "height": HEIGHT, "file_names": ["a.png"]}],
            "categories": [{"id": i, "name": name} for i, name in enumerate(YOUTUBE_VIS_2019, 1)],
            "annotations": [{"id": 1, "video_id": 1, "category_id": 6, "segmentations": [[SQUARE]]}],
        }
        (tmp_path / "videos.json").write_text(json.dumps(content_of_videos))
        arguments += ["--data", str(tmp_path / "videos.json")]
    with pytest.raises(Stopped):
        main(arguments)
    assert given["preset"].model.classes == len(given["categories"])
    said = capsys.readouterr().out
    if with_videos:
        assert tuple(category.name for category in given["categories"]) == YOUTUBE_VIS_2019
        assert len(given["clips"]) == 1 + 2
        assert given["clips"].sample(1, 0).labels_N.tolist() == [YOUTUBE_VIS_2019.index("sedan")]
        assert "2 images with 2 annotations" in said and "without 3 of 2 categories that the videos lack" in said
    else:
        assert [category.name for category in given["categories"]] == list(COCO_IDS)
        assert len(given["clips"]) == 3


@pytest.mark.parametrize(
    ("arguments", "named"), [([], "pass --data, --coco or both"), (["--coco-images", "."], "--coco-images")]
)
def test_nothing_to_train_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], named: str
) -> None:
    assert main(["train", "--out", str(tmp_path / "run"), *arguments]) == 2
    assert named in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
