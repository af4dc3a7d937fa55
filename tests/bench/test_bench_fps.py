"""`mssts bench fps`: baseline's arithmetic, refusal of wrong engines, its figures."""

from __future__ import annotations

import json
import re
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from support.clips import clip

from mssts.bench import rates
from mssts.bench.fps import engines as fps_engines
from mssts.bench.fps import measuring, scopes
from mssts.bench.fps.command import print_fps
from mssts.bench.fps.engines import Candidate, Setting, saved_random_checkpoint
from mssts.bench.fps.in_flight import counted
from mssts.bench.fps.measuring import measure
from mssts.bench.fps.memory import peak_memory_mb
from mssts.bench.fps.released import ReleasedEngine
from mssts.bench.fps.times import summary
from mssts.cli import main
from mssts.data.moving_shapes import MovingShapesConfig, write_dataset
from mssts.errors import MsstsError
from mssts.model.config import BASELINE, preset
from mssts.model.engine import Engine
from mssts.model.mssts_vis import MSSTSVIS
from mssts.runners.base import Runner
from mssts.runners.tensorrt_library import Gpu

SIZE, FRAMES = (64, 96), 2


@pytest.fixture(autouse=True)
def quick_rates(monkeypatch):
    """What a rate of this machine really is is not the matter here."""
    monkeypatch.setattr(rates, "_SECONDS", 0.0)
    monkeypatch.setattr(measuring, "_SETTLE", 0.0)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    tiny = preset("tiny")
    baseline = replace(tiny, model=replace(tiny.model, switches=BASELINE))
    return saved_random_checkpoint(baseline, tmp_path_factory.mktemp("weights"))


def baseline_model() -> MSSTSVIS:
    torch.manual_seed(0)
    model = MSSTSVIS(replace(preset("tiny").model, switches=BASELINE)).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return model


@pytest.mark.parametrize("valid", [(72, 104), (61, 90)])
@torch.inference_mode()
def test_the_released_computation_gives_what_our_baseline_gives(valid):
    model = baseline_model()
    frames = torch.from_numpy(clip((72, 104), 3)[0])
    sizes = torch.tensor([valid], dtype=torch.int32)
    ours, released = Engine(model, 10).eval()(frames, sizes), ReleasedEngine(model, 10).eval()(frames, sizes)
    for own, other in zip(ours, released, strict=True):
        assert own.shape == other.shape
        assert own.dtype == other.dtype
        # Sums of some thousand products in another order, through some ten layers.
        bound = 256 * torch.finfo(torch.float32).eps * float(own.abs().max())
        assert float((own.double() - other.double()).abs().max()) <= bound


def test_the_released_computation_refuses_what_it_does_not_have():
    with pytest.raises(MsstsError, match="--switches baseline"):
        ReleasedEngine(MSSTSVIS(preset("tiny").model), 10)
    frames, sizes = torch.zeros(2, 1, 64, 64, 3, dtype=torch.uint8), torch.full((2, 2), 64)
    with pytest.raises(MsstsError, match="one clip"):
        ReleasedEngine(baseline_model(), 10)(frames, sizes)


def test_figures_are_printed_and_written_and_absent_engines_named(tmp_path, capsys, checkpoint):
    out = tmp_path / "fps.json"
    arguments = ["--checkpoint", str(checkpoint), "--runners", "released", "--precision", "fp32,bf16"]
    arguments += ["--size", "64x96", "--frames", "2", "--repeats", "3", "--threads", "1", "--cache", str(tmp_path)]
    assert main(["bench", "fps", *arguments, "--out", str(out)]) == 0
    report = json.loads(out.read_text())
    rows = {(row["runner"], row["precision"]): row for row in report["rows"]}
    assert set(rows) == {("released", "fp32")}
    for row in rows.values():
        assert 0 < row["ms_p5"] <= row["ms_median"] <= row["ms_p95"]
        assert row["frames_per_second"] == pytest.approx(2e3 / row["ms_median"])
        assert row["peak_memory_mb"] > 50  # PyTorch alone is more
        assert row["threads"] == 1
        assert row["variant"] == "trained" and row["scope"] == "model"
        assert len(row["samples_ms"]) == 3
        assert row["times_of_floor"] == pytest.approx(row["ms_median"] / row["floor_ms"]) and row["floor_ms"] > 0
    assert [rate["dtype"] for rate in report["best_rates"]] == ["fp32"]
    assert all(figure["hardware"] for figure in report["published"])
    assert {"machine", "versions", "commit"} <= set(report)
    assert all(0 < ms < 1e4 for ms in report["around"].values())
    assert [(entry["runner"], entry["precision"]) for entry in report["not_measured"]] == [("released", "bf16")]
    printed = capsys.readouterr().out
    assert "not measured here: it has no bf16" in printed and "best rate of this machine in fp32" in printed


