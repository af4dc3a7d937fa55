"""The public names of `import mssts`, and the cost of importing it."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from support.toy_engine import CATEGORIES, COLOURS, write_toy_engine

import mssts
from mssts.runners.base import EngineOutput
from mssts.segmenters.postprocessing import to_instances

HEIGHT, WIDTH, LENGTH = 96, 128, 3


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_engine(tmp_path_factory.mktemp("engine")).parent


def clip() -> np.ndarray:
    """A red square that moves right, and a smaller blue one in the first frame only."""
    frames_THWC = np.full((LENGTH, HEIGHT, WIDTH, 3), 60, np.uint8)
    for t in range(LENGTH):
        frames_THWC[t, 16:64, 16 + 8 * t : 64 + 8 * t] = COLOURS[0]
    frames_THWC[0, 64:88, 96:120] = COLOURS[2]
    return frames_THWC


def test_the_package_imports_at_once_and_loads_nothing_heavy() -> None:
    heavy = ("torch", "onnxruntime", "openvino", "cv2", "numpy", "av", "tritonclient")
    program = f"import sys, mssts; print(sorted(set({heavy!r}) & set(sys.modules)))"
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - start)
        assert done.stdout.strip() == "[]"
    empty = min(_seconds_of("pass") for _ in range(3))
    assert min(seconds) - empty < 0.15


def _seconds_of(program: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], check=True)
    return time.perf_counter() - start


def test_every_public_name_is_there_and_documented() -> None:
    for name in mssts.__all__:
        assert getattr(mssts, name) is not None
        assert name in dir(mssts)
        assert name.startswith("__") or getattr(mssts, name).__doc__
    with pytest.raises(AttributeError, match="has no attribute 'lod'"):
        mssts.lod  # noqa: B018


@pytest.mark.parametrize("encoded", [False, True], ids=["frames", "PNGs"])
def test_a_clip_is_segmented_in_four_lines(engine: Path, encoded: bool) -> None:
    frames_THWC = clip()
    given = [cv2.imencode(".png", frame[..., ::-1])[1].tobytes() for frame in frames_THWC] if encoded else frames_THWC
    with mssts.load(engine) as segmenter:
        found = segmenter.segment(given, score_threshold=0.05)
    assert len(found) == 2
    assert found.names == ["red", "blue"]
    masks_NTHW = found.masks()
    assert (masks_NTHW.dtype, masks_NTHW.shape) == (np.dtype(bool), (2, LENGTH, HEIGHT, WIDTH))
    red_THW = (frames_THWC == COLOURS[0]).all(axis=-1)
    overlap = (masks_NTHW[0] & red_THW).sum() / (masks_NTHW[0] | red_THW).sum()
    assert overlap > 0.8  # the toy engine works in cells of 4 pixels: up to two more on each side of 48
    assert masks_NTHW[1].any(axis=(1, 2)).tolist() == [True, False, False]


def test_nothing_found_has_no_masks_of_the_clips_shape(engine: Path) -> None:
    with mssts.load(engine) as segmenter:
        found = segmenter.segment(np.full((LENGTH, HEIGHT, WIDTH, 3), 60, np.uint8), score_threshold=0.5)
    assert (len(found), found.names) == (0, [])
    assert found.masks().shape == (0, LENGTH, HEIGHT, WIDTH)


def test_a_segmenter_describes_itself_and_its_stages(engine: Path) -> None:
    with mssts.load(engine, threads=1, runner="onnxruntime") as segmenter:
        assert isinstance(segmenter, mssts.Segmenter)
        before = segmenter.stage_seconds()
        segmenter.segment(clip())
        after = segmenter.stage_seconds()
        described = segmenter.describe()
    assert described["name"] == "onnxruntime" and described["threads"] == 1
    assert set(after) == {"decode", "engine", "postprocess"}
    assert all(after[stage] > before[stage] for stage in after)


@pytest.mark.parametrize(
    ("target", "line"),
    [
        ("nowhere/engine", "nowhere/engine"),
        ("grpc://127.0.0.1:1", "no Triton server answers"),
        ("grpc://x", "expected"),
    ],
)
def test_what_cannot_be_loaded_is_one_line(target: str, line: str) -> None:
    with pytest.raises(mssts.MsstsError, match=line) as error:
        mssts.load(target)
    assert "\n" not in str(error.value)


def test_predict_takes_a_path(engine: Path, tmp_path: Path) -> None:
    folder = tmp_path / "scene"
    folder.mkdir()
    for t, frame in enumerate(clip()):
        cv2.imwrite(str(folder / f"{t}.png"), frame[..., ::-1])
    with mssts.load(engine) as segmenter:
        report = mssts.predict(folder, segmenter, tmp_path / "out", progress=False)
    assert (report.frames, report.videos[0].name) == (LENGTH, "scene")
    assert (tmp_path / "out" / "results.json").exists()


class TestSupervision:
    """`to_supervision`, against the masks and the package's own annotators."""

    supervision = pytest.importorskip("supervision")

    @pytest.fixture
    def found(self, engine: Path) -> mssts.Instances:
        with mssts.load(engine) as segmenter:
            return segmenter.segment(clip(), score_threshold=0.05)

    def test_a_frame_has_what_is_visible_in_it(self, found: mssts.Instances) -> None:
        first = found.to_supervision(0)
        assert first.data["class_name"].tolist() == ["red", "blue"]
        assert first.class_id.tolist() == [CATEGORIES[0].id, CATEGORIES[2].id]
        assert first.tracker_id.tolist() == [1, 2]
        np.testing.assert_array_equal(first.mask, found.masks()[:, 0])
        np.testing.assert_array_equal(first.confidence, found.scores)
        np.testing.assert_array_equal(first.xyxy, found.boxes[:, 0])
        last = found.to_supervision(-1)
        assert last.data["class_name"].tolist() == ["red"] and last.tracker_id.tolist() == [1]
        assert last.mask.shape == (1, HEIGHT, WIDTH)

    def test_annotators_zones_and_sinks_take_it(self, found: mssts.Instances) -> None:
        frame_HWC = clip()[0]
        drawn_HWC = self.supervision.MaskAnnotator().annotate(frame_HWC.copy(), found.to_supervision(0))
        changed_HW = (drawn_HWC != frame_HWC).any(axis=-1)
        assert (changed_HW & ~found.masks()[:, 0].any(axis=0)).sum() == 0 and changed_HW.any()
        left = self.supervision.PolygonZone(np.array([[0, 0], [80, 0], [80, HEIGHT - 1], [0, HEIGHT - 1]]))
        assert left.trigger(found.to_supervision(0)).tolist() == [True, False]
        for t in range(LENGTH):
            assert len(found.to_supervision(t)) == (2 if t == 0 else 1)

    def test_a_frame_without_instances_is_empty(self, engine: Path) -> None:
        with mssts.load(engine) as segmenter:
            nothing = segmenter.segment(np.full((2, HEIGHT, WIDTH, 3), 60, np.uint8), score_threshold=0.5)
        assert len(nothing.to_supervision(1)) == 0

    def test_a_frame_that_is_not_there_is_refused(self, found: mssts.Instances) -> None:
        with pytest.raises(mssts.MsstsError, match="frame 3 of a clip of 3; expected 0 to 2"):
            found.to_supervision(3)


def test_masks_are_those_of_the_run_lengths() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(1, 2, 2, 8, 8)).astype(np.float32)
    output = EngineOutput(
        np.array([[0.9, 0.8]], np.float32), np.zeros((1, 2), np.int32), np.full((1, 2, 2, 4), 0.5, np.float32), logits
    )
    found = to_instances(output, np.array([[32, 32]], np.int32), (32, 32))
    # At the centres of pixels that lie on a logit's row and column, interpolation gives that logit itself: none do at
    # stride 4, so the sign is checked where all four neighbours agree.
    masks_NTHW = found.masks()
    for n, t in np.ndindex(2, 2):
        signs = logits[0, n, t] > 0
        for i, j in np.ndindex(7, 7):
            square = signs[i : i + 2, j : j + 2]
            if square.all() or not square.any():
                assert (masks_NTHW[n, t, 4 * i + 2 : 4 * i + 6, 4 * j + 2 : 4 * j + 6] == square.all()).all()
