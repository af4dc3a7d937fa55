"""Training clips: reproducible draws, and consistent frames, masks and boxes."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pycocotools.mask
import pytest

from mssts.data.clips import Clip, ClipDataset, ClipTransform, RelativeCrop, ResizedCrop
from mssts.data.colours import distorted
from mssts.data.frame_sampling import Neighbours, Window
from mssts.data.moving_shapes import MovingShapesConfig, write_dataset
from mssts.data.youtube_vis import VideoDataset, read_youtube_vis
from mssts.errors import MsstsError

HEIGHT, WIDTH = 144, 256
PLAIN = ClipTransform(short_edges=(HEIGHT,), long_edge=WIDTH, crop=0, flip=0, reverse=0, jitter=0)
AUGMENTED = ClipTransform(short_edges=(96, 128, 160), long_edge=256)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> VideoDataset:
    out = tmp_path_factory.mktemp("data") / "set"
    return read_youtube_vis(write_dataset(out, 12, 5, MovingShapesConfig(), progress=False))


def clips(
    dataset: VideoDataset, transform: ClipTransform, frames: int = 4, seed: int = 0, epoch: int = 0
) -> list[Clip]:
    source = ClipDataset(dataset, transform, frames, seed)
    return [source.sample(index, epoch) for index in range(len(source))]


def changed(transform: ClipTransform, **values: float) -> ClipTransform:
    return dataclasses.replace(transform, **values)


def equal(a: Clip, b: Clip) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(dataclasses.astuple(a), dataclasses.astuple(b), strict=True))


def test_a_clip_depends_on_seed_epoch_and_index_only(shapes: VideoDataset) -> None:
    first = ClipDataset(shapes, AUGMENTED, 4, seed=3)
    resumed = ClipDataset(shapes, AUGMENTED, 4, seed=3)
    for index in range(len(first)):
        first.sample(index, 0)
    for index in (5, 2, 11):
        assert equal(resumed.sample(index, 1), first.sample(index, 1))
    assert not equal(first.sample(2, 1), first.sample(2, 2))
    assert not equal(first.sample(2, 1), ClipDataset(shapes, AUGMENTED, 4, seed=4).sample(2, 1))


def test_a_plain_clip_is_the_data_set(shapes: VideoDataset) -> None:
    for clip in clips(shapes, PLAIN):
        video = shapes.videos_by_id[clip.video_id]
        tracks = [
            track for track in shapes.tracks_of(video) if any(track.rles[t] is not None for t in clip.frame_indices)
        ]
        assert clip.labels_N.tolist() == [track.category_id - 1 for track in tracks]
        for i, t in enumerate(clip.frame_indices):
            np.testing.assert_array_equal(clip.frames_THWC[i], shapes.read_frame(video, t))
            for n, track in enumerate(tracks):
                np.testing.assert_array_equal(clip.masks_NTHW[n, i], shapes.mask(track, t))
                x, y, width, height = track.bboxes[t] or (0, 0, 0, 0)
                box = (x + width / 2, y + height / 2, width, height)
                np.testing.assert_allclose(clip.boxes_NT4[n, i] * (WIDTH, HEIGHT, WIDTH, HEIGHT), box, atol=1e-4)
                assert clip.present_NT[n, i] == (track.rles[t] is not None)


def test_shapes_types_and_boxes_of_augmented_clips(shapes: VideoDataset) -> None:
    absent = 0
    for epoch in range(3):
        for clip in clips(shapes, AUGMENTED, epoch=epoch):
            t, height, width = clip.frames_THWC.shape[:3]
            n = len(clip.labels_N)
            assert t == 4 and clip.frames_THWC.dtype == np.uint8 and clip.frames_THWC.flags.c_contiguous
            assert clip.masks_NTHW.shape == (n, t, height, width) and clip.masks_NTHW.dtype == bool
            assert clip.boxes_NT4.shape == (n, t, 4) and clip.boxes_NT4.dtype == np.float32
            assert clip.labels_N.dtype == np.int64
            assert clip.present_NT.any(1).all(), "an instance that no frame shows was kept"
            for mask, box, present in zip(
                clip.masks_NTHW.reshape(-1, height, width),
                clip.boxes_NT4.reshape(-1, 4),
                clip.present_NT.ravel(),
                strict=True,
            ):
                ys, xs = np.nonzero(mask)
                assert present == bool(xs.size)
                absent += not present
                x, y, w, h = box * (width, height, width, height) if present else (0.5, 0.5, 1, 1)
                corners = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) if present else (0, 0, 1, 1)
                np.testing.assert_allclose((x - w / 2, y - h / 2, x + w / 2, y + h / 2), corners, atol=1e-3)
                assert present or not box.any()
    assert absent, "these clips should hold an object that is absent somewhere"


def test_a_flip_mirrors_frames_masks_and_boxes(shapes: VideoDataset) -> None:
    for there, back in zip(
        clips(shapes, changed(AUGMENTED, flip=0)), clips(shapes, changed(AUGMENTED, flip=1)), strict=True
    ):
        np.testing.assert_array_equal(back.frames_THWC, there.frames_THWC[:, :, ::-1])
        np.testing.assert_array_equal(back.masks_NTHW, there.masks_NTHW[..., ::-1])
        mirrored = there.boxes_NT4 * (-1, 1, 1, 1) + there.present_NT[..., None] * np.array((1, 0, 0, 0))
        np.testing.assert_allclose(back.boxes_NT4, mirrored, atol=1e-6)


def test_time_runs_forwards_or_backwards(shapes: VideoDataset) -> None:
    for there, back in zip(
        clips(shapes, changed(AUGMENTED, reverse=0)), clips(shapes, changed(AUGMENTED, reverse=1)), strict=True
    ):
        assert list(there.frame_indices) == sorted(set(there.frame_indices))
        assert back.frame_indices == there.frame_indices[::-1]
        np.testing.assert_array_equal(back.frames_THWC, there.frames_THWC[::-1])
        np.testing.assert_array_equal(back.masks_NTHW, there.masks_NTHW[:, ::-1])


def write_video(folder: Path, frames: list[np.ndarray], masks: list[np.ndarray], **annotation: int) -> VideoDataset:
    """A data set of one video with one object."""
    height, width = frames[0].shape[:2]
    names = [f"{t}.png" for t in range(len(frames))]
    for name, frame in zip(names, frames, strict=True):
        cv2.imwrite(str(folder / name), frame[:, :, ::-1])
    rles = [pycocotools.mask.encode(np.asfortranarray(mask.view(np.uint8))) for mask in masks]
    segmentations = [
        {"size": rle["size"], "counts": rle["counts"].decode()} if mask.any() else None
        for rle, mask in zip(rles, masks, strict=True)
    ]
    content = {
        "videos": [{"id": 1, "width": width, "height": height, "file_names": names}],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [{"id": 1, "video_id": 1, "category_id": 1, "segmentations": segmentations, **annotation}],
    }
    (folder / "instances.json").write_text(json.dumps(content))
    return read_youtube_vis(folder / "instances.json")


def ellipse(x: int, y: int, height: int = 150, width: int = 200) -> np.ndarray:
    mask = np.zeros((height, width), np.uint8)
    cv2.ellipse(mask, (x, y), (40, 25), 30, 0, 360, 1, -1)
    return mask.view(bool)


def test_crop_resize_and_flip_keep_masks_on_their_pixels(tmp_path: Path) -> None:
    masks = [ellipse(60 + 10 * t, 70 + 5 * t) for t in range(6)]
    frames = [np.repeat(mask[:, :, None] * np.uint8(255), 3, axis=2) for mask in masks]
    dataset = write_video(tmp_path, frames, masks)
    transform = ClipTransform(short_edges=(90, 151, 230), long_edge=400, crop=1, jitter=0)
    source = ClipDataset(dataset, transform, 4, seed=0)
    sizes = set()
    for epoch in range(30):
        clip = source.sample(0, epoch)
        sizes.add(clip.frames_THWC.shape[1:3])
        painted = clip.frames_THWC[..., 0] >= 128
        # They may differ where a resized edge falls between two pixels, and nowhere else.
        assert (painted != clip.masks_NTHW[0]).mean() < 0.002
    assert len(sizes) > 20


@pytest.mark.parametrize(
    ("frame", "expected"), [((150, 200), (90, 120)), ((60, 300), (50, 250)), ((300, 60), (250, 50))]
)
def test_the_long_edge_is_bounded_and_the_aspect_kept(
    tmp_path: Path, frame: tuple[int, int], expected: tuple[int, int]
) -> None:
    image, mask = np.zeros((*frame, 3), np.uint8), np.ones(frame, bool)
    dataset = write_video(tmp_path, [image], [mask])
    transform = ClipTransform(short_edges=(90,), long_edge=250, crop=0)
    clip = ClipDataset(dataset, transform, 1, seed=0).sample(0, 0)
    assert clip.frames_THWC.shape[1:3] == expected
    np.testing.assert_allclose(clip.boxes_NT4, [[[0.5, 0.5, 1, 1]]])


@pytest.mark.parametrize("frame", [(720, 1280), (360, 202), (480, 640)])
def test_the_released_crop_keeps_384_to_600_pixels_of_a_frame_of_400_to_600(frame: tuple[int, int]) -> None:
    """Crops of a frame resized to a short edge of 400, 500 or 600.

    They are in pixels of the frame before it was resized.
    """
    rng = np.random.default_rng(0)
    crops = np.array([ResizedCrop().draw(rng, *frame) for _ in range(500)])
    assert (crops >= 1).all() and (crops <= frame).all()
    scale = 400 / min(frame)  # where a crop is largest
    allowed = np.minimum(600 / scale, frame)
    smallest = 384 / (600 / min(frame))
    assert (crops <= np.ceil(allowed)).all() and (crops >= np.floor(smallest)).all()
    np.testing.assert_allclose(crops.max(0), allowed, rtol=0.05)
    np.testing.assert_allclose(crops.min(0), smallest, rtol=0.05)


def test_a_relative_crop_keeps_its_share() -> None:
    rng = np.random.default_rng(0)
    shares = np.array([RelativeCrop(0.7).draw(rng, 300, 500) for _ in range(300)]) / (300, 500)
    assert shares.min() >= 0.7 and shares.max() <= 1 and (np.ptp(shares, axis=0) > 0.28).all()


def test_colours_change_from_clip_to_clip_and_not_within_one(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(40, 200, (16, 16, 3), np.uint8)
    mask = np.ones((16, 16), bool)
    dataset = write_video(tmp_path, [picture] * 5, [mask] * 5)
    transform = changed(PLAIN, jitter=0.5, long_edge=16)
    source = ClipDataset(dataset, dataclasses.replace(transform, short_edges=(16,)), 4, seed=0)
    sampled = [source.sample(0, epoch).frames_THWC for epoch in range(8)]
    for frames_THWC in sampled:
        assert (frames_THWC == frames_THWC[0]).all()
        assert not np.array_equal(frames_THWC[0], picture)
    assert len({frames_THWC.tobytes() for frames_THWC in sampled}) == len(sampled)


def test_grey_stays_grey(tmp_path: Path) -> None:
    """Brightness and contrast treat channels equally, hue and saturation keep grey."""
    grey = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)
    dataset = write_video(tmp_path, [grey], [np.ones((16, 16), bool)])
    transform = ClipTransform(short_edges=(16,), long_edge=16, crop=0, flip=0, jitter=1)
    for epoch in range(8):
        frame = ClipDataset(dataset, transform, 1, seed=0).sample(0, epoch).frames_THWC[0].astype(int)
        assert np.ptp(frame, axis=2).max() <= 1


def test_a_video_shorter_than_the_clip_repeats_frames(tmp_path: Path) -> None:
    masks = [ellipse(60, 70), ellipse(120, 70)]
    dataset = write_video(tmp_path, [np.full((150, 200, 3), 60 * t, np.uint8) for t in range(2)], masks)
    for epoch in range(6):
        clip = ClipDataset(dataset, changed(PLAIN, reverse=0.5), 5, seed=0).sample(0, epoch)
        assert set(clip.frame_indices) == {0, 1} and len(clip.frame_indices) == 5
        assert [int(frame.max()) // 60 for frame in clip.frames_THWC] == list(clip.frame_indices)
        assert clip.masks_NTHW.shape[1] == 5


def test_an_object_outside_the_clip_is_dropped(tmp_path: Path) -> None:
    nothing = np.zeros((150, 200), bool)
    masks = [ellipse(60, 70), *[nothing] * 9]
    dataset = write_video(tmp_path, [np.zeros((150, 200, 3), np.uint8)] * 10, masks)
    source = ClipDataset(dataset, PLAIN, 3, seed=0)
    counts = set()
    for epoch in range(12):
        clip = source.sample(0, epoch)
        assert len(clip.labels_N) == (0 in clip.frame_indices)
        assert clip.masks_NTHW.shape[:2] == (len(clip.labels_N), 3) and clip.boxes_NT4.shape[1:] == (3, 4)
        counts.add(len(clip.labels_N))
    assert counts == {0, 1}


def test_crowds_are_not_learnt_from(tmp_path: Path) -> None:
    dataset = write_video(tmp_path, [np.zeros((150, 200, 3), np.uint8)], [ellipse(60, 70)], iscrowd=1)
    with pytest.raises(MsstsError, match=r"instances\.json: no video has an annotation"):
        ClipDataset(dataset, PLAIN, 1, seed=0)


@pytest.mark.parametrize(
    ("length", "clip_frames", "window"), [(50, 5, 10), (50, 5, 2), (6, 5, 1), (5, 5, 0), (1, 1, 0)]
)
def test_frames_of_a_clip_lie_within_the_window(length: int, clip_frames: int, window: int) -> None:
    rng = np.random.default_rng(0)
    seen: set[int] = set()
    for _ in range(300):
        indices = Window(window).draw(rng, length, clip_frames)
        assert len(set(indices.tolist())) == clip_frames and (np.diff(indices) > 0).all()
        assert indices[0] >= 0 and indices[-1] < length
        assert np.ptp(indices) <= max(2 * window, 2 * (clip_frames - 1))
        seen.update(indices.tolist())
    assert seen == set(range(length))


@pytest.mark.parametrize(("length", "clip_frames"), [(27, 5), (27, 1), (27, 2), (6, 5), (3, 5), (1, 5)])
def test_frames_are_drawn_as_in_the_released_code(length: int, clip_frames: int) -> None:
    """A frame, one at most 3 before and one at most 3 after it, and distant ones."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        centre = int(rng.integers(length))
        indices = Neighbours().draw(rng, length, clip_frames, centre)
        assert len(indices) == clip_frames and (np.diff(indices) >= 0).all()
        assert centre in indices and indices[0] >= 0 and indices[-1] < length
        if clip_frames > 2:
            assert any(t in indices for t in range(max(0, centre - 3), max(1, centre)))
            assert any(t in indices for t in range(min(length - 1, centre + 1), centre + 4))