def test_a_clip_from_jpeg_to_run_lengths_and_ap_are_of_the_same_engine(tmp_path, checkpoint, capsys):
    data = write_dataset(tmp_path / "data", 1, 3, MovingShapesConfig(length=2), progress=False)
    out = tmp_path / "fps.json"
    arguments = ["--checkpoint", str(checkpoint), "--runners", "pytorch,released", "--no-memory", "--size", "64x96"]
    arguments += ["--frames", "2", "--repeats", "2", "--scopes", "model,pipeline,served", "--data", str(data)]
    assert main(["bench", "fps", *arguments, "--out", str(out)]) == 0
    report = json.loads(out.read_text())
    rows = {(row["runner"], row["scope"], row["in_flight"]): row for row in report["rows"]}
    # A clip is decoded and one encoded while the engine runs another.
    assert set(rows) == {
        ("pytorch", "model", 1), ("released", "model", 1), ("pytorch", "pipeline", 1), ("pytorch", "pipeline", 3)
    }  # fmt: skip
    assert 0 <= rows["pytorch", "model", 1]["ap"] <= 1 and rows["released", "model", 1]["ap"] is None
    many = rows["pytorch", "pipeline", 3]
    assert len(many["samples_ms"]) == 2 and many["frames_per_second"] > 0
    assert re.search(rf"pytorch +trained +fp32 +pipeline +3 +{many['ms_median']:.1f} ", capsys.readouterr().out)
    reasons = {(entry["runner"], entry["scope"]): entry["reason"] for entry in report["not_measured"]}
    assert "a server takes an exported engine" in reasons["pytorch", "served"]
    assert ("released", "pipeline") in reasons


def test_a_scope_that_fails_is_an_entry_and_what_is_known_is_in_the_file_by_then(monkeypatch, tmp_path, checkpoint):
    right, out, known = scopes._segmenter, tmp_path / "fps.json", []

    def segmenter(scope, candidate, threads):
        if scope == "pipeline":
            return right(scope, candidate, threads)
        known.extend(row["scope"] for row in json.loads(out.read_text())["rows"])
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2.00 GiB")

    monkeypatch.setattr(scopes, "_segmenter", segmenter)
    monkeypatch.setattr(measuring, "around_the_engine", lambda *_: {"preprocess": 1.0, "postprocess": 1.0})
    arguments = ["--checkpoint", str(checkpoint), "--runners", "pytorch", "--no-memory", "--size", "64x64"]
    arguments += ["--frames", "1", "--repeats", "1", "--scopes", "model,pipeline,served", "--out", str(out)]
    assert main(["bench", "fps", *arguments]) == 1
    assert known == ["model", "pipeline", "pipeline"]
    (entry,) = json.loads(out.read_text())["not_measured"]
    assert entry["failed"] and entry["reason"] == "fails: OutOfMemoryError: CUDA out of memory."


