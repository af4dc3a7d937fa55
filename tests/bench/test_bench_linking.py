"""The benchmark of linking knows what perfect linking is worth."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mssts.bench.linking.measurement import SetWindows, VideoWindows, measure_linking, pooled
from mssts.cli import main
from mssts.data.moving_shapes import CATEGORIES, MovingShapesConfig, render_video, write_dataset
from mssts.data.youtube_vis import read_youtube_vis
from mssts.files import read_json
from mssts.manifest import Category
from mssts.media.video import Frame
from mssts.prediction.appearance import colour_histograms, without_hues
from mssts.prediction.windowing import windows
from mssts.segmenters.base import Instances

SEED, VIDEOS, FRAMES = 3, 2, 20


@pytest.fixture(scope="module")
def perfect(tmp_path_factory: pytest.TempPathFactory) -> SetWindows:
    """What an engine without a mistake finds in windows of 6 frames that share 3."""
    config = MovingShapesConfig(length=FRAMES)
    path = write_dataset(tmp_path_factory.mktemp("linking") / "set", VIDEOS, SEED, config, progress=False)
    data = read_youtube_vis(path)
    videos = []
    for index, video in enumerate(data.videos):
        tracks = [track for track in data.tracks if track.video_id == video.id]
        frames = [Frame(rgb_HWC=rgb_HWC) for rgb_HWC in render_video(config, SEED, index).frames_THWC]
        of_video = []
        for start, window in windows(frames, 6, 3):
            end = start + len(window)
            kept = [track for track in tracks if any(track.rles[start:end])]
            boxes = [[_corners(box) for box in track.bboxes[start:end]] for track in kept]
            found = Instances(
                scores=np.full(len(kept), 0.9, np.float32),
                labels=np.array([track.category_id - 1 for track in kept], np.int32),
                boxes=np.array(boxes, np.float32).reshape(len(kept), len(window), 4),
                rles=tuple(track.rles[start:end] for track in kept),
                size=video.size,
                categories=CATEGORIES,
            )
            of_video.append((start, len(window), found, colour_histograms(found, window)))
        videos.append(VideoWindows(video.id, tuple(of_video)))
    return SetWindows(read_json(path), tuple(videos))


def _corners(box: tuple[float, float, float, float] | None) -> tuple[float, float, float, float]:
    x, y, width, height = box or (0, 0, 0, 0)
    return x, y, x + width, y + height


def test_the_oracle_links_perfect_windows_perfectly_and_the_default_as_well(perfect: SetWindows) -> None:
    rows = {row["linking"]: row for row in measure_linking(perfect, FRAMES)}
    assert (rows["oracle"]["ap"], rows["oracle"]["hota"], rows["oracle"]["id_switches"]) == (1, 1, 0)
    assert rows["default"]["ap"] >= 0.98
    assert {"no colours", "no classes", "grey", "no re-entry", "greedy assignment"} <= set(rows)
    assert rows["no re-entry"]["hota"] <= rows["default"]["hota"]


def test_classes_are_matched_by_name(perfect: SetWindows) -> None:
    """An engine of other classes, in another order."""
    classes = (Category(1, "heart"), *(Category(label, known.name) for label, known in enumerate(CATEGORIES[::-1], 2)))
    shown = [
        replace(
            video, windows=tuple((*place, _in_classes(found, classes), hues) for *place, found, hues in video.windows)
        )
        for video in perfect.videos
    ]
    (oracle, *_) = measure_linking(replace(perfect, videos=tuple(shown)), FRAMES)
    assert (oracle["ap"], oracle["hota"]) == (1, 1)


def _in_classes(found: Instances, classes: tuple[Category, ...]) -> Instances:
    labels = [[known.name for known in classes].index(name) for name in found.names]
    return replace(found, labels=np.array(labels, np.int32), categories=classes)


def test_the_colours_of_grey_pictures_are_known_without_them(perfect: SetWindows) -> None:
    (_, length, found, colours_ND), *_ = perfect.videos[0].windows
    shades = np.linspace(0, 255, found.size[1]).astype(np.uint8)
    frame = Frame(rgb_HWC=np.broadcast_to(shades[None, :, None], (*found.size, 3)))
    grey_ND = colour_histograms(found, [frame] * length)
    np.testing.assert_array_equal(without_hues(grey_ND), grey_ND)
    assert without_hues(colours_ND).sum(axis=1) == pytest.approx(colours_ND.sum(axis=1))
    assert (without_hues(colours_ND) != colours_ND).any()


def test_sets_are_pooled_without_mixing_their_videos(perfect: SetWindows) -> None:
    both = pooled([perfect, perfect])
    assert [video.video_id for video in both.videos] == [1, 2, 3, 4]
    assert len(both.truth["annotations"]) == 2 * len(perfect.truth["annotations"])
    (oracle, *_) = measure_linking(both, FRAMES)
    assert (oracle["videos"], oracle["ap"]) == (4, 1)


def test_what_the_engine_found_is_kept_and_used_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import support.toy_engine as toy

    import mssts.bench.linking.measurement as measurement

    monkeypatch.setattr(toy, "CATEGORIES", CATEGORIES[:3])
    monkeypatch.setattr(measurement, "VARIANTS", {"default": measurement.VARIANTS["default"]})
    engine = toy.write_toy_engine(tmp_path / "engine").parent
    arguments = ["bench", "linking", "--model", str(engine), "--sets", "5:1x8", "--cache", str(tmp_path / "cache")]
    assert main([*arguments, "--out", str(tmp_path / "first.json")]) == 0
    monkeypatch.setattr(measurement, "_segmented", None)  # would fail if it were called again
    assert main([*arguments, "--out", str(tmp_path / "second.json")]) == 0
    first, second = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("first", "second"))
    assert first["rows"] == second["rows"]
    assert [row["linking"] for row in first["rows"]] == ["oracle", "default", "greedy assignment"]
    assert {"machine", "versions", "commit", "engine", "sets", "options"} <= set(first)
    assert "HOTA" in capsys.readouterr().out


def test_an_engine_of_other_classes_is_refused_before_it_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import support.toy_engine as toy

    import mssts.bench.linking.measurement as measurement

    monkeypatch.setattr(measurement, "_segmented", None)
    engine = toy.write_toy_engine(tmp_path / "engine").parent
    assert main(["bench", "linking", "--model", str(engine), "--sets", "5:1x8"]) == 2
    assert "is a class of the engine (red, green, blue)" in capsys.readouterr().err


def test_a_set_that_is_none_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["bench", "linking", "--model", str(tmp_path), "--sets", "many"]) == 2
    assert "expected SEED:VIDEOSxFRAMES" in capsys.readouterr().err
