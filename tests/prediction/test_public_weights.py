"""From a released checkpoint to tracked masks, against the released inference.py."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from support.released_weights import fewer_keys, write_released

import mssts
from mssts.cli import main
from mssts.data.youtube_vis_classes import YOUTUBE_VIS_2019
from mssts.model.checkpoint import load_checkpoint

HEIGHT, WIDTH, LENGTH = 80, 101, 2  # resized to 360×454, which is no multiple of 8


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A released R50 checkpoint of one encoder and one decoder layer."""
    return write_released(tmp_path_factory.mktemp("released") / "released.pth", fewer_keys(queries=12))


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two frames: noise with a moving square."""
    folder = tmp_path_factory.mktemp("video")
    for t in range(LENGTH):
        frame = np.random.default_rng(t).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
        frame[20:60, 20 + 10 * t : 60 + 10 * t] = (0, 0, 255)
        assert cv2.imwrite(str(folder / f"{t}.png"), frame)
    return folder


def released_inference(checkpoint: Path, video: Path) -> list[tuple[int, float, np.ndarray]]:
    """(category id, score, mask logits [T, H, W]) of the ten best.

    They are computed by the steps that the released code takes.
    """
    image = pytest.importorskip("PIL.Image")
    frames = [image.open(path) for path in sorted(video.iterdir())]
    resized = [frame.resize((int(360 * WIDTH / HEIGHT), 360), image.Resampling.BILINEAR) for frame in frames]
    pixels = torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).float() / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    images_BT3HW = ((pixels - mean[:, None, None]) / std[:, None, None])[None]
    model = load_checkpoint(checkpoint).build()
    with torch.no_grad():
        prediction = model(images_BT3HW, torch.tensor([images_BT3HW.shape[-2:]], dtype=torch.int32))
        scores_QK = prediction.logits[-1][0].sigmoid()
        best = scores_QK.flatten().topk(10)
        masks_QThw = model.masks(prediction, -1, torch.arange(len(scores_QK))[None])[0]
    found = []
    for score, index in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        query, category_id = divmod(index, scores_QK.shape[1])
        logits = torch.nn.functional.interpolate(masks_QThw[query][:, None], (HEIGHT, WIDTH), mode="bilinear")
        if (logits.sigmoid() > 0.5).any():
            found.append((category_id, score, logits[:, 0].numpy()))
    return found


def test_as_released_is_what_the_released_code_writes(released, video, tmp_path):
    command = ["predict", str(video), "--model", str(released), "--as-released", "--out", str(tmp_path / "out")]
    assert main(command) == 0
    entries = json.loads((tmp_path / "out" / "results.json").read_text())
    expected = released_inference(released, video)
    assert len(entries) == len(expected) > 0
    for entry, (category_id, score, logits_THW) in zip(entries, expected, strict=True):
        assert entry["category_id"] == category_id
        assert entry["score"] == pytest.approx(score, abs=1e-5)
        for segmentation, logits in zip(entry["segmentations"], logits_THW, strict=True):
            found = coco_mask.decode(segmentation).astype(bool) if segmentation else np.zeros(logits.shape, bool)
            # Logits are of order 100: only one within float32's error of 0 may fall on the other side.
            assert np.abs(logits[found != (logits > 0)]).max(initial=0) < 1e-3
    assert (tmp_path / "out" / f"{video.name}.mp4").is_file()


def test_the_names_of_the_classes_come_with_the_weights(released):
    with mssts.load(released) as segmenter:
        assert [category.name for category in segmenter.manifest.categories[1:41]] == list(YOUTUBE_VIS_2019)
