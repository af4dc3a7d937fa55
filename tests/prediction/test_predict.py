"""`mssts predict` from end to end, with an engine whose answers are obvious."""

from __future__ import annotations

import dataclasses
import json
import socket
import struct
import weakref
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from support.toy_engine import write_toy_engine

from mssts.cli import main
from mssts.errors import MsstsError
from mssts.evaluation import evaluate
from mssts.manifest import Manifest
from mssts.media.sources import Frame, VideoSource, open_source
from mssts.prediction.predictor import PredictOptions, predict
from mssts.runners import load_runner
from mssts.segmenters.base import Instances, Segmenter
from mssts.segmenters.local import LocalSegmenter
from mssts.segmenters.preprocessing import decode_frames

LENGTH = 12  # windows of 5 sharing 1: from 0, 4 and 7
HEIGHT, WIDTH = 128, 256


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_engine(tmp_path_factory.mktemp("engine")).parent


def red_mask(t: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[32:96, 16 + 8 * t : 80 + 8 * t] = True
    return mask


def blue_mask(t: int) -> np.ndarray:
    """Appears in the second window, leaves in the third."""
    mask = np.zeros((HEIGHT, WIDTH), bool)
    if 6 <= t < 10:
        mask[64:112, 160:240] = True
    return mask & ~red_mask(t)


def frame(t: int) -> np.ndarray:
    rgb = np.full((HEIGHT, WIDTH, 3), 60, np.uint8)
    rgb[blue_mask(t)] = (0, 0, 255)
    rgb[red_mask(t)] = (255, 0, 0)
    return rgb


def write_folder(folder: Path, suffix: str = ".png", length: int = LENGTH) -> Path:
    folder.mkdir(parents=True)
    for t in range(length):
        assert cv2.imwrite(str(folder / f"{t}{suffix}"), frame(t)[..., ::-1])
    return folder


def write_mp4(path: Path, length: int = LENGTH, codec: str = "mpeg4") -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=12)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = WIDTH, HEIGHT, "yuv420p", 8_000_000
        for t in range(length):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame(t % LENGTH), format="rgb24")))
        container.mux(stream.encode())
    return path


def write_dataset(folder: Path, lengths: Sequence[int] = (LENGTH, 3)) -> Path:
    """A YouTube-VIS set with its ground truth: the same scene, of several lengths."""
    videos, annotations = [], []
    for number, length in enumerate(lengths, 1):
        write_folder(folder / "JPEGImages" / f"scene{number}", ".jpg", length)
        names = [f"scene{number}/{t}.jpg" for t in range(length)]
        videos.append({"id": number, "width": WIDTH, "height": HEIGHT, "length": length, "file_names": names})
        for category_id, mask_of in ((1, red_mask), (3, blue_mask)):
            masks = [mask_of(t) for t in range(length)]
            if any(mask.any() for mask in masks):
                annotations.append({
                    "id": len(annotations) + 1, "video_id": number, "category_id": category_id, "iscrowd": 0,
                    "segmentations": [_segmentation(mask) for mask in masks],
                })  # fmt: skip
    categories = [{"id": 1, "name": "red"}, {"id": 2, "name": "green"}, {"id": 3, "name": "blue"}]
    path = folder / "instances.json"
    path.write_text(json.dumps({"videos": videos, "categories": categories, "annotations": annotations}))
    return path


def _segmentation(mask: np.ndarray) -> dict[str, object] | None:
    if not mask.any():
        return None
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": rle["counts"].decode()}


def run(*arguments: object) -> int:
    return main(["predict", *map(str, arguments)])


def assert_follows(entry: dict, mask_of: object, length: int = LENGTH) -> None:
    """Every frame's mask overlaps the truth by 0.85.

    The toy's masks reach a pixel or two beyond its 8-pixel cells.
    """
    assert len(entry["segmentations"]) == length
    for t, segmentation in enumerate(entry["segmentations"]):
        truth = mask_of(t)
        assert (segmentation is not None) == truth.any(), t
        if segmentation is not None:
            mask = coco_mask.decode(segmentation).astype(bool)
            assert (mask & truth).sum() / (mask | truth).sum() > 0.85, t


