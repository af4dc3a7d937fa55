"""Prediction with a checkpoint, without an export, and a video as one clip."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from support.toy_engine import write_toy_engine

from mssts import contract
from mssts.cli import main
from mssts.errors import MsstsError
from mssts.evaluation import check_submission
from mssts.manifest import Category, InputRule, Manifest
from mssts.media.sources import open_source
from mssts.model.checkpoint import load_checkpoint, save_checkpoint
from mssts.model.config import BASELINE, preset, tiny
from mssts.model.engine import Engine, normalise
from mssts.model.mssts_vis import MSSTSVIS
from mssts.model.released import our_name
from mssts.prediction import overlay
from mssts.prediction.predictor import PredictOptions, predict
from mssts.runners import load_runner
from mssts.runners.torch_runner import TorchRunner
from mssts.segmenters.base import Instances, Segmenter
from mssts.segmenters.local import LocalSegmenter
from mssts.segmenters.preprocessing import engine_input

# Neither contiguous nor from 0 or 1: a label taken for an id, or the other way round, shows.
CATEGORIES = (Category(3, "left hand"), Category(17, "teapot"))
HEIGHT, WIDTH, LENGTH = 72, 80, 7
GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of our own classes, whose masks are not all empty."""
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("checkpoint") / "model.safetensors"
    chosen = tiny().with_classes(len(CATEGORIES))
    model = MSSTSVIS(chosen.model)
    with torch.no_grad():  # a query scores the same for both classes, so that both are among the best
        for classifier in model.class_embed:
            classifier.weight[1] = classifier.weight[0]
            classifier.bias += torch.tensor([0, 0.01])
    weights = model.state_dict()
    kept = {name: tensor for name, tensor in weights.items() if not name.endswith("num_batches_tracked")}
    save_checkpoint(path, kept, chosen, CATEGORIES)
    return path


def write_dataset(folder: Path, lengths: tuple[int, ...] = (LENGTH,)) -> Path:
    rng = np.random.default_rng(0)
    videos: list[dict[str, Any]] = []
    for number, length in enumerate(lengths, 1):
        names = [f"scene{number}/{t}.jpg" for t in range(length)]
        (folder / f"scene{number}").mkdir(parents=True)
        for name in names:
            small = rng.integers(0, 256, (9, 16, 3), np.uint8)
            cv2.imwrite(str(folder / name), cv2.resize(small, (WIDTH, HEIGHT)))
        videos.append({"id": 10 * number, "width": WIDTH, "height": HEIGHT, "length": length, "file_names": names})
    categories = [{"id": category.id, "name": category.name} for category in CATEGORIES]
    path = folder / "instances.json"
    path.write_text(json.dumps({"videos": videos, "categories": categories, "annotations": None}))
    return path


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


# --- the runner ---------------------------------------------------------------------------------------------------


def test_it_computes_what_the_engine_module_computes(checkpoint: Path) -> None:
    frames_BTHWC = np.random.default_rng(0).integers(0, 256, (2, 2, 48, 64, 3), np.uint8)
    sizes_B2 = np.array([[48, 64], [40, 56]], np.int32)
    runner = TorchRunner(checkpoint, threads=1, device="cpu")
    found = runner.infer(frames_BTHWC, sizes_B2)
    engine = Engine(load_checkpoint(checkpoint).build(), tiny().top_k)
    with torch.no_grad():
        expected = engine(torch.from_numpy(frames_BTHWC), torch.from_numpy(sizes_B2))
    for spec, array, tensor in zip(contract.ENGINE_OUTPUTS, vars(found).values(), expected, strict=True):
        assert array.dtype == spec.numpy_dtype, spec.name
        np.testing.assert_array_equal(array, tensor.numpy(), err_msg=spec.name)
    # As a user's picture may come: read-only, or with its channels turned round.
    frames_BTHWC.flags.writeable = False
    np.testing.assert_array_equal(runner.infer(frames_BTHWC, sizes_B2).scores, found.scores)
    assert runner.infer(frames_BTHWC[..., ::-1], sizes_B2).scores.shape == found.scores.shape


