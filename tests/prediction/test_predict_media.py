"""`mssts predict` on realistic files.

Masks, boxes, times and notes are those of the film as displayed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from support.media_files import as_displayed, set_display_matrix, with_exif, write_video
from support.toy_engine import write_toy_engine

from mssts.cli import main
from mssts.evaluation import evaluate

HEIGHT, WIDTH = 128, 256
LENGTH = 8
MIRROR, QUARTER = (-1, 0, 0, 1), (0, 1, -1, 0)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_engine(tmp_path_factory.mktemp("engine")).parent


def truth(t: int) -> np.ndarray:
    """The mask of a red square on its way to the right, in the upper half."""
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[16:64, 16 + 8 * t : 64 + 8 * t] = True
    return mask


def scene(t: int) -> np.ndarray:
    rgb = np.full((HEIGHT, WIDTH, 3), 60, np.uint8)
    rgb[truth(t)] = (255, 0, 0)
    return rgb


def run(*arguments: object) -> int:
    return main(["predict", *map(str, arguments)])


def overlap(entry: dict, masks: list[np.ndarray]) -> list[float]:
    """The IoU of each frame's mask."""
    found = []
    for segmentation, mask in zip(entry["segmentations"], masks, strict=True):
        assert segmentation["size"] == list(mask.shape)
        seen = coco_mask.decode(segmentation).astype(bool)
        found.append((seen & mask).sum() / (seen | mask).sum())
    return found


@pytest.mark.parametrize("turn", [MIRROR, QUARTER])
def test_masks_lie_on_the_film_as_displayed(turn: tuple[int, ...], engine: Path, tmp_path: Path) -> None:
    path = write_video(tmp_path / "film.mp4", [scene(t) for t in range(LENGTH)])
    set_display_matrix(path, turn)
    assert run(path, "--model", engine, "--out", tmp_path / "out") == 0
    (red,) = json.loads((tmp_path / "out" / "results.json").read_text())
    masks = [as_displayed(truth(t)[..., None].repeat(3, 2), turn)[..., 0] for t in range(LENGTH)]
    assert min(overlap(red, masks)) > 0.8
    with av.open(str(tmp_path / "out" / "film.mp4")) as drawn:
        stream = drawn.streams.video[0]
        assert stream.height * masks[0].shape[1] == stream.width * masks[0].shape[0]


