"""Exports are read back by other tools' readers, and equal committed lines."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from support.toy_engine import write_toy_engine

from mssts import masks
from mssts.cli import main
from mssts.data.coco_video import read_coco_video
from mssts.errors import MsstsError
from mssts.manifest import Category
from mssts.prediction.exports import CocoWriter, MotsWriter, VisibleTrack, visible_tracks
from mssts.prediction.tracking import Track

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "tracking.json").read_text())
SIZE = (24, 40)
CATEGORIES = (Category(1, "one"), None, Category(2, "two"))


def tracks(video_id: int) -> list[Track]:
    """The golden results of a video, as the linker returns them."""
    entries = [entry for entry in GOLDEN["results"] if entry["video_id"] == video_id]
    return [
        Track(
            id=number,
            label=0 if entry["category_id"] == 1 else 2,
            score=entry["score"],
            rles=tuple(None if mask is None else mask["counts"].encode() for mask in entry["segmentations"]),
            boxes_T4=np.zeros((15, 4), np.float32),
        )
        for number, entry in enumerate(entries, 1)
    ]


def square(x: int) -> bytes:
    mask = np.zeros(SIZE, bool)
    mask[4:14, x : x + 10] = True
    return masks.encode(mask)


@pytest.mark.parametrize("video_id", [1, 2, 3])
def test_mots_lines_are_those_that_trackeval_read(tmp_path: Path, video_id: int) -> None:
    """The committed lines are those that TrackEval's figures were made from."""
    frames = visible_tracks(tracks(video_id), 15, CATEGORIES, GOLDEN["score_threshold"])
    with MotsWriter(tmp_path / "v.txt") as writer:
        for t, instances in enumerate(frames):
            writer.add(t, SIZE, instances)
    assert sorted((tmp_path / "v.txt").read_text().splitlines()) == sorted(GOLDEN["mots"][f"v{video_id}"])


def test_a_pixel_that_two_masks_claim_goes_to_the_better_in_mots(tmp_path: Path) -> None:
    with MotsWriter(tmp_path / "v.txt") as writer:
        writer.add(0, SIZE, [VisibleTrack(1, 1, 0.4, square(0)), VisibleTrack(2, 1, 0.9, square(4))])
        writer.add(1, SIZE, [VisibleTrack(1, 1, 0.4, square(0)), VisibleTrack(2, 1, 0.9, square(0))])
    rows = [line.split() for line in (tmp_path / "v.txt").read_text().splitlines()]
    assert [(row[0], row[1]) for row in rows] == [("1", "1001"), ("1", "1002"), ("2", "1001")]
    decoded = [coco_mask.decode({"size": [int(row[3]), int(row[4])], "counts": row[5].encode()}) for row in rows]
    np.testing.assert_array_equal(decoded[0], masks.decode(square(4), SIZE))
    assert decoded[1].sum() == 40 and not (decoded[0] & decoded[1]).any()


def test_more_objects_than_mots_has_ids_for_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(MsstsError, match="more than 999 objects"), MotsWriter(tmp_path / "v.txt") as writer:
        for number in range(1000):
            writer.add(number, SIZE, [VisibleTrack(number, 3, 0.5, square(0))])
    assert not list(tmp_path.iterdir())


def write_coco(path: Path) -> None:
    with CocoWriter(path, [category for category in CATEGORIES if category]) as writer:
        for video_id in (1, 2, 3):
            writer.start(video_id, f"v{video_id}")
            for t, instances in enumerate(visible_tracks(tracks(video_id), 15, CATEGORIES)):
                writer.add(t, SIZE, instances)


def test_pycocotools_reads_the_coco_file(tmp_path: Path) -> None:
    write_coco(tmp_path / "coco.json")
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(tmp_path / "coco.json"))
    assert len(coco.imgs) == 45 and {category["name"] for category in coco.cats.values()} == {"one", "two"}
    expected: dict[tuple[int, int, int], Any] = {
        (video_id, t, track.id): rle
        for video_id in (1, 2, 3)
        for track in tracks(video_id)
        for t, rle in enumerate(track.rles)
        if rle is not None
    }
    assert len(coco.anns) == len(expected)
    for annotation in coco.anns.values():
        image = coco.imgs[annotation["image_id"]]
        rle = expected[image["video_id"], image["frame_id"], annotation["track_id"]]
        np.testing.assert_array_equal(coco.annToMask(annotation), masks.decode(rle, SIZE))
        assert annotation["area"] == masks.areas([rle], SIZE)[0]
        assert tuple(annotation["bbox"]) == masks.box(rle, SIZE)


def test_the_coco_file_is_a_coco_video_data_set(tmp_path: Path) -> None:
    write_coco(tmp_path / "coco.json")
    read = read_coco_video(tmp_path / "coco.json", tmp_path)
    visible = [track.rles for v in (1, 2) for track in sorted(tracks(v), key=lambda track: track.id)]
    assert len(read.tracks) == len(visible)
    assert {track.rles for track in read.tracks} == set(visible)


def test_predict_writes_both_formats_beside_its_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames = tmp_path / "scene"
    frames.mkdir()
    for t in range(3):
        picture = np.full((64, 128, 3), 60, np.uint8)
        picture[16:48, 16 + 8 * t : 64] = (0, 0, 255)  # BGR: red
        assert cv2.imwrite(str(frames / f"{t}.png"), picture)
    engine = write_toy_engine(tmp_path / "engine").parent
    out = tmp_path / "out"
    arguments = ["--model", str(engine), "--out", str(out), "--pictures", "0", "--format", "mots", "--format", "coco"]
    assert main(["predict", str(frames), *arguments]) == 0
    assert "scene.txt" in capsys.readouterr().out
    (entry,) = json.loads((out / "results.json").read_text())
    lines = [line.split() for line in (out / "scene.txt").read_text().splitlines()]
    assert [line[:5] for line in lines] == [[str(t), "1001", "1", "64", "128"] for t in (1, 2, 3)]
    assert [line[5] for line in lines] == [mask["counts"] for mask in entry["segmentations"]]
    (track,) = read_coco_video(out / "coco.json", out).tracks
    assert [rle.decode() for rle in track.rles if rle] == [line[5] for line in lines]


def test_nothing_half_written_is_left(tmp_path: Path) -> None:
    with pytest.raises(KeyError), CocoWriter(tmp_path / "coco.json", []) as writer:
        writer.start(1, "v")
        writer.add(0, SIZE, [VisibleTrack(1, 1, 0.5, square(0))])
        raise KeyError
    assert not list(tmp_path.iterdir())
