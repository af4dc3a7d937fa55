"""Version 1 of MovingShapes: frozen, and hard in what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mssts import cli
from mssts.data.moving_shapes import (
    CATEGORIES,
    CATEGORIES_1,
    SCENARIOS,
    SPLITS,
    MovingShapes1Config,
    MovingShapesConfig,
    MovingShapesVideo,
    render_video,
)
from mssts.data.moving_shapes.dataset import Digest
from mssts.evaluation import evaluate

CONFIG = MovingShapes1Config()


@pytest.fixture(scope="module")
def val(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "val"
    assert cli.main(["data", "synth", "--version", "1", "--split", "val", "--out", str(folder)]) == 0
    return folder / "instances.json"


@pytest.fixture(scope="module")
def truth(val: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(val.read_text())
    return content


@pytest.fixture(scope="module")
def videos() -> list[MovingShapesVideo]:
    return [render_video(CONFIG, SPLITS["val"].seed, index) for index in range(60)]


def checksum(config: Any, seed: int, count: int) -> str:
    digest = Digest()
    for index in range(count):
        digest.add(render_video(config, seed, index))
    return digest.hexdigest()


def test_version_0_draws_what_it_always_did() -> None:
    assert checksum(MovingShapesConfig(), 7, 6) == "0fc82d54e01de343ab38443dca4e6b406fce20c3837b655d543a91303856987d"


def test_the_splits_are_frozen(truth: dict[str, Any]) -> None:
    """The whole of the validation split, and the beginnings of the others."""
    assert truth["info"]["sha256"] == SPLITS["val"].sha256
    assert len(truth["videos"]) == SPLITS["val"].videos
    beginnings = {name: checksum(CONFIG, SPLITS[name].seed, 4) for name in ("train", "test")}
    assert beginnings == {
        "train": "f2f4eee6eb851705173cc69976a8fa656c6f2aff78cfdd137ed24dfad368dd9c",
        "test": "7da9e02ffc56ec8d3784a29748b1a8628ad7e565d1ad72e45e7f5f22f805fd62",
    }


def test_the_five_shapes_keep_their_ids(truth: dict[str, Any]) -> None:
    classes = [(category["id"], category["name"]) for category in truth["categories"]]
    assert classes[:5] == [(category.id, category.name) for category in CATEGORIES]
    assert [identity for identity, _ in classes] == list(range(1, 11))
    counts = np.bincount([entry["category_id"] for entry in truth["annotations"]], minlength=11)[1:]
    assert counts.min() >= 10


def results(truth: dict[str, Any]) -> list[dict[str, Any]]:
    """The annotations as predictions."""
    keys = ("video_id", "category_id", "segmentations")
    return [{**{key: entry[key] for key in keys}, "score": 0.9} for entry in truth["annotations"]]


def test_a_perfect_predictor_scores_one(truth: dict[str, Any]) -> None:
    assert evaluate(truth, results(truth)).ap == pytest.approx(1)


def test_a_trivial_predictor_scores_nothing(truth: dict[str, Any]) -> None:
    """A disc of the usual size in the middle of every frame, of every class."""
    y, x = np.mgrid[: CONFIG.height, : CONFIG.width]
    disc = np.hypot(y - CONFIG.height / 2, x - CONFIG.width / 2) < 0.2 * CONFIG.height
    rle = coco_mask.encode(np.asfortranarray(disc, np.uint8))
    mask = {"size": rle["size"], "counts": rle["counts"].decode()}
    predictions = [
        {"video_id": video["id"], "category_id": category.id, "score": 0.5, "segmentations": [mask] * CONFIG.length}
        for video in truth["videos"]
        for category in CATEGORIES_1
    ]
    assert 0 <= evaluate(truth, predictions).ap < 0.01


def test_identities_and_motion_are_worth_something(truth: dict[str, Any]) -> None:
    """Perfect masks without the one or the other."""
    cut = []
    for entry in results(truth):
        shown = [t for t, mask in enumerate(entry["segmentations"]) if mask is not None]
        starts = [t for t in shown if t - 1 not in shown]
        for start, end in zip(starts, [*starts[1:], CONFIG.length], strict=True):
            part = [mask if start <= t < end else None for t, mask in enumerate(entry["segmentations"])]
            cut.append({**entry, "segmentations": part})
    assert 0.5 < evaluate(truth, cut).ap < 0.95  # a new track after each time an object was out of sight
    by_motion = {8, 9, 10}
    still = [{**e, "category_id": 8 if e["category_id"] in by_motion else e["category_id"]} for e in results(truth)]
    assert 0.7 < evaluate(truth, still).ap < 0.85  # all clovers stand still


def gap(mask_THW: np.ndarray) -> int:
    """The longest time out of sight between two sights."""
    shown = np.flatnonzero(mask_THW.any((1, 2)))
    return int(np.diff(shown).max(initial=1)) - 1


def test_each_scenario_is_what_it_says(videos: list[MovingShapesVideo]) -> None:
    of = {name: [video for video in videos if video.scenario == name] for name in SCENARIOS}
    assert all(of.values())
    for name in ("occlusion", "returning"):
        gaps = [max(gap(mask) for mask in video.masks_NTHW) for video in of[name]]
        assert np.mean([2 <= longest <= 8 for longest in gaps]) > 0.8, (name, gaps)
    for video in of["crossing"]:
        labels = video.labels.tolist()
        pair = [n for n, label in enumerate(labels) if labels.count(label) > 1]
        assert len(pair) >= 2
        left = [video.masks_NTHW[pair[-2], t].any(0).argmax() < video.masks_NTHW[pair[-1], t].any(0).argmax()
                for t in (0, CONFIG.length - 1)]  # fmt: skip
        assert left[0] != left[1], "they changed sides"
    areas = [video.masks_NTHW.sum((2, 3)) for video in of["change"]]
    factors = [(area.max(1) / area[area > 0].min()).max() for area in areas]
    assert np.median(factors) > 3

    def contrast(video: MovingShapesVideo) -> float:
        """Colour of the least conspicuous object, less that of the rest."""
        frame, masks = video.frames_THWC[8].astype(float), video.masks_NTHW[:, 8]
        ground = frame[~masks.any(0)].mean(0)
        return min((float(np.abs(frame[mask].mean(0) - ground).max()) for mask in masks if mask.any()), default=255.0)

    assert np.median([contrast(v) for v in of["camouflage"]]) < 0.6 * np.median([contrast(v) for v in of["plain"]])


def test_a_clover_spinner_and_pulser_differ_in_time_alone(videos: list[MovingShapesVideo]) -> None:
    """The area of a pulser alone changes by much within few frames."""
    changes: dict[str, list[float]] = {"clover": [], "spinner": [], "pulser": []}
    for video in videos:
        if video.scenario not in ("plain", "change", "camouflage"):
            continue
        for label, mask_THW in zip(video.labels, video.masks_NTHW, strict=True):
            name, area = CATEGORIES_1[label].name, mask_THW.sum((1, 2)).astype(float)
            inside = not (mask_THW[:, 0].any() or mask_THW[:, -1].any() or mask_THW[:, :, 0].any())
            if name in changes and inside and area.all():
                changes[name].append(float(np.abs(np.diff(np.log(area))).mean()))
    assert all(changes.values())
    assert min(changes["pulser"]) > 0.2
    assert max(*changes["clover"], *changes["spinner"]) < 0.15


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split", "val"], "only version 1 has splits; pass --version 1"),
        (["--version", "1", "--split", "val", "--videos", "3"], "--videos and --split val: a split is frozen"),
        (["--version", "1", "--split", "val", "--size", "64x64"], "--size and --split val: a split is frozen"),
        (["--version", "1", "--videos", "3"], "--seed is missing"),
        (["--seed", "3"], "--videos is missing"),
        (["--version", "1", "--videos", "3", "--seed", "1", "--frames", "0"], "at least 1 frame"),
    ],
)
def test_bad_arguments_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert cli.main(["data", "synth", *arguments, "--out", str(tmp_path / "set")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "set").exists()


def test_a_machine_that_rounds_otherwise_is_told_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    monkeypatch.setitem(SPLITS, "val", replace(SPLITS["val"], videos=1))
    assert cli.main(["data", "synth", "--version", "1", "--split", "val", "--out", str(tmp_path / "val")]) == 0
    assert "differ from the frozen ones" in capsys.readouterr().err


def test_other_sizes_can_be_drawn(tmp_path: Path) -> None:
    arguments = ["--version", "1", "--videos", "2", "--seed", "3", "--frames", "5", "--size", "120x90"]
    assert cli.main(["data", "synth", *arguments, "--out", str(tmp_path / "set")]) == 0
    content = json.loads((tmp_path / "set" / "instances.json").read_text())
    assert [(video["length"], video["height"], video["width"]) for video in content["videos"]] == [(5, 90, 120)] * 2
    assert {video["scenario"] for video in content["videos"]} <= set(SCENARIOS)
