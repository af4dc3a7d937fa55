"""Masks: operations against pycocotools, and equal verdicts about broken ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_mask

from mssts import masks
from mssts.cli import main
from mssts.data.fields import Field
from mssts.data.moving_shapes import MovingShapesConfig, write_dataset
from mssts.errors import MsstsError


@st.composite
def stacks(draw: st.DrawFn) -> np.ndarray:
    """Some masks of one size, bool [N, H, W]."""
    return draw(arrays(bool, draw(st.tuples(st.integers(1, 4), st.integers(1, 40), st.integers(1, 40)))))


def coco(mask_HW: np.ndarray) -> dict[str, Any]:
    return coco_mask.encode(np.asfortranarray(mask_HW.astype(np.uint8)))


@given(stacks(), st.sampled_from("CF"))
@example(np.zeros((2, 3, 5), bool), "C")
@example(np.ones((2, 3, 5), bool), "C")
def test_every_operation_agrees_with_pycocotools(masks_NHW: np.ndarray, order: str) -> None:
    size = masks_NHW.shape[1:]
    expected = [coco(mask) for mask in masks_NHW]
    rles = [masks.encode(np.array(mask, order=order)) for mask in masks_NHW]
    assert rles == [rle["counts"] for rle in expected]
    for rle, mask in zip(rles, masks_NHW, strict=True):
        np.testing.assert_array_equal(masks.decode(rle, size), mask)
        assert masks.box(rle, size) == tuple(coco_mask.toBbox({"size": size, "counts": rle}))
    np.testing.assert_array_equal(masks.areas(rles, size), coco_mask.area(expected))
    np.testing.assert_array_equal(masks.iou(rles, rles, size), coco_mask.iou(expected, expected, [0] * len(rles)))
    shared = (masks_NHW[:, None] & masks_NHW[None]).sum((2, 3))
    np.testing.assert_array_equal(masks.intersections(rles, rles, size), shared)


def test_intersections_of_large_masks_are_exact() -> None:
    rng = np.random.default_rng(0)
    size = (720, 1280)
    masks_NHW = rng.random((6, *size)) < rng.random((6, 1, 1))
    rles = [masks.encode(mask) for mask in masks_NHW]
    shared = (masks_NHW[:3, None] & masks_NHW[None, 3:]).sum((2, 3))
    np.testing.assert_array_equal(masks.intersections(rles[:3], rles[3:], size), shared)
    assert masks.intersections([], rles, size).shape == (0, 6)


@given(arrays(bool, st.tuples(st.integers(1, 40), st.integers(1, 40))))
def test_every_form_is_read_as_the_same_mask(mask: np.ndarray) -> None:
    size = mask.shape
    rle = coco(mask)["counts"]
    flat = mask.ravel(order="F")
    borders = np.flatnonzero(np.diff(flat, prepend=False)).tolist()
    runs = np.diff([0, *borders, flat.size]).tolist()
    for counts in (rle, rle.decode(), runs):
        assert masks.read_mask(Field(Path("f"), "m", {"size": list(size), "counts": counts}), "v", size) == rle
    assert masks.from_runs(np.array(runs), size) == rle


@given(st.binary(max_size=12) | st.text("0123456789:;<=>?@NOPQ`abo", max_size=12).map(str.encode), st.data())
def test_any_string_is_refused_or_read_as_pycocotools_does(counts: bytes, data: st.DataObject) -> None:
    """The size is the one that the string fills, if it is whole."""
    runs = _runs(counts)
    pixels = sum(runs) if runs else data.draw(st.integers(1, 100))
    if not 0 < pixels <= 10_000:
        return
    field = Field(Path("f"), "m", {"size": [pixels, 1], "counts": counts.decode("latin-1")})
    if runs is None or min(runs) < 0:
        with pytest.raises(MsstsError, match=r"^f: m\.counts "):
            masks.read_mask(field, "v", (pixels, 1))
        return
    rle = masks.read_mask(field, "v", (pixels, 1))
    expected = np.repeat(np.arange(len(runs)) % 2, runs).astype(bool)
    np.testing.assert_array_equal(masks.decode(rle, (pixels, 1))[:, 0], expected)
    np.testing.assert_array_equal(coco_mask.decode({"size": [pixels, 1], "counts": rle})[:, 0], expected)


def _runs(counts: bytes) -> list[int] | None:
    """The runs of a string, or None if it is broken.

    It is read character by character, as the format is defined.
    """
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        group = character - 48
        if not 0 <= group < 64 or shift > 25:
            return None
        value |= (group & 31) << shift
        shift += 5
        if group & 32:
            continue
        if group & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    return runs if runs and not shift else None


@settings(max_examples=30)
@given(st.lists(st.lists(st.integers(-20, 60), min_size=6, max_size=12).filter(lambda p: len(p) % 2 == 0), min_size=1))
def test_polygons_are_those_of_pycocotools(polygons: list[list[int]]) -> None:
    expected = coco_mask.merge(coco_mask.frPyObjects(polygons, 30, 40))["counts"]
    assert masks.read_mask(Field(Path("f"), "m", polygons), "v", (30, 40)) == expected


# --- one verdict wherever a data set is read ----------------------------------------------------------------------

GOOD = [10, 10, 30, 10, 30, 30, 10, 30]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set, and what a program without fault might have predicted on it."""
    out = tmp_path_factory.mktemp("masks") / "shapes"
    path = write_dataset(out, 1, 0, MovingShapesConfig(width=64, height=48, length=2), progress=False)
    (out / "results.json").write_text("[]")
    return path


@pytest.mark.parametrize("command", ["train", "predict", "evaluate"])
@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize(
    ("stray", "problem"),
    [([20, 10, 21, 11], "has 4 numbers"), ([20, 10, 21, 11, 22, 12, 9], "has 7 numbers"), ([], "has 0 numbers")],
)
def test_a_stray_polygon_is_one_line_wherever_it_lies(
    shapes: Path, capsys: pytest.CaptureFixture[str], command: str, place: int, stray: list[int], problem: str
) -> None:
    value = json.loads(shapes.read_text())
    polygons = [GOOD, GOOD]
    polygons.insert(place, stray)
    value["annotations"][0]["segmentations"][1] = polygons
    path = shapes.parent / "broken.json"
    path.write_text(json.dumps(value))
    arguments = {
        "train": ["train", "--data", path, "--out", shapes.parent / "run"],
        "predict": ["predict", path, "--model", shapes.parent / "absent.onnx", "--out", shapes.parent / "out"],
        "evaluate": ["evaluate", "--gt", path, "--results", shapes.parent / "results.json"],
    }[command]
    assert main([str(argument) for argument in arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    expected = f"{path}: annotations[0].segmentations[1][{place}] {problem}, a polygon has an even number of at least 6"
    assert expected in line
    assert not (shapes.parent / "run").exists() and not (shapes.parent / "out").exists()
