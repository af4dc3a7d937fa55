"""MovingShapes: what a user relies on, judged from the files and pictures alone."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pycocotools.mask
import pytest

from mssts import cli
from mssts.data.moving_shapes import (
    CATEGORIES,
    MIN_VISIBLE_PIXELS,
    MovingShapesConfig,
    MovingShapesVideo,
    dataset,
    render_video,
    write_dataset,
)
from mssts.data.youtube_vis import read_youtube_vis
from mssts.errors import MsstsError

CONFIG = MovingShapesConfig()


@pytest.fixture(scope="module")
def videos() -> list[MovingShapesVideo]:
    return [render_video(CONFIG, 7, index) for index in range(60)]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "set", 6, 7, CONFIG, progress=False).parent


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_equal_seeds_give_equal_bytes_in_another_process(written: Path, tmp_path: Path) -> None:
    arguments = ["data", "synth", "--videos", "6", "--seed", "7", "--out", str(tmp_path / "again")]
    subprocess.run([sys.executable, "-m", "mssts.cli", *arguments], check=True, capture_output=True)
    assert digests(tmp_path / "again") == digests(written)


def test_a_video_depends_on_its_seed_and_index_only(written: Path, tmp_path: Path) -> None:
    shorter = write_dataset(tmp_path / "shorter", 2, 7, CONFIG, progress=False).parent
    whole = digests(written)
    images = {name: digest for name, digest in digests(shorter).items() if name.endswith(".jpg")}
    assert len(images) == 2 * CONFIG.length
    assert all(whole[name] == digest for name, digest in images.items())
    frames = [render_video(CONFIG, seed, index).frames_THWC for seed, index in ((7, 0), (7, 1), (8, 0))]
    assert not any(np.array_equal(frames[a], frames[b]) for a, b in ((0, 1), (0, 2), (1, 2)))


def test_masks_of_a_frame_are_disjoint_and_large_enough_to_see(videos: list[MovingShapesVideo]) -> None:
    for video in videos:
        assert video.masks_NTHW.sum(0).max() <= 1
        areas = video.masks_NTHW.sum((2, 3))
        assert ((areas == 0) | (areas >= MIN_VISIBLE_PIXELS)).all()
        assert areas.any(1).all(), "an object that is never visible was kept"


def away_from_edges(masks_NHW: np.ndarray) -> np.ndarray:
    """Pixels away from edges, where there is no antialiasing.

    Their neighbours within 2 all belong to the same object, or all to none.
    """
    owner = (masks_NHW * np.arange(1, len(masks_NHW) + 1)[:, None, None]).sum(0).astype(np.uint8)
    kernel = np.ones((5, 5), np.uint8)
    return cv2.dilate(owner, kernel) == cv2.erode(owner, kernel)


def test_masks_are_the_visible_pixels(videos: list[MovingShapesVideo]) -> None:
    """The picture alone shows which object is in front.

    Objects are saturated and of one hue each, the background is dull.
    """
    agreed, hue_spread = [], []
    for video in videos[:20]:
        for t in range(0, CONFIG.length, 4):
            masks = video.masks_NTHW[:, t]
            plain = away_from_edges(masks)
            hsv = cv2.cvtColor(video.frames_THWC[t].astype(np.float32) / 255, cv2.COLOR_RGB2HSV)
            agreed.append(((hsv[:, :, 1] > 0.45) == masks.any(0))[plain].mean())
            hue = np.exp(1j * np.deg2rad(hsv[:, :, 0]))
            hue_spread += [1 - abs(hue[mask & plain].mean()) for mask in masks if (mask & plain).sum() > 50]
    # Grain and very dark grounds cross the threshold here and there; a mask of the wrong object would miss by far.
    assert np.mean(agreed) > 0.995
    assert min(agreed) > 0.95
    # The two colours of an object are at most 0.08 turns apart: circular variance ≤ 1 − cos(0.04 turns) = 0.03, and
    # grain on dark pixels adds some. Two objects differ by a quarter turn or more, a variance of 0.29 when half mixed.
    assert max(hue_spread) < 0.08


def test_objects_occlude_one_another(videos: list[MovingShapesVideo]) -> None:
    kernel = np.ones((3, 3), np.uint8)
    touching = 0
    for video in videos:
        grown = [[cv2.dilate(mask.view(np.uint8), kernel) for mask in masks] for masks in video.masks_NTHW]
        touching += any(
            (grown[a][t] & video.masks_NTHW[b, t]).sum() > 10
            for t in range(CONFIG.length)
            for a in range(len(grown))
            for b in range(a)
        )
    assert touching > len(videos) / 3


def test_some_objects_leave_the_frame_and_return(videos: list[MovingShapesVideo]) -> None:
    tracks = returned = over_the_border = 0
    for video in videos:
        for mask_THW in video.masks_NTHW:
            shown = np.flatnonzero(mask_THW.any((1, 2)))
            tracks += 1
            gaps = np.flatnonzero(np.diff(shown) > 1)
            if gaps.size:
                returned += 1
                last = mask_THW[shown[gaps[0]]]
                border = last[0].any() or last[-1].any() or last[:, 0].any() or last[:, -1].any()
                over_the_border += bool(border)
    assert 0.04 < returned / tracks < 0.3
    assert over_the_border > 0.7 * returned  # the others were hidden by another object


def class_from_outline(mask: np.ndarray) -> str:
    """Names the class of an unoccluded mask by textbook measures of shape.

    It uses no colours and no knowledge of the renderer.
    """
    contours, hierarchy = cv2.findContours(mask.view(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    outer = max((c for c, h in zip(contours, hierarchy[0], strict=True) if h[3] < 0), key=cv2.contourArea)
    if any(h[3] >= 0 and cv2.contourArea(c) > 0.1 * mask.sum() for c, h in zip(contours, hierarchy[0], strict=True)):
        return "ring"
    hull = cv2.convexHull(outer)
    area = cv2.contourArea(hull)
    if cv2.contourArea(outer) < 0.8 * area:
        return "star"
    if area > 0.75 * cv2.minEnclosingTriangle(hull)[0]:  # a square fills 1/2 of its, a disc 0.6
        return "triangle"
    return "square" if area > 0.86 * np.prod(cv2.minAreaRect(hull)[1]) else "disc"  # a disc fills π/4 of its


def test_the_outline_alone_tells_the_class(videos: list[MovingShapesVideo]) -> None:
    right, total = 0, 0
    seen = set()
    for video in videos:
        everyone = video.masks_NTHW.any(0)
        for label, mask_THW in zip(video.labels, video.masks_NTHW, strict=True):
            for t, mask in enumerate(mask_THW):
                others = everyone[t] & ~mask
                near = cv2.dilate(mask.view(np.uint8), np.ones((5, 5), np.uint8)).view(bool)
                border = mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any()
                if border or (near & others).any() or mask.sum() < 300:
                    continue
                total += 1
                right += class_from_outline(mask) == CATEGORIES[label].name
                seen.add(label)
    assert seen == set(range(len(CATEGORIES)))
    assert total > 300
    assert right / total > 0.95


def test_pycocotools_reads_the_annotations(written: Path) -> None:
    content = json.loads((written / "instances.json").read_text())
    assert {category["id"] for category in content["categories"]} == {1, 2, 3, 4, 5}
    by_video: dict[int, list[dict]] = {video["id"]: [] for video in content["videos"]}
    for annotation in content["annotations"]:
        by_video[annotation["video_id"]].append(annotation)
    nulls = 0
    for index, record in enumerate(content["videos"]):
        video = render_video(CONFIG, 7, index)
        assert (record["length"], record["height"], record["width"]) == video.frames_THWC.shape[:3]
        annotations = by_video[record["id"]]
        assert [annotation["category_id"] - 1 for annotation in annotations] == video.labels.tolist()
        for annotation, mask_THW in zip(annotations, video.masks_NTHW, strict=True):
            entries = zip(*(annotation[key] for key in ("segmentations", "bboxes", "areas")), mask_THW, strict=True)
            for rle, bbox, area, mask in entries:
                if rle is None:
                    nulls += 1
                    assert bbox is None and area is None and not mask.any()
                    continue
                np.testing.assert_array_equal(pycocotools.mask.decode(rle), mask)
                ys, xs = np.nonzero(mask)
                assert area == mask.sum()
                assert bbox == [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
    assert nulls, "this set should hold an object that is absent somewhere"


def test_the_images_are_the_rendered_frames(written: Path) -> None:
    dataset = read_youtube_vis(written / "instances.json")
    dataset.check_images()
    for index, video in enumerate(dataset.videos[:2]):
        rendered = render_video(CONFIG, 7, index).frames_THWC
        for t in (0, CONFIG.length - 1):
            # JPEG halves the resolution of colour, so a few edges differ much; swapped channels would miss by tens.
            assert np.abs(dataset.read_frame(video, t).astype(int) - rendered[t]).mean() < 4


def test_a_folder_in_use_is_refused_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").write_text("precious")
    assert cli.main(["data", "synth", "--videos", "1", "--seed", "1", "--out", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and str(tmp_path) in message and "not an empty folder" in message
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_nothing_is_left_when_writing_stops_half_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    def render(config: MovingShapesConfig, seed: int, index: int) -> MovingShapesVideo:
        if index == 1:
            raise failure
        return render_video(config, seed, index)

    monkeypatch.setattr(dataset, "render_video", render)
    with pytest.raises(MsstsError if isinstance(failure, OSError) else KeyboardInterrupt):
        write_dataset(tmp_path / "set", 3, 1, CONFIG, progress=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--videos", "0", "--seed", "1"], "number of videos"),
        (["--videos", "1", "--seed", "-1"], "seed"),
        (["--videos", "1", "--seed", "1", "--frames", "0"], "at least 1 frame"),
        (["--videos", "1", "--seed", "1", "--size", "16x16"], "16x16"),
    ],
)
def test_bad_arguments_are_one_line_and_write_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], named: str
) -> None:
    assert cli.main(["data", "synth", *arguments, "--out", str(tmp_path / "set")]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and named in message
    assert list(tmp_path.iterdir()) == []


def test_size_and_length_are_as_asked(tmp_path: Path) -> None:
    arguments = ["--videos", "1", "--seed", "3", "--frames", "5", "--size", "120x90", "--out", str(tmp_path / "set")]
    assert cli.main(["data", "synth", *arguments]) == 0
    dataset = read_youtube_vis(tmp_path / "set" / "instances.json")
    assert dataset.videos[0].length == 5
    assert dataset.read_frame(dataset.videos[0], 4).shape == (90, 120, 3)
