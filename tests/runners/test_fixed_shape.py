"""An engine of one shape answers as one of any shape, for clips brought into it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.toy_engine import COLOURS, write_toy_engine

from mssts import contract
from mssts.errors import MsstsError
from mssts.manifest import FixedShape, InputRule
from mssts.runners import load_runner
from mssts.segmenters.local import LocalSegmenter
from mssts.segmenters.preprocessing import input_size

SHAPE = FixedShape(2, 4, 64, 128)


@pytest.fixture(scope="module")
def free(tmp_path_factory) -> Path:
    return write_toy_engine(tmp_path_factory.mktemp("free"))


@pytest.fixture(scope="module")
def fixed(tmp_path_factory) -> Path:
    return write_toy_engine(tmp_path_factory.mktemp("fixed"), SHAPE)


def clips(count: int, frames: int, height: int, width: int) -> np.ndarray:
    """A rectangle of each colour that stands still, wherever it is in a clip."""
    generator = np.random.default_rng(count + frames)
    made = np.zeros((count, frames, height, width, 3), np.uint8)
    for clip in made:
        for k, colour in enumerate(COLOURS):
            top, left = 4 * generator.integers(0, height // 8), 4 * (k * (width // 12))
            clip[:, top : top + 4 * (k + 1), left : left + 8 * (k + 1)] = colour
    return made


@pytest.mark.parametrize("runner", ["onnxruntime", "auto"])
@pytest.mark.parametrize(
    "size", [(2, 4, 64, 128), (1, 4, 64, 128), (2, 1, 64, 128), (5, 3, 48, 104), (1, 2, 20, 30)], ids=str
)
def test_it_answers_as_an_engine_of_any_shape(free, fixed, runner, size):
    frames_BTHWC = clips(*size)
    valid = np.array([[size[2], size[3]]] * size[0], np.int32)
    expected, found = (load_runner(file, 1, runner).infer(frames_BTHWC, valid) for file in (free, fixed))
    for spec in contract.ENGINE_OUTPUTS:
        ours, theirs = getattr(found, spec.name), getattr(expected, spec.name)
        assert ours.shape == theirs.shape
        assert ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [(1, 5, 64, 128), (1, 4, 72, 128), (1, 4, 64, 136), (1, 0, 64, 128)], ids=str)
def test_what_does_not_fit_is_refused_in_one_line(fixed, size):
    runner = load_runner(fixed, 1)
    message = rf"model\.onnx: takes clips of 1 to 4 frames of at most 64x128, got {size[1]} frames of {size[2]}x"
    with pytest.raises(MsstsError, match=message):
        runner.infer(np.zeros((*size, 3), np.uint8), np.array([size[2:]], np.int32))
    assert runner.describe()["shape"] == "2x4x64x128"


def test_warming_runs_the_shape(fixed):
    runner = load_runner(fixed, 1)
    assert runner.warm(FixedShape(1, 2, 32, 32)) > 0
    with pytest.raises(MsstsError, match="got 9 frames"):
        runner.warm(FixedShape(1, 9, 32, 32))


@pytest.mark.parametrize("size", [(90, 160), (160, 90), (30, 30), (64, 128), (20, 300)], ids=str)
def test_clips_of_every_size_are_segmented(free, fixed, size):
    """Upright ones too, of which the engine's own size would have a part only."""
    frames_THWC = np.zeros((3, *size, 3), np.uint8)
    frames_THWC[:, : size[0] // 2, : size[1] // 2] = COLOURS[1]
    found = LocalSegmenter(fixed.parent, 1).segment(frames_THWC, score_threshold=0.5)
    assert found.labels.tolist() == [1]
    y, x = size[0] // 2, size[1] // 2
    # A cell of the engine's masks, 4 pixels, is more of the sent frame where that was shrunk.
    cell = 4 * max(size[0] / 64, size[1] / 128, 1) + 1
    np.testing.assert_allclose(found.boxes[0], [[0, 0, x, y]] * 3, atol=cell)
    assert LocalSegmenter(free.parent, 1).segment(frames_THWC, score_threshold=0.5).labels.tolist() == [1]


def test_frames_are_resized_into_the_shape():
    rule = InputRule(360, 640)
    assert input_size(720, 1280, rule, FixedShape(1, 5, 360, 640)) == (360, 640)
    assert input_size(1280, 720, rule, FixedShape(1, 5, 360, 640)) == (360, 200)  # 202.5, to a multiple of 8
    assert input_size(720, 1280, rule, FixedShape(1, 5, 100, 640)) == (96, 176)  # never above the shape
    assert input_size(720, 1280, rule, FixedShape(1, 5, 720, 1280)) == (360, 640)  # nor above the rule
