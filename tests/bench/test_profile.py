"""FLOPs, rates and the time of a clip by module."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mssts.bench import rates
from mssts.bench.fps import engines
from mssts.bench.operations import MODULES, Operation, count_operations, module_of
from mssts.bench.profile.work import WORK
from mssts.cli import main
from mssts.kernels import library
from mssts.model.config import BASELINE, Preset, Switches, preset
from mssts.model.engine import Engine
from mssts.model.mssts_vis import MSSTSVIS

SHAPE = (1, 2, 96, 128)


@pytest.mark.parametrize("switches", [BASELINE, Switches()], ids=["baseline", "all"])
def test_flops_are_those_that_pytorch_counts(switches: Switches) -> None:
    chosen = preset("tiny")
    chosen = replace(chosen, model=replace(chosen.model, switches=switches))
    products = [o for o in count_operations(chosen, SHAPE) if o.kind in ("gemm", "convolution")]
    engine = Engine(MSSTSVIS(chosen.model), chosen.top_k).eval().requires_grad_(False)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        engine(torch.zeros(*SHAPE, 3, dtype=torch.uint8), torch.tensor([SHAPE[2:]], dtype=torch.int32))
    assert sum(o.flops for o in products) == counter.get_total_flops()


def by_module(chosen: Preset, shape: tuple[int, int, int, int]) -> Counter[str]:
    flops: Counter[str] = Counter()
    for operation in count_operations(chosen, shape):
        flops[operation.module] += operation.flops
    return flops


def test_a_switch_that_is_off_has_no_flops_and_the_backbone_grows_with_the_frames() -> None:
    chosen = preset("tiny")
    baseline = replace(chosen, model=replace(chosen.model, switches=BASELINE))
    one, two = by_module(baseline, SHAPE), by_module(baseline, (1, 4, 96, 128))
    assert one["encoder: intra-scale attention"] == one["encoder: inter-scale attention"] == 0
    assert by_module(chosen, SHAPE)["encoder: intra-scale attention"] > 0
    assert two["backbone"] == 2 * one["backbone"] > 0
    assert set(one) <= set(MODULES)


def test_the_attention_ops_are_counted_by_their_definition() -> None:
    chosen = preset("tiny")
    found = [o for o in count_operations(chosen, SHAPE) if o.kind == "deformable attention"]
    config, (_, T, H, W) = chosen.model, SHAPE
    tokens = sum(-(-H // stride) * -(-W // stride) for stride in (8, 16, 32, 64))
    points = tokens * config.heads * config.levels * config.points
    encoder = [o for o in found if o.module.startswith("encoder")]
    assert len(encoder) == config.encoder_layers
    # Four corners of each point, a multiply-add for each channel of a head.
    assert {o.flops for o in encoder} == {2 * 4 * T * points * config.width // config.heads}


def test_the_attention_among_queries_is_part_of_the_decoder() -> None:
    chosen = preset("tiny")
    found = [o for o in count_operations(chosen, SHAPE) if o.kind == "attention"]
    config = chosen.model
    # Logits, then values: two multiply-adds a channel for each pair of queries. Boxes are one for all frames at first.
    images = config.decoder_layers + 1 + (config.decoder_layers - 1) * SHAPE[1]
    assert {o.module for o in found} == {"decoder"}
    assert sum(o.flops for o in found) == images * 4 * config.queries**2 * config.width


@pytest.mark.parametrize(
    ("path", "module"),
    [
        ("model.backbone.layer1.0.conv1", "backbone"),
        ("model.encoder.layers.3.linear2", "encoder: feed-forward"),
        ("model.encoder.layers.3.split.inter.query", "encoder: inter-scale attention"),
        ("model.encoder.layers.3.output_proj", "encoder: deformable attention"),
        ("model.decoder.layers.0.output_proj", "decoder"),
        ("model.mask_head.controller.layers.0", "dynamic masks"),
        ("model", "post-processing"),
    ],
)
def test_modules_by_path(path: str, module: str) -> None:
    assert module_of(path) == module


def test_chains_count_their_flops_and_the_best_rate_is_the_floors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "_SECONDS", 0.0)
    gemm = Operation("backbone", "gemm", (1, 64, 32, 16), rates.flops_of("gemm", (1, 64, 32, 16)), 0)
    strided = Operation("backbone", "convolution", (1, 8, 16, 16, 8, 3, 2, 1), 10**9, 0)
    plain = (1, 8, 16, 16, 8, 3, 1, 1)
    convolution = Operation("backbone", "convolution", plain, rates.flops_of("convolution", plain), 0)
    assert gemm.flops == 2 * 64 * 32 * 16 and convolution.flops == 2 * 8 * 16 * 16 * 8 * 9
    found = rates.measure_rates([gemm, strided, convolution], ["fp32"], 1)
    assert {(rate.kind, rate.dims) for rate in found} == {("gemm", gemm.dims), ("convolution", plain)}
    assert rates.best_rate(found, "fp32").gflop_per_s == max(rate.gflop_per_s for rate in found) > 0


def test_products_at_the_rate_of_their_own_shape_need_no_less_than_the_floor() -> None:
    shape, other = (1, 64, 32, 16), (1, 64, 32, 8)
    gemms = [Operation("decoder", "gemm", dims, 3 * 10**9, 0) for dims in (shape, other)]
    softmax = Operation("decoder", "other", (), 0, 100)
    known = [rates.Rate("bf16", library, "gemm", shape, rate) for library, rate in (("pytorch", 30), ("openvino", 50))]
    known += [rates.Rate("bf16", "pytorch", "convolution", shape, 100), rates.Rate("fp32", "pytorch", "gemm", other, 1)]
    assert rates.own_rate_seconds([*gemms, softmax], known, "bf16") == pytest.approx(3 / 50 + 3 / 100)


@pytest.mark.parametrize(("runner", "precision"), [("openvino", "int8"), ("onnxruntime", "fp32"), ("pytorch", "fp32")])
def test_the_modules_times_add_up(
    tmp_path: Path, runner: str, precision: str, exported: tuple[Path, Path, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setattr(rates, "_SECONDS", 0.0)
    monkeypatch.setattr(engines, "quantise", lambda path: path)  # which takes a minute
    checkpoint, engine, _ = exported
    out, cache = tmp_path / "profile.json", tmp_path / "cache"
    cache.mkdir()
    (cache / f"{checkpoint.stem}-fp32").symlink_to(engine)  # is what the command would export
    code = main(
        ["bench", "profile", "--checkpoint", str(checkpoint), "--runner", runner, "--precision", precision,
         "--size", "192x256", "--frames", "2", "--repeats", "3", "--cache", str(cache), "--out", str(out),
         "--plot", str(tmp_path / "profile.png")]
    )  # fmt: skip
    report = json.loads(out.read_text())
    times = {module["name"]: module["ms"] for module in report["modules"]}
    assert code == 0 and (tmp_path / "profile.png").stat().st_size > 1000
    assert sum(times.values()) == pytest.approx(report["total_ms"], rel=0.05)
    assert min(times.values()) >= 0 and max(times, key=times.__getitem__) != "outside the nodes"
    for name in MODULES[:8]:  # each has a part in the work
        assert times[name] > 0, name
    sorts = [[module[f"{sort}_ms"] for sort in WORK] for module in report["modules"] if module["name"] in MODULES]
    if runner == "pytorch":
        assert sorts == [[None] * 3] * len(MODULES) and report["kinds"] == []
    else:
        assert [sum(work) for work in sorts] == pytest.approx([times[name] for name in MODULES])
        backbone, deformable = (sorts[MODULES.index(name)] for name in MODULES[:3:2])
        assert backbone[0] > backbone[2] and backbone[1] == 0
        assert deformable[1] > 0 or not library(runner).path
        assert sum(kind["ms"] for kind in report["kinds"]) == pytest.approx(sum(map(sum, sorts)))
    assert all(module["own_rate_ms"] >= 0.999 * module["floor_ms"] for module in report["modules"])
    assert report["floor_ms"] == pytest.approx(sum(module["floor_ms"] for module in report["modules"]))


def test_what_a_runner_cannot_do_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for options in (["--runner", "onnxruntime", "--precision", "bf16"], ["--runner", "pytorch", "--precision", "int8"]):
        assert main(["bench", "profile", *options]) == 2
        error = capsys.readouterr().err.strip()
        assert "\n" not in error and "fp32" in error
