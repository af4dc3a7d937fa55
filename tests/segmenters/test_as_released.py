"""`--as-released`: exactly the released inference.py, for frames and masks."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from support.toy_engine import write_toy_engine

import mssts
from mssts.cli import main
from mssts.contract import LIMITS
from mssts.errors import MsstsError
from mssts.manifest import FixedShape
from mssts.runners.base import EngineOutput
from mssts.segmenters.as_released import mask_extent, released_input, released_size, resize_bilinear
from mssts.segmenters.postprocessing import to_instances


def pillow(image_HWC: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Pillow's resize of an image, which the released code uses."""
    image = pytest.importorskip("PIL.Image")
    return np.asarray(image.fromarray(image_HWC).resize(size[::-1], image.Resampling.BILINEAR))


def triangle(image_HWC: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The resize in float64 from the filter's definition.

    Per axis, weights are 1 − |distance| / max(scale, 1).
    """
    values = image_HWC.astype(float)
    for axis in (0, 1):
        old, new = image_HWC.shape[axis], size[axis]
        weights = np.zeros((new, old))
        for i in range(new):
            distance = np.arange(old) + 0.5 - (i + 0.5) * old / new
            weights[i] = np.maximum(1 - abs(distance) / max(old / new, 1), 0)
        values = np.moveaxis(np.tensordot(weights / weights.sum(1, keepdims=True), values, (1, axis)), 0, axis)
    return values


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * 10_000 + width).integers(0, 256, (height, width, 3), np.uint8)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 90), st.integers(1, 90))
def test_resizing_is_pillows_to_the_bit(height: int, width: int, new_height: int, new_width: int) -> None:
    image = noise(height, width)
    # In two steps: from version 13 on, Pillow may choose the other order where the sides shrink by different factors.
    expected = pillow(pillow(image, (height, new_width)), (new_height, new_width))
    np.testing.assert_array_equal(resize_bilinear(image, (new_height, new_width)), expected)


@pytest.mark.parametrize(
    "shape", [(720, 1280), (1280, 720), (480, 854), (1080, 1920), (718, 1272), (360, 640), (90, 160)]
)
def test_frames_are_resized_as_the_released_code_does(shape: tuple[int, int]) -> None:
    frame = noise(*shape)
    frames_BTHWC, sizes_B2 = released_input(frame[None], 360, LIMITS)
    size = tuple(sizes_B2[0].tolist())
    assert frames_BTHWC.shape == (1, 1, *size, 3)
    np.testing.assert_array_equal(frames_BTHWC[0, 0], pillow(frame, size))
    # Two roundings of a half each, and nothing else, apart from the filter's definition.
    assert np.abs(frames_BTHWC[0, 0] - triangle(frame, size)).max() <= 1 + 1e-3


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (720, 1280, (360, 640)),
        (1280, 720, (640, 360)),
        (480, 854, (360, 640)),  # 640.5: cut, not rounded
        (718, 1272, (360, 637)),  # 637.8, and no multiple of 8
        (360, 1440, (360, 1440)),  # no limit
        (100, 100, (360, 360)),
    ],
)
def test_sizes_are_torchvisions(height: int, width: int, expected: tuple[int, int]) -> None:
    assert released_size(height, width, 360) == expected
    short, long = sorted((height, width))
    assert max(expected) == int(360 * long / short)  # as torchvision writes it


def test_a_thread_of_pixels_is_refused_and_not_blown_up() -> None:
    with pytest.raises(MsstsError, match=str(LIMITS.pixels)):
        released_input(np.zeros((1, 1, 100_000, 3), np.uint8), 360, LIMITS)


@pytest.mark.parametrize(
    ("valid", "frame"), [((360, 637), (718, 1272)), ((360, 640), (720, 1280)), ((9, 17), (27, 51))]
)
def test_masks_are_those_of_interpolating_all_logits(valid: tuple[int, int], frame: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    sizes_B2 = np.array([valid], np.int32)
    extent = mask_extent(sizes_B2)
    shape = tuple((extent[0] // 4).tolist())
    assert shape == tuple(-(-side // 8) * 2 for side in valid)  # contract.py's h and w
    smooth = [cv2.resize(rng.standard_normal((4, 5)), shape[::-1], interpolation=cv2.INTER_CUBIC) for _ in range(2)]
    logits = np.stack(smooth).astype(np.float32)[None, :, None]
    output = EngineOutput(
        np.ones((1, 2), np.float32), np.zeros((1, 2), np.int32), np.full((1, 2, 1, 4), 0.5, np.float32), logits
    )
    found = to_instances(output, extent, frame)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(logits[0]).double(), frame, mode="bilinear", align_corners=False
    ).numpy()
    for n in range(2):
        mask = coco_mask.decode({"size": list(frame), "counts": found.rles[n][0]}).astype(bool)
        np.testing.assert_array_equal(mask, expected[n, 0] > 0)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_engine(tmp_path_factory.mktemp("engine")).parent


def test_predict_takes_each_video_whole(engine: Path, tmp_path: Path) -> None:
    folder = tmp_path / "scene"
    folder.mkdir()
    for t in range(12):  # the toy's window is 5 frames
        frame = np.full((100, 261, 3), 60, np.uint8)
        frame[30:70, 20:90] = (0, 0, 255)
        assert cv2.imwrite(str(folder / f"{t:02}.png"), frame)
    command = ["predict", str(folder), "--model", str(engine), "--pictures", "0", "--out"]
    assert main([*command, str(tmp_path / "out"), "--as-released"]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["clips"] == 1
    assert report["engine"]["as_released"] is True
    assert main([*command, str(tmp_path / "plain")]) == 0
    assert "as_released" not in json.loads((tmp_path / "plain" / "report.json").read_text())["engine"]


def test_only_a_local_engine_of_any_shape_can_do_as_released(tmp_path: Path) -> None:
    with pytest.raises(MsstsError, match="server resizes frames itself"):
        mssts.load("grpc://127.0.0.1:1", as_released=True)
    fixed = write_toy_engine(tmp_path, FixedShape(1, 5, 64, 128))
    with pytest.raises(MsstsError, match="takes 1x5x64x128 only"):
        mssts.load(fixed, as_released=True)
