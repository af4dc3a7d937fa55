"""Names that are not UTF-8: everything is written, and printed names are escaped."""

from __future__ import annotations

import json
import os
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from support.toy_engine import CATEGORIES, write_toy_engine

from mssts.cli import main

NAME = os.fsdecode(b"caf\xe9")  # Latin-1
SHOWN = "caf\\udce9"
HEIGHT, WIDTH, FRAMES = 64, 128, 3


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In a folder of such a name too."""
    return write_toy_engine(tmp_path_factory.mktemp("engine") / NAME).parent


def frame() -> np.ndarray:
    image = np.full((HEIGHT, WIDTH, 3), 60, np.uint8)
    image[8:40, 16:80] = (255, 0, 0)
    return image


def write_folder(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for t in range(FRAMES):
        (folder / f"{NAME}{t}.png").write_bytes(cv2.imencode(".png", frame()[..., ::-1])[1].tobytes())
    return folder


def write_video(path: Path) -> Path:
    plain = path.with_name("plain.mp4")
    with av.open(str(plain), "w") as container:
        stream = container.add_stream("mpeg4", rate=12)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for _ in range(FRAMES):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame(), format="rgb24")))
        container.mux(stream.encode())
    return plain.rename(path)


def write_dataset(folder: Path) -> Path:
    """Also with half a surrogate pair in the name of a class, which no encoding has."""
    write_folder(folder / "JPEGImages" / NAME)
    names = [f"{NAME}/{NAME}{t}.png" for t in range(FRAMES)]
    polygons = [[[16, 8, 80, 8, 80, 40, 16, 40]]] * FRAMES
    value = {
        "videos": [{"id": 1, "width": WIDTH, "height": HEIGHT, "file_names": names}],
        "categories": [{"id": 1, "name": CATEGORIES[0].name}, {"id": 2, "name": "half \ud83d"}],
        "annotations": [{"id": 1, "video_id": 1, "category_id": 1, "iscrowd": 0, "segmentations": polygons}],
    }
    path = folder / f"{NAME}.json"
    path.write_text(json.dumps(value))
    return path


@pytest.mark.parametrize("kind", ["video", "folder", "data set"])
def test_everything_is_predicted_and_the_names_are_escaped(
    engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    write = {"video": write_video, "folder": write_folder, "data set": write_dataset}[kind]
    source = write(tmp_path / (f"{NAME}.mp4" if kind == "video" else NAME))
    out = tmp_path / f"{NAME} out"
    assert main(["predict", str(source), "--model", str(engine), "--out", str(out), "--zip"]) == 0
    assert f"{SHOWN}.mp4" in capsys.readouterr().out
    files = {f"{NAME}.mp4", f"{NAME}.png", "results.json", "results.zip", "report.json"}
    assert {path.name for path in out.iterdir()} == files
    (entry,) = json.loads((out / "results.json").read_text())
    assert entry["category_id"] == 1
    report = json.loads((out / "report.json").read_text())
    assert report["videos"][0]["name"] == NAME

    if kind == "data set":
        results, metrics = str(out / "results.json"), tmp_path / f"{NAME} metrics.json"
        assert main(["evaluate", "--gt", str(source), "--results", results, "--out", str(metrics)]) == 0
        assert "half \\ud83d" in capsys.readouterr().out
        assert json.loads(metrics.read_text())["ap50"] == pytest.approx(1)
        assert main(["evaluate", "--check", results, "--videos", str(source)]) == 0


def test_an_error_shows_the_name_escaped(tmp_path: Path, engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(tmp_path / NAME), "--model", str(engine), "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{SHOWN}: no such file" in line


def test_a_run_folder_that_tensorboard_cannot_write_is_refused_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = write_dataset(tmp_path / "data"), tmp_path / NAME
    assert main(["train", "--data", str(data), "--out", str(out)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{SHOWN}: not UTF-8" in line
    assert not out.exists()