# --- what is written ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["png", "jpg", "mp4"])
def test_objects_are_followed_through_the_windows(kind: str, engine: Path, tmp_path: Path) -> None:
    source = write_mp4(tmp_path / "scene.mp4") if kind == "mp4" else write_folder(tmp_path / "scene", f".{kind}")
    out = tmp_path / "out"
    assert run(source, "--model", engine, "--out", out) == 0

    red, blue = sorted(json.loads((out / "results.json").read_text()), key=lambda entry: entry["category_id"])
    assert (red["video_id"], red["category_id"], blue["category_id"]) == (1, 1, 3)
    assert 0 < blue["score"] < red["score"] < 1
    assert_follows(red, red_mask)
    assert_follows(blue, blue_mask)

    report = json.loads((out / "report.json").read_text())
    assert (report["frames"], report["clips"]) == (LENGTH, 3)
    assert report["frames_per_second"] == pytest.approx(LENGTH / report["seconds"])
    assert report["engine"]["name"] in ("onnxruntime", "openvino")
    assert {"machine", "versions", "commit"} <= report.keys()
    stages = report["stage_seconds"]
    assert stages["engine"] > 0
    assert all(0 <= seconds <= report["seconds"] for name, seconds in stages.items() if name != "render")

    assert sorted(path.name for path in out.iterdir()) == ["report.json", "results.json", "scene.mp4", "scene.png"]
    assert cv2.imread(str(out / "scene.png")) is not None
    drawn = [picture.rgb_HWC for picture in open_source(out / "scene.mp4").videos[0].frames()]
    assert len(drawn) == LENGTH
    assert drawn[0].shape[1] * HEIGHT == drawn[0].shape[0] * WIDTH
    # A mask is drawn over its object, so a place inside the square is not the red that it was; outside it is.
    scale = drawn[0].shape[0] // HEIGHT
    for y, x, is_inside in ((80, 100, True), (120, 200, False)):
        difference = np.abs(drawn[5][y * scale, x * scale].astype(int) - frame(5)[y, x]).max()
        assert (difference > 40) == is_inside


def test_a_data_set_is_predicted_as_its_evaluation_expects(engine: Path, tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "set")
    assert run(path, "--model", engine, "--out", tmp_path / "out") == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "report.json", "results.json", "scene1.mp4", "scene1.png", "scene2.mp4", "scene2.png",
    }  # fmt: skip
    entries = json.loads((tmp_path / "out" / "results.json").read_text())
    assert sorted((entry["video_id"], entry["category_id"]) for entry in entries) == [(1, 1), (1, 3), (2, 1)]
    (short,) = [entry for entry in entries if entry["video_id"] == 2]
    assert_follows(short, red_mask, 3)  # shorter than a window
    assert json.loads((tmp_path / "out" / "report.json").read_text())["clips"] == 3 + 1

    metrics = evaluate(path, tmp_path / "out" / "results.json").to_json()
    assert metrics["ap75"] == 1  # IoU is above 0.85, by assert_follows


def test_max_videos_and_no_pictures(engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_dataset(tmp_path / "set")
    assert run(path, "--model", engine, "--out", tmp_path / "out", "--max-videos", 1, "--pictures", 0) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"report.json", "results.json"}
    assert {entry["video_id"] for entry in json.loads((tmp_path / "out" / "results.json").read_text())} == {1}
    assert f"frames {LENGTH}" in capsys.readouterr().out


def test_a_video_of_nothing_has_empty_results(engine: Path, tmp_path: Path) -> None:
    folder = tmp_path / "grey"
    folder.mkdir()
    for t in range(7):
        cv2.imwrite(str(folder / f"{t}.png"), np.full((HEIGHT, WIDTH, 3), 90, np.uint8))
    assert run(folder, "--model", engine, "--out", tmp_path / "out") == 0
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == []
    assert (tmp_path / "out" / "grey.mp4").stat().st_size > 0