def test_a_package_that_is_not_installed_is_said_before_anything_is_exported(monkeypatch, tmp_path, capsys, checkpoint):
    monkeypatch.setattr(fps_engines.importlib.util, "find_spec", lambda name: None)
    monkeypatch.chdir(tmp_path)
    arguments = ["--checkpoint", str(checkpoint), "--runners", "openvino", "--cache", "cache"]
    assert main(["bench", "fps", *arguments, "--size", "64x96", "--frames", "1"]) == 1
    printed = capsys.readouterr().out
    assert "not measured here: openvino is not installed; `pip install openvino`" in printed
    assert not Path("cache").exists()
    (record,) = Path("runs/bench").iterdir()  # its name by default
    assert record.name.startswith("fps_")
    assert json.loads(record.read_text())["not_measured"][0]["runner"] == "openvino"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_engines_of_a_gpu_are_named_as_not_measured(monkeypatch, tmp_path, capsys, checkpoint):
    monkeypatch.setattr(fps_engines.importlib.util, "find_spec", lambda name: None if name == "tensorrt" else name)
    arguments = ["--checkpoint", str(checkpoint), "--runners", "pytorch-cuda,onnxruntime-cuda,tensorrt"]
    arguments += ["--precision", "fp16", "--cache", str(tmp_path / "cache"), "--size", "64x96", "--frames", "1"]
    assert main(["bench", "fps", *arguments, "--repeats", "1", "--out", str(tmp_path / "fps.json")]) == 1
    printed = capsys.readouterr().out
    assert printed.count("not measured here: PyTorch finds no NVIDIA GPU here") == 2
    assert "not measured here: tensorrt is not installed; `pip install mssts[gpu]`" in printed
    assert not (tmp_path / "cache").exists()


def test_memory_is_that_of_the_engine_alone(checkpoint):
    """Not of the process that starts it, however much that holds."""
    candidate, setting = Candidate("pytorch", "trained", "fp32", str(checkpoint)), Setting((64, 64), 1, 1, 1)
    alone = peak_memory_mb(candidate, setting)
    ballast = np.ones(200 << 20)  # 1.6 GB
    assert peak_memory_mb(candidate, setting) < alone + 400
    assert ballast[-1] == 1


def test_a_batch_is_measured_as_so_many_frames(tmp_path, checkpoint):
    out = tmp_path / "fps.json"
    arguments = ["--checkpoint", str(checkpoint), "--runners", "pytorch", "--batch", "2", "--no-memory"]
    assert (
        main(["bench", "fps", *arguments, "--size", "64x64", "--frames", "1", "--repeats", "2", "--out", str(out)]) == 0
    )
    (row,) = json.loads(out.read_text())["rows"]
    assert row["frames_per_second"] == pytest.approx(2e3 / row["ms_median"])


def test_an_engine_that_computes_something_else_is_refused(monkeypatch, checkpoint):
    right = fps_engines.load

    class Wrong(Runner):
        """An engine whose masks are upside down."""

        def __init__(self, runner):
            self.runner = runner

        def infer(self, frames, sizes):
            answer = self.runner.infer(frames, sizes)
            return replace(answer, mask_logits=np.ascontiguousarray(answer.mask_logits[..., ::-1, :]))

        def close(self):
            self.runner.close()

    def load(candidate, threads):
        runner = right(candidate, threads)
        return Wrong(runner) if candidate.runner == "released" else runner

    monkeypatch.setattr(fps_engines, "load", load)
    candidates = [Candidate(name, "trained", "fp32", str(checkpoint)) for name in ("released", "pytorch")]
    report = measure(candidates, Setting(SIZE, FRAMES, 1, 1), 1, memory=False)
    assert [row["runner"] for row in report["rows"]] == ["pytorch"]
    (refused,) = report["not_measured"]
    assert refused["refused"]
    assert "masks differ" in refused["reason"]