def test_masks_and_overlay_are_of_square_pixels(engine: Path, tmp_path: Path) -> None:
    narrow = [cv2.resize(scene(t), (WIDTH * 3 // 4, HEIGHT), interpolation=cv2.INTER_AREA) for t in range(LENGTH)]
    path = write_video(tmp_path / "film.mp4", narrow, aspect=Fraction(4, 3))
    assert run(path, "--model", engine, "--out", tmp_path / "out") == 0
    (red,) = json.loads((tmp_path / "out" / "results.json").read_text())
    assert min(overlap(red, [truth(t) for t in range(LENGTH)])) > 0.8
    with av.open(str(tmp_path / "out" / "film.mp4")) as drawn:
        stream = drawn.streams.video[0]
        assert stream.height * WIDTH == stream.width * HEIGHT
        assert stream.sample_aspect_ratio in (None, 1)


def shown_at(path: Path) -> list[float]:
    with av.open(str(path)) as container:
        return [float(frame.time or 0) for frame in container.decode(video=0)]


def test_a_variable_frame_rate_keeps_its_times(engine: Path, tmp_path: Path) -> None:
    times = [0, 0.1, 0.15, 0.9, 1.0, 1.033, 2.5, 2.6]
    path = write_video(tmp_path / "varies.mp4", [scene(t) for t in range(LENGTH)], times=times)
    assert run(path, "--model", engine, "--out", tmp_path / "out") == 0
    (video,) = json.loads((tmp_path / "out" / "report.json").read_text())["videos"]
    assert video["variable_frame_rate"] is True
    assert video["times"] == pytest.approx(times, abs=1e-3)
    assert shown_at(tmp_path / "out" / "varies.mp4") == pytest.approx(times, abs=1e-3)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])  # the latter rounds times to milliseconds
def test_a_constant_frame_rate_stays_constant(suffix: str, engine: Path, tmp_path: Path) -> None:
    path = write_video(tmp_path / f"steady.{suffix}", [scene(t) for t in range(LENGTH)], rate=30)
    assert run(path, "--model", engine, "--out", tmp_path / "out") == 0
    (video,) = json.loads((tmp_path / "out" / "report.json").read_text())["videos"]
    assert (video["fps"], video["variable_frame_rate"], video["times"], video["notes"]) == (30, False, None, [])
    with av.open(str(tmp_path / "out" / "steady.mp4")) as drawn:
        assert drawn.streams.video[0].average_rate == 30
    assert shown_at(tmp_path / "out" / "steady.mp4") == pytest.approx([t / 30 for t in range(LENGTH)], abs=1e-5)


def test_missing_frames_are_said_on_stderr_and_in_the_report(
    engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = [scene(t) for t in range(LENGTH)] * 3
    path = write_video(tmp_path / "cut.mp4", frames, container={"movflags": "+faststart"})
    with av.open(str(path)) as container:
        position = [packet.pos for packet in container.demux(video=0) if packet.size][LENGTH]
    path.write_bytes(path.read_bytes()[: position + 10])
    assert run(path, "--model", engine, "--out", tmp_path / "out") == 0
    note = "cut off: 8 of the 24 frames that the container claims are there"
    assert capsys.readouterr().err.splitlines()[-1] == f"warning: cut: {note}"
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["frames"], report["videos"][0]["notes"]) == (LENGTH, [note])


def test_a_corrupt_frame_ends_in_one_line_and_leaves_nothing(
    engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_video(tmp_path / "broken.mp4", [scene(t) for t in range(LENGTH)])
    with av.open(str(path)) as container:
        position, size = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size][5]
    data = bytearray(path.read_bytes())
    data[position : position + size] = bytes(size)
    path.write_bytes(data)
    assert run(path, "--model", engine, "--out", tmp_path / "out") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "frame 5 of 8 cannot be decoded" in line
    assert not (tmp_path / "out").exists()


def test_names_with_colons_are_written_too(engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "12:30:05.mp4", [scene(t) for t in range(3)])
    assert run("12:30:05.mp4", "--model", engine, "--out", "out:1") == 0
    assert len(shown_at(tmp_path / "out:1" / "12:30:05.mp4")) == 3


def write_dataset(folder: Path, masks_as: str) -> Path:
    """Frames stored a quarter turn away from how they are displayed.

    Masks are of the picture displayed, or of the one stored.
    """
    images = folder / "JPEGImages" / "scene"
    images.mkdir(parents=True)
    for t in range(LENGTH):
        encoded = cv2.imencode(".jpg", scene(t)[..., ::-1], (cv2.IMWRITE_JPEG_QUALITY, 95))[1].tobytes()
        (images / f"{t}.jpg").write_bytes(with_exif(encoded, 6))
    segmentations = []
    for t in range(LENGTH):
        mask = truth(t)
        if masks_as == "apply":
            mask = as_displayed(mask[..., None].repeat(3, 2), QUARTER)[..., 0]
        rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        segmentations.append({"size": list(mask.shape), "counts": rle["counts"].decode()})
    height, width = segmentations[0]["size"]
    names = [f"scene/{t}.jpg" for t in range(LENGTH)]
    path = folder / "instances.json"
    path.write_text(
        json.dumps({
            "videos": [{"id": 1, "height": height, "width": width, "file_names": names}],
            "categories": [{"id": 1, "name": "red"}, {"id": 2, "name": "green"}, {"id": 3, "name": "blue"}],
            "annotations": [{"id": 1, "video_id": 1, "category_id": 1, "segmentations": segmentations}],
        })
    )  # fmt: skip
    return path


@pytest.mark.parametrize("exif", ["apply", "ignore"])
def test_a_data_set_whose_images_are_turned_by_exif(
    exif: str, engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_dataset(tmp_path / "set", exif)
    assert run(path, "--model", engine, "--out", tmp_path / "out") == 2
    assert "0.jpg: has EXIF orientation 6" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    for transfer in ("--raw", "--jpeg"):  # a server decodes JPEGs as displayed
        assert run(path, "--model", engine, "--out", tmp_path / "out", "--exif", exif, transfer) == 0
        assert evaluate(path, tmp_path / "out" / "results.json").to_json()["ap75"] == pytest.approx(1)


def test_a_name_that_is_not_text_costs_nothing(tmp_path: Path) -> None:
    """File names of any bytes: results are written, unprintable bytes are escaped."""
    engine = write_toy_engine(tmp_path / "engine").parent
    folder = tmp_path / os.fsdecode(b"sc\xffne")
    folder.mkdir()
    for t in range(2):
        (folder / f"{t}.png").write_bytes(cv2.imencode(".png", np.full((64, 96, 3), 60, np.uint8))[1].tobytes())
    out = tmp_path / os.fsdecode(b"o\xfft")
    command = [sys.executable, "-m", "mssts.cli", "predict", str(folder), "--model", str(engine), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert b"sc\\udcffne.mp4" in done.stdout and b"Traceback" not in done.stderr
    names = {path.name for path in out.iterdir()}
    assert names == {"results.json", "report.json", os.fsdecode(b"sc\xffne.mp4"), os.fsdecode(b"sc\xffne.png")}
    assert json.loads((out / "report.json").read_text())["videos"][0]["frames"] == 2