def test_the_manifest_is_that_of_the_checkpoint(checkpoint: Path) -> None:
    segmenter = LocalSegmenter(checkpoint, threads=1)
    manifest = segmenter.manifest
    assert manifest.categories == CATEGORIES
    assert (manifest.preset, manifest.input, manifest.top_k) == ("tiny", tiny().input, tiny().top_k)
    assert (manifest.clip_frames, manifest.clip_overlap) == (tiny().clip_frames, tiny().clip_overlap)
    assert Manifest.from_json(json.loads(json.dumps(manifest.to_json()))) == manifest
    described = segmenter.describe()
    assert (described["name"], described["precision"], described["threads"]) == ("pytorch", "fp32", 1)


def test_a_released_checkpoint_predicts(tmp_path: Path) -> None:
    """The released names and classes at a size that runs in a moment.

    Two layers and few queries.
    """
    small = replace(preset("mssts_r50").model, encoder_layers=1, decoder_layers=1, queries=6, switches=BASELINE)
    ours = MSSTSVIS(small).state_dict()
    shapes = json.loads((GOLDEN / "resnet50.keys.json").read_text())
    weights = {}
    for name, shape in shapes.items():
        target = our_name(name)
        if target in ours:
            weights[name] = ours[target]
        elif target is None and ".layers." not in name:
            weights[name] = torch.zeros(shape)
    torch.save({"model": weights, "epoch": 12}, tmp_path / "released.pth")
    runner = load_runner(tmp_path / "released.pth", threads=1)
    assert isinstance(runner, TorchRunner)
    assert runner.manifest.preset == "mssts_r50"
    assert runner.manifest.categories[1] == Category(1, "person")
    found = runner.infer(np.zeros((1, 1, 64, 96, 3), np.uint8), np.array([[64, 96]], np.int32))
    assert found.mask_logits.shape == (1, runner.manifest.top_k, 1, 16, 24)
    assert found.labels.max() < len(runner.manifest.categories)