class Answer(Runner):
    """An engine with PyTorch's answer that fails at a given call.

    It must not be loaded beside another.
    """

    loaded: ClassVar[list[str]] = []

    def __init__(self, name, runner, fails_at=0):
        self.name, self.runner, self.calls, self.fails_at = name, runner, 0, fails_at
        assert not self.loaded, f"{name} is loaded beside {self.loaded}"
        self.loaded.append(name)

    def infer(self, frames, sizes):
        self.calls += 1
        if self.calls == self.fails_at:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2.00 GiB")
        return self.runner.infer(frames, sizes)

    def describe(self):
        """As the TensorRT runner: no `kernels_isa`."""
        return {"name": self.name, "kernels": ["MSDeformAttn"]}

    def close(self):
        self.loaded.remove(self.name)
        self.runner.close()


@pytest.mark.parametrize("fails_at", [1, 3])
def test_an_engine_that_fails_is_an_entry_and_the_others_go_on(monkeypatch, checkpoint, fails_at, capsys):
    right = fps_engines.load

    def load(candidate, threads):
        runner = right(replace(candidate, runner="pytorch"), threads)
        if candidate.runner == "pytorch":
            return runner  # the reference
        return Answer(candidate.runner, runner, fails_at if candidate.runner == "pytorch-cuda" else 0)

    monkeypatch.setattr(fps_engines, "load", load)
    candidates = [
        Candidate(name, "trained", "fp32", str(checkpoint))
        for name in ("pytorch-cuda", "pytorch-compiled-cuda", "tensorrt")
    ]
    written, slept = [], []
    monkeypatch.setattr(measuring, "time", SimpleNamespace(perf_counter=time.perf_counter, sleep=slept.append))
    setting = Setting(SIZE, FRAMES, 1, 1)
    report = measure(candidates, setting, 3, False, lambda so_far: written.append(len(so_far["rows"])))
    assert [row["runner"] for row in report["rows"]] == ["pytorch-compiled-cuda", "tensorrt"]
    (failed,) = report["not_measured"]
    assert failed["failed"] and not failed["refused"]
    assert failed["reason"] == "fails: OutOfMemoryError: CUDA out of memory."
    assert written == [0, 1, 2] and slept == []  # no other engine is to be waited for
    print_fps({**report, "preset": "tiny"})
    printed = capsys.readouterr().out
    assert "pytorch-cuda     trained   fp32      FAILED: fails: OutOfMemoryError" in printed
    assert Answer.loaded == []


class TwoAtOnce(Answer):
    """An engine that takes two clips at once.

    Where memory is short for a second, it finds out when two are there. It may fail then.
    """

    in_flight = 2
    loaded: ClassVar[list[str]] = []

    def __init__(self, runner, then):
        super().__init__("two", runner)
        self.answer, self.then = None, then
        self.inside, self.most, self.lock = 0, 0, threading.Lock()

    def infer(self, frames, sizes):
        with self.lock:
            self.answer = self.answer or super().infer(frames, sizes)
            self.inside += 1
            self.most = max(self.most, self.inside)
        time.sleep(0.05)
        with self.lock:
            self.inside -= 1
        if self.most == 2 and self.then == "fails":
            raise torch.OutOfMemoryError("CUDA out of memory.")
        if self.most == 2 and self.then == "takes one":
            self.in_flight = 1
        return self.answer


@pytest.mark.parametrize("then", ["goes on", "takes one", "fails"])
def test_an_engine_that_takes_two_clips_has_a_row_with_two_in_flight(monkeypatch, checkpoint, then, capsys):
    right, made = fps_engines.load, []

    def load(candidate, threads):
        runner = right(replace(candidate, runner="pytorch"), threads)
        if candidate.runner == "pytorch":
            return runner  # the reference
        made.append(TwoAtOnce(runner, then))
        return made[0]

    monkeypatch.setattr(fps_engines, "load", load)
    setting = Setting(SIZE, FRAMES, 1, 1)
    report = measure([Candidate("tensorrt", "trained", "fp32", str(checkpoint))], setting, 3, memory=False)
    one, *more = report["rows"]
    assert one["in_flight"] == 1 and made[0].most == 2 and made[0].loaded == []
    print_fps({**report, "preset": "tiny"})
    printed = capsys.readouterr().out
    if then == "goes on":
        (two,) = more
        assert two["in_flight"] == 2 and len(two["samples_ms"]) == 6
        assert two["ms_p5"] >= 50 and two["frames_per_second"] > 1.2 * one["frames_per_second"]  # 2, but for the load
        assert report["not_measured"] == []
        return
    assert more == []
    (entry,) = report["not_measured"]
    assert entry["in_flight"] == 2 and entry["failed"] == (then == "fails")
    assert ("FAILED with 2 in flight: fails: OutOfMemoryError" if then == "fails" else "memory is short") in printed