def test_results_of_another_run_in_the_folder_are_replaced_and_other_files_stay(engine: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    for source in (write_folder(tmp_path / "long"), write_folder(tmp_path / "short", length=2)):
        assert run(source, "--model", engine / "model.onnx", "--out", out, "--pictures", 0) == 0
        (out / "notes.txt").write_text("mine")
    assert {len(entry["segmentations"]) for entry in json.loads((out / "results.json").read_text())} == {2}
    assert sorted(path.name for path in out.iterdir()) == ["notes.txt", "report.json", "results.json"]


# --- what is sent, and how much is held ---------------------------------------------------------------------------


class Recorder(Segmenter):
    """A segmenter that keeps what it is sent and finds what `engine` finds."""

    def __init__(self, engine: Path) -> None:
        self._local = LocalSegmenter(engine)
        self.clips: list[np.ndarray | Sequence[bytes]] = []

    @property
    def manifest(self) -> Manifest:
        return self._local.manifest

    def segment(self, frames_THWC: np.ndarray | Sequence[bytes], score_threshold: float = 0.0) -> Instances:
        self.clips.append(frames_THWC)
        return self._local.segment(frames_THWC, score_threshold)

    def close(self) -> None:
        self._local.close()


def test_image_files_are_sent_as_they_are(engine: Path, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "scene", ".jpg", length=3)
    files = [(folder / f"{t}.jpg").read_bytes() for t in range(3)]
    for transfer in ("auto", "jpeg"):
        recorder = Recorder(engine)
        predict(open_source(folder), recorder, tmp_path / "out", PredictOptions(pictures=0, transfer=transfer))
        assert recorder.clips == [files]
    recorder = Recorder(engine)
    predict(open_source(folder), recorder, tmp_path / "out", PredictOptions(pictures=0, transfer="raw"))
    np.testing.assert_array_equal(recorder.clips[0], decode_frames(files))


def test_frames_of_a_video_file_are_sent_raw_or_as_jpeg(engine: Path, tmp_path: Path) -> None:
    source = open_source(write_mp4(tmp_path / "scene.mp4"))
    sent = {}
    for transfer in ("auto", "jpeg"):
        recorder = Recorder(engine)
        predict(source, recorder, tmp_path / "out", PredictOptions(pictures=0, transfer=transfer))
        sent[transfer] = recorder.clips[0]
    assert isinstance(sent["auto"], np.ndarray)
    difference = np.abs(decode_frames(sent["jpeg"]).astype(int) - sent["auto"])
    assert difference.mean() < 3  # lossy, but the same picture with the same channels


@pytest.mark.parametrize("overlay", [False, True])
def test_memory_is_bounded_by_the_windows_in_flight(engine: Path, tmp_path: Path, overlay: bool) -> None:
    alive: weakref.WeakSet[Frame] = weakref.WeakSet()
    peak = 0
    length = 100

    def frames() -> Iterator[Frame]:
        nonlocal peak
        for t in range(length):
            new = Frame(frame(t % LENGTH))
            alive.add(new)
            peak = max(peak, len(alive))
            yield new
            del new

    source = open_source(write_folder(tmp_path / "scene", length=1))
    video = dataclasses.replace(source.videos[0], length=None, frames=frames)
    segmenter = LocalSegmenter(engine)
    source = VideoSource(source.path, (video,))
    report = predict(
        source, segmenter, tmp_path / "out", PredictOptions(pictures=None if overlay else 0), progress=False
    )
    assert report.frames == length
    assert peak <= 4 * segmenter.manifest.clip_frames  # decoded, computed, encoded, and the one being cut


# --- bad input: one line, exit code 2, nothing left ---------------------------------------------------------------


def _png_of_any_size(height: int, width: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def _bad_command(case: str, folder: Path, engine: Path) -> tuple[list[object], str]:
    """The arguments of a command that must fail, and what its message must hold."""
    with_engine = ["--model", engine]
    good = folder / "scene"
    if case not in ("missing image", "broken JSON"):
        write_folder(good)
    if case == "not a video":
        (folder / "fake.mp4").write_text("no video")
        return [folder / "fake.mp4", *with_engine], "not a video"
    if case == "no such source":
        return [folder / "absent", *with_engine], "no such file"
    if case == "missing image":
        path = write_dataset(folder / "set")
        (folder / "set" / "JPEGImages" / "scene2" / "1.jpg").unlink()
        return [path, *with_engine], "1.jpg: no such image"
    if case == "broken JSON":
        (folder / "set.json").write_text('{"videos": 3}')
        return [folder / "set.json", *with_engine], "set.json"
    if case == "images of two sizes":
        cv2.imwrite(str(good / "9.png"), np.zeros((20, 20, 3), np.uint8))
        return [good, *with_engine], "9.png: 20×20, expected 256×128"
    if case == "corrupt image":
        data = (good / "9.png").read_bytes()
        (good / "9.png").write_bytes(data[:60] + bytes(40) + data[100:])
        return [good, *with_engine], "corrupt"
    if case == "truncated image":
        (good / "9.png").write_bytes((good / "9.png").read_bytes()[:100])
        return [good, *with_engine], "9.png: a truncated PNG"
    if case == "frames too large":
        for path in good.iterdir():
            path.write_bytes(_png_of_any_size(30_000, 30_000))
        return [good, *with_engine], "limit of"
    if case == "no engine":
        return [good, "--model", folder / "nothing.onnx"], "nothing.onnx: no such file"
    if case == "broken engine":
        (folder / "broken.onnx").write_bytes((engine / "model.onnx").read_bytes()[:500])
        return [good, "--model", folder / "broken.onnx"], "export it again"
    if case == "edited engine":
        for name in ("model.onnx", "manifest.json"):
            (folder / name).write_bytes((engine / name).read_bytes())
        with (folder / "model.onnx").open("ab") as file:
            file.write(b"\0")
        return [good, "--model", folder / "model.onnx"], "export it again"
    if case == "no server":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        return [good, "--url", f"grpc://127.0.0.1:{port}"], "no Triton server answers"
    if case == "not a folder":
        (folder / "file").touch()
        return [good, *with_engine, "--out", folder / "file"], "not a folder"
    if case == "score threshold":
        return [good, *with_engine, "--score-threshold", 30], "from 0 to 1, not 30"
    assert case == "max videos"
    return [good, *with_engine, "--max-videos", 0], "at least 1, not 0"


@pytest.mark.parametrize(
    "case",
    [
        "not a video", "no such source", "missing image", "broken JSON", "images of two sizes", "corrupt image",
        "truncated image", "frames too large", "no engine", "broken engine", "edited engine", "no server",
        "not a folder", "score threshold", "max videos",
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_leaves_nothing(
    case: str, engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, message = _bad_command(case, tmp_path, engine)
    before = sorted(tmp_path.rglob("*"))
    if "--out" not in arguments:
        arguments += ["--out", tmp_path / "deep" / "out"]
    assert run(*arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("mssts predict: error: ")
    assert message in line
    assert sorted(tmp_path.rglob("*")) == before


def test_an_interrupted_run_leaves_nothing(engine: Path, tmp_path: Path) -> None:
    class Interrupted(Recorder):
        def segment(self, frames_THWC: np.ndarray | Sequence[bytes], score_threshold: float = 0.0) -> Instances:
            if len(self.clips) == 2:
                raise KeyboardInterrupt
            return super().segment(frames_THWC, score_threshold)

    source = open_source(write_folder(tmp_path / "scene"))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(KeyboardInterrupt):
        predict(source, Interrupted(engine), tmp_path / "out")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("runner", ["onnxruntime", "openvino"])
def test_an_engine_of_other_tensors_is_refused(engine: Path, tmp_path: Path, runner: str) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip(runner)
    model = onnx.load(engine / "model.onnx")
    model.graph.input[1].type.tensor_type.elem_type = onnx.TensorProto.INT64
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(MsstsError, match=r"sizes int64 of rank 2; expected .* sizes int32 of rank 2"):
        load_runner(tmp_path / "model.onnx", runner=runner)


def test_a_long_video_of_a_cameras_codec_runs_to_its_end(engine: Path, tmp_path: Path) -> None:
    video = write_mp4(tmp_path / "walk.mp4", 117, "libx264")  # frames are stored out of order, unlike mpeg4's
    report = predict(video, LocalSegmenter(engine), tmp_path / "out")
    assert (report.frames, report.clips) == (117, 29)
    assert sum(1 for _ in open_source(tmp_path / "out" / "walk.mp4").videos[0].frames()) == 117