def test_what_cannot_run_is_one_line(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(MsstsError, match="device 'cuda:99'"):
        TorchRunner(checkpoint, device="cuda:99")
    with pytest.raises(MsstsError, match="device 'gpu'"):
        TorchRunner(checkpoint, device="gpu")
    source = write_dataset(tmp_path / "set")
    (tmp_path / "broken.pth").write_bytes(b"no checkpoint")
    for name, words in (("broken.pth", "broken.pth: not a PyTorch"), ("none.safetensors", "no such file")):
        assert run("predict", source, "--model", tmp_path / name, "--out", tmp_path / "out") == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line
    assert run("serve", "--model", checkpoint) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"mssts export {checkpoint}" in line
    (tmp_path / "model.engine").write_bytes(b"")
    with pytest.raises(MsstsError, match=r"not a model of this project; expected a \.onnx, a \.plan, or a checkpoint"):
        load_runner(tmp_path / "model.engine")
    with pytest.raises(MsstsError, match="unknown precision 'int4'; expected one of: fp32, fp16, bf16, tf32"):
        TorchRunner(checkpoint, device="cpu", precision="int4")


def test_without_torch_it_says_what_to_install(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mssts.runners.torch_runner", None)  # as if it could not be imported
    with pytest.raises(MsstsError, match=r"model\.safetensors: a checkpoint needs PyTorch: .*mssts\[train\]"):
        LocalSegmenter(checkpoint)


def test_memory_that_does_not_suffice_is_one_line(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = TorchRunner(checkpoint, threads=1, device="cpu")

    def fail(*_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 7 bytes.\nC++ trace")

    monkeypatch.setattr(Engine, "forward", fail)
    with pytest.raises(MsstsError, match=r"failed on frames \[1, 40, 8, 8, 3\]: .* allocate 7 bytes\.$"):
        runner.infer(np.zeros((1, 40, 8, 8, 3), np.uint8), np.array([[8, 8]], np.int32))


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=[pytest.mark.slow, pytest.mark.long])])
def test_a_compiled_model_answers_as_it_does_uncompiled(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    plain, compiled = (load_runner(checkpoint, 1, runner) for runner in ("pytorch", "pytorch-compiled"))
    assert compiled.describe()["name"] == "pytorch-compiled"
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (1, 2, 64, 96, 3), dtype=np.uint8)
    sizes = np.array([[64, 90]], np.int32)
    expected, found = plain.infer(frames, sizes), compiled.infer(frames, sizes)
    np.testing.assert_array_equal(found.labels, expected.labels)
    for name in ("scores", "boxes", "mask_logits"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        # Norms folded and sums in another order, through some hundred layers in fp32.
        assert np.abs(ours - theirs).max() <= 2000 * np.finfo(np.float32).eps * np.abs(theirs).max()
    assert torch._dynamo.utils.counters["graph_break"] == {}


def test_a_runner_of_another_kind_of_file_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    engine = write_toy_engine(tmp_path)
    with pytest.raises(MsstsError, match=r"a checkpoint, which openvino does not run; expected one of: auto, pytorch"):
        load_runner(checkpoint, 1, "openvino")
    with pytest.raises(MsstsError, match=r"an ONNX file, which pytorch does not run; expected one of: auto, onnxrunt"):
        load_runner(engine, 1, "pytorch")
    with pytest.raises(MsstsError, match="unknown runner 'abacus'"):
        load_runner(engine, 1, "abacus")


def test_an_exported_engine_does_not_load_torch(tmp_path: Path) -> None:
    engine = write_toy_engine(tmp_path)
    program = f"import sys; from mssts.runners import load_engine; load_engine({str(engine)!r}); "
    program += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


# --- own classes, from the checkpoint to the results and the pictures ---------------------------------------------


def test_own_category_ids_and_names_reach_the_results_and_the_pictures(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: set[str] = set()
    draw_instances = overlay.draw_instances

    def spy(rgb_HWC: np.ndarray, visible: list[Any], *rest: Any) -> np.ndarray:
        drawn.update(instance.class_name for instance in visible)
        return draw_instances(rgb_HWC, visible, *rest)

    monkeypatch.setattr(overlay, "draw_instances", spy)
    source = write_dataset(tmp_path / "set", (2, LENGTH))
    out = tmp_path / "out"
    drawing = ("--score-threshold", 0, "--pictures", 1)
    assert run("predict", source, "--model", checkpoint, "--out", out, "--zip", *drawing) == 0
    entries = json.loads((out / "results.json").read_text())
    assert {entry["video_id"] for entry in entries} == {10, 20}
    assert {entry["category_id"] for entry in entries} == {3, 17}
    assert drawn and drawn <= {"left hand", "teapot"}  # a track is drawn as its best class
    assert json.loads((out / "report.json").read_text())["engine"]["name"] == "pytorch"
    with zipfile.ZipFile(out / "results.zip") as archive:
        assert archive.namelist() == ["results.json"]
        assert json.loads(archive.read("results.json")) == entries
    assert check_submission(out / "results.zip", source).problem_count == 0


# --- the whole video as one clip ----------------------------------------------------------------------------------


def released_entries(checkpoint: Path, source: Path) -> list[tuple[int, float, list[dict[str, Any] | None]]]:
    """(category id, score, masks) of a video, as the released `inference.py` computes.

    The 10 best of class × query, masks at the size of the file through `interpolate`, and none where the score is below
    0.001.
    """
    video = json.loads(source.read_text())["videos"][0]
    segmenter = LocalSegmenter(checkpoint, threads=1)
    paths = [source.parent / name for name in video["file_names"]]
    frames_THWC = np.stack([cv2.imread(str(path))[..., ::-1] for path in paths])
    frames_BTHWC, sizes_B2 = engine_input(frames_THWC, segmenter.manifest.input)
    model = load_checkpoint(checkpoint).build()
    sizes = torch.from_numpy(sizes_B2)
    with torch.no_grad():
        prediction = model(normalise(torch.from_numpy(frames_BTHWC), sizes), sizes)
        scores_QC = prediction.logits[-1][0].sigmoid()
        queries = torch.arange(len(scores_QC))[None]
        masks_QThw = model.masks(prediction, -1, queries)[0]
    entries = []
    for index in scores_QC.flatten().topk(10).indices.tolist():
        query, label = divmod(index, len(CATEGORIES))
        logits_THW = torch.nn.functional.interpolate(masks_QThw[query][:, None], (HEIGHT, WIDTH), mode="bilinear")[:, 0]
        masks_THW = logits_THW.sigmoid().numpy() > 0.5
        if masks_THW.any():
            entries.append((CATEGORIES[label].id, float(scores_QC[query, label]), list(masks_THW)))
    return entries


def test_the_whole_video_is_what_the_released_inference_gives(checkpoint: Path, tmp_path: Path) -> None:
    source = write_dataset(tmp_path / "set")
    out = tmp_path / "out"
    assert run("predict", source, "--model", checkpoint, "--out", out, "--whole-video", "--pictures", 0) == 0
    found = json.loads((out / "results.json").read_text())
    report = json.loads((out / "report.json").read_text())
    assert (report["frames"], report["clips"]) == (LENGTH, 1)
    expected = released_entries(checkpoint, source)
    assert len(found) == len(expected) > 0
    for entry, (category_id, score, masks) in zip(found, expected, strict=True):
        assert entry["category_id"] == category_id
        assert entry["score"] == pytest.approx(score, abs=1e-6)
        for segmentation, mask_HW in zip(entry["segmentations"], masks, strict=True):
            ours_HW = np.zeros((HEIGHT, WIDTH), bool) if segmentation is None else coco_mask.decode(segmentation) > 0
            # A logit that is zero but for rounding may fall on either side.
            assert (ours_HW != mask_HW).mean() < 1e-3


class Recorder(Segmenter):
    """A segmenter that keeps what it is asked, and finds one thing a clip."""

    manifest = Manifest("toy", "fp32", CATEGORIES, InputRule(64, 128), 4, 1, 1, "model.onnx", "")

    def __init__(self, limits: contract.Limits = contract.LIMITS) -> None:
        self.asked: list[tuple[int, float]] = []
        self._limits = limits

    @property
    def limits(self) -> contract.Limits:
        return self._limits

    def segment(self, frames: Any, score_threshold: float = 0.0) -> Instances:
        self.asked.append((len(frames), score_threshold))
        mask = np.asfortranarray(np.ones((HEIGHT, WIDTH), np.uint8))
        rle = coco_mask.encode(mask)["counts"]
        boxes = np.tile(np.array([0, 0, WIDTH, HEIGHT], np.float32), (1, len(frames), 1))
        return Instances(
            np.array([0.5], np.float32), np.array([1], np.int32), boxes, ((rle,) * len(frames),), (HEIGHT, WIDTH)
        )


def test_a_video_longer_than_a_servers_limit_is_one_clip_of_a_local_engine(tmp_path: Path) -> None:
    source = open_source(write_dataset(tmp_path / "set", (contract.LIMITS.frames + 5, 3)))
    recorder = Recorder(replace(contract.LIMITS, frames=10**6, total_pixels=10**12))
    predict(source, recorder, tmp_path / "out", PredictOptions(pictures=0, whole_video=True))
    assert recorder.asked == [(contract.LIMITS.frames + 5, 0.001), (3, 0.001)]

    engine = write_toy_engine(tmp_path / "engine")
    source = replace(source, categories=())  # which the toy engine's classes are not
    report = predict(source, LocalSegmenter(engine, 1), tmp_path / "out", PredictOptions(pictures=0, whole_video=True))
    assert (report.frames, report.clips) == (contract.LIMITS.frames + 8, 2)


@pytest.mark.parametrize(
    ("size", "limit"),
    [((HEIGHT, WIDTH), contract.LIMITS.frames), ((2160, 3840), contract.LIMITS.total_pixels // (2160 * 3840))],
)
def test_what_a_server_does_not_take_is_one_line_before_it_is_sent(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    size: tuple[int, int],
    limit: int,
) -> None:
    server = Recorder()
    monkeypatch.setattr("mssts.segmenters.load", lambda target, **_: server)
    monkeypatch.setattr("mssts.media.sources._encoded_size", lambda *_: size)
    folder = tmp_path / "long"
    folder.mkdir()
    for t in range(limit + 1):
        cv2.imwrite(str(folder / f"{t}.jpg"), np.zeros((8, 8, 3), np.uint8))
    out = tmp_path / "out"
    arguments = ("predict", folder, "--url", "grpc://127.0.0.1:1", "--out", out, "--whole-video", "--pictures", 0)
    assert run(*arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"long: longer than the {limit} frames of {size[1]}×{size[0]}" in line and "--model" in line
    assert server.asked == [] and not out.exists()

    (folder / f"{limit}.jpg").unlink()
    assert run(*arguments) == 0
    assert server.asked == [(limit, 0.001)]


def test_a_number_of_classes_is_fixed_nowhere() -> None:
    """Only presets that mean one name it, and a data set's takes its place."""
    for classes in (1, 91):
        with torch.device("meta"):
            model = MSSTSVIS(tiny().with_classes(classes).model)
        assert {len(tensor) for name, tensor in model.state_dict().items() if name.startswith("class_embed.")} == {
            classes
        }