def test_clips_at_the_beginning_and_end_do_not_count_where_several_are_in_flight():
    # Two at once, a second each, the first of them slow; another is under way when the last that counts is done.
    spans = [(0.0, 3.0), (0.0, 2.0), (2.0, 3.5), (3.0, 4.0), (3.5, 4.5), (4.0, 5.0), (4.5, 5.5), (5.0, 9.0)]
    flow = counted(spans, in_flight=2, clips=4)
    assert (flow.in_flight, flow.latencies, flow.seconds) == (2, (1.5, 1.0, 1.0, 1.0), 2.0)
    row = flow.row(frames=5)
    assert row["frames_per_second"] == 10 and row["ms_median"] == 1000 and row["in_flight"] == 2


def test_figures_are_in_the_file_before_anything_is_printed(monkeypatch, tmp_path, checkpoint):
    def broken(report):
        raise KeyError("kernels_isa")

    monkeypatch.setattr("mssts.bench.fps.command.print_fps", broken)
    monkeypatch.setattr(measuring, "around_the_engine", lambda *_: {"preprocess": 1.0, "postprocess": 1.0})
    out = tmp_path / "fps.json"
    arguments = ["--checkpoint", str(checkpoint), "--runners", "pytorch", "--no-memory", "--size", "64x64"]
    with pytest.raises(KeyError):
        main(["bench", "fps", *arguments, "--frames", "1", "--repeats", "1", "--out", str(out)])
    assert len(json.loads(out.read_text())["rows"]) == 1


def test_a_plan_is_not_built_for_a_gpu_that_tensorrt_rtx_does_not_know(monkeypatch):
    known = type("ComputeCapability", (), {"SM89": 1})
    trt = type("trt", (), {"ComputeCapability": known, "__version__": "1.7"})
    # The bindings alone are what `make setup` installs.
    monkeypatch.setattr(fps_engines.importlib.util, "find_spec", lambda name: None if name == "tensorrt_rtx" else name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(fps_engines, "tensorrt_module", lambda target: trt)
    monkeypatch.setattr(fps_engines, "first_gpu", lambda: Gpu("H100", "9.0"))
    assert fps_engines.why_not_installed("tensorrt-rtx") == (
        "TensorRT-RTX 1.7 knows no compute capability 9.0, that of the H100"
    )
    monkeypatch.setattr(fps_engines, "first_gpu", lambda: Gpu("L4", "8.9"))
    assert fps_engines.why_not_installed("tensorrt-rtx") == ""


def test_percentiles_lie_between_the_values():
    found = summary([0.4, 0.1, 0.2, 0.3, 0.5], frames=6)
    assert found["ms_median"] == pytest.approx(300)
    assert found["ms_p5"] == pytest.approx(120)
    assert found["ms_p95"] == pytest.approx(480)
    assert found["frames_per_second"] == pytest.approx(20)


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--size", "big"), ("--frames", "0"), ("--repeats", "0"), ("--threads", "0"), ("--runners", "abacus"),
     ("--precision", "fp3"), ("--switches", "none"), ("--checkpoint", "absent.safetensors"), ("--preset", "huge"),
     ("--batch", "0"), ("--scopes", "moon")],
)  # fmt: skip
def test_bad_arguments_are_one_line(capsys, flag, value):
    assert main(["bench", "fps", flag, value]) == 2
    error = capsys.readouterr().err
    assert value in error
    assert error.count("\n") == 1
