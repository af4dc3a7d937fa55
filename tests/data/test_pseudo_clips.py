"""Pseudo clips of images, and joint training on them and on videos."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from support.coco_files import COCO_IDS, CORNER, SQUARE, annotation, content, equal, write

from mssts.cli import main
from mssts.data.clips import ClipDataset, ClipTransform
from mssts.data.coco import read_coco
from mssts.data.joint_clips import JointClips
from mssts.data.moving_shapes import MovingShapesConfig, write_dataset
from mssts.data.pseudo_clips import CameraMotion, PseudoClipDataset, draw_view
from mssts.data.youtube_vis import VideoDataset, read_youtube_vis
from mssts.data.youtube_vis_classes import YOUTUBE_VIS_2019
from mssts.errors import MsstsError
from mssts.model.config import PRESETS
from mssts.training.batches import batches, batches_in_epoch
from mssts.training.config import recipe

HEIGHT, WIDTH = 120, 160
# Pixels 40…69 × 60…99; its outline as COCO draws it.


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
    """The red pixels are the mask, within one pixel, as both are interpolated.

    They are found by their colour.
    """
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
    """Motions one at a time.

    Without crop and shift, centre and distances are kept. Without turn and shift, only the image is seen.
    """
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
    """The recipes of configs/*.sh of the released code.

    Epochs, learning rate, drops, and a batch that 8 processes can share.
    """
    for name in PRESETS:
        assert recipe(name).batch > 0
    for name in ("mssts_r50", "mssts_r101", "mssts_x101", "mssts_swin_l"):
        assert recipe(name).lr_drops == (4, 10)
    assert recipe("mssts_r50_ablation").lr_drops == (2, 10)
    assert PRESETS["mssts_r50_ablation"]().model == PRESETS["mssts_r50"]().model
    for name in PRESETS.keys() - {"tiny", "mini"}:
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
    """The data set that the trainer is given.

    Training on clips is tested with the trainer.
    """
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