def test_drawn_frames_lie_as_far_apart_as_those_of_the_released_code() -> None:
    """Gaps of 27 frames, as measured with the released code.

    A mean gap of 4.0, a span of 16.0, and 68 % of the gaps at most 3.
    """
    rng = np.random.default_rng(0)
    drawn = np.stack([Neighbours().draw(rng, 27, 5) for _ in range(4000)])
    gaps = np.diff(drawn)
    assert gaps.mean() == pytest.approx(4.0, abs=0.1)
    assert np.ptp(drawn, axis=1).mean() == pytest.approx(16.0, abs=0.4)
    assert (gaps <= 3).mean() == pytest.approx(0.68, abs=0.02)


def test_distortion_changes_the_colours_of_each_frame_on_its_own(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    dataset = write_video(tmp_path, [picture] * 5, [np.ones((16, 16), bool)] * 5)
    transform = ClipTransform(short_edges=(16,), long_edge=16, crop=0, flip=0, reverse=0, jitter=0, distort=True)
    frames = ClipDataset(dataset, transform, 5, seed=0).sample(0, 0).frames_THWC
    assert len({frame.tobytes() for frame in frames}) >= 4


def test_distortion_brightens_scales_and_swaps_as_much_as_the_released_code() -> None:
    """On grey only contrast and brightness act.

    Contrast from 0.5 to 1.5 and brightness up to 32.
    """
    rng = np.random.default_rng(0)
    grey = np.full((1, 2, 3), 100, np.uint8)
    grey[0, 1] = 140
    found = np.stack([distorted(rng, grey) for _ in range(3000)]).astype(int)[:, 0]
    assert (found[:, :, :1] == found).all()
    slope = (found[:, 1, 0] - found[:, 0, 0]) / 40
    assert slope.min() == pytest.approx(0.5, abs=0.03) and slope.max() == pytest.approx(1.5, abs=0.03)
    unscaled = found[np.abs(slope - 1) < 1e-6, 0, 0] - 100
    assert unscaled.min() in (-32, -31) and unscaled.max() in (31, 32)
    red = np.zeros((1, 1, 3), np.uint8)
    red[..., 0] = 200
    strongest = np.bincount([int(distorted(rng, red).argmax()) for _ in range(3000)], minlength=3) / 3000
    np.testing.assert_allclose(strongest, (2 / 3, 1 / 6, 1 / 6), atol=0.03)  # half of them permuted at random


def test_clips_do_not_need_torch() -> None:
    check = "import sys, mssts.data.clips, mssts.data.moving_shapes; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
