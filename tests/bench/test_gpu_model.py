"""`mssts bench gpu-model`: machine code, the simulation of the L1, the record."""

from __future__ import annotations

import json
import shutil
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mssts.bench.gpu_model import sass
from mssts.bench.gpu_model.command import goals
from mssts.bench.gpu_model.compiler import LAUNCHES, count, kernels_of
from mssts.bench.gpu_model.l1_cache import OURS, Design, query_order, simulate
from mssts.bench.gpu_model.reductions import reductions
from mssts.bench.gpu_model.roofline import GPUS, roofline_rows
from mssts.bench.kernels.workloads import DeformWorkload
from mssts.cli import main
from mssts.errors import MsstsError

ONE_FRAME = DeformWorkload("encoder", 1, ((8, 16), (4, 8), (2, 4), (1, 2)), heads=1)


def test_a_large_cache_fetches_every_sector_that_is_read_once() -> None:
    workload = replace(ONE_FRAME, offset_pixels=0.5)
    found = simulate(workload, replace(OURS, cache_bytes=1 << 30), every=1)
    assert found.corners == workload.samples * 4 * 64
    # Offsets 64 bytes and logits 32 of each item, references 32 bytes of each query.
    assert found.inputs == workload.tokens * (64 + 32 + 32)
    one = simulate(workload, replace(OURS, cache_bytes=1 << 30, block_items=workload.tokens), every=1)
    # One head of a token is 64 bytes. Several caches fetch it more often than one; a few tokens no point falls on.
    assert 0.9 * workload.tokens * 64 <= one.value <= workload.tokens * 64 < found.value


def test_no_cache_fetches_every_corner() -> None:
    found = simulate(ONE_FRAME, Design("nothing stays", cache_bytes=0), every=1)
    assert found.value == found.corners


def test_tiles_fetch_less_than_rows_and_shared_memory_least() -> None:
    wide = replace(ONE_FRAME, shapes=((32, 48), (16, 24), (8, 12), (4, 6)))
    small = replace(OURS, cache_bytes=16 * 1024, block_items=64)
    rows = simulate(wide, replace(small, tiled=False), every=8)
    tiles = simulate(wide, small, every=8)
    on_chip = simulate(wide, replace(small, on_chip=(1, 2, 3)), every=8)
    assert on_chip.value < tiles.value < rows.value


def test_additions_of_the_backward_are_those_of_corners_inside() -> None:
    still = replace(ONE_FRAME, shapes=((8, 16), (4, 8)), offset_pixels=0.0)
    on_chip = reductions(still, (1,))
    # A level's tokens and the fp32 sums of 32 channels, written out by three blocks of the one head and frame.
    assert on_chip.shared_bytes == 4 * 8 * 128 and on_chip.busy == 3
    per_level = (reductions(still, ()).l2_bytes - on_chip.l2_bytes + 3 * on_chip.shared_bytes) / 128
    assert per_level == on_chip.shared_reductions < still.tokens * still.points * 4
    # Neighbours of the finer level often share a token of the coarser one; a warp has four.
    assert 1 < on_chip.turns <= 4
    assert on_chip.added_instructions > 0 == reductions(still, ()).added_instructions


@pytest.mark.parametrize("shapes", [((8, 8),), ((13, 19), (7, 10), (1, 1)), ((45, 80), (23, 40), (12, 20), (6, 10))])
def test_tiles_have_every_query_once(shapes: tuple[tuple[int, int], ...]) -> None:
    order = query_order(shapes)
    assert sorted(order.tolist()) == list(range(sum(h * w for h, w in shapes)))
    assert np.array_equal(order[:8], np.arange(8))  # a row of the first tile


LISTING = textwrap.dedent(
    """
    code for sm_90
            Function : kernel
            /*0000*/                   S2R R1, SR_TID.X ;
            /*0010*/                   LDG.E.128.CONSTANT R4, desc[UR4][R2.64] ;
            /*0020*/                   LDG.E.128.CONSTANT R8, desc[UR4][R2.64] ;
            /*0030*/                   LDG.E.128.CONSTANT R12, desc[UR4][R2.64] ;
            /*0040*/                   LDG.E.128.CONSTANT R16, desc[UR4][R2.64] ;
            /*0050*/               @P0 BRA 0x10 ;
            /*0060*/                   EXIT ;
    """
)


def test_a_loop_counts_as_often_as_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sass, "run", lambda *_: LISTING)
    monkeypatch.setattr(sass, "tool", lambda name: name)
    ((architecture, name, code),) = sass.listings(Path("library"), ())
    assert (architecture, name, len(code)) == (90, "kernel", 7)
    assert sass.loops_of(code) == [(0x10, 0x50)]
    forward = next(launch for launch in LAUNCHES if launch.trips == (4,))
    assert count(code, forward) == 1 + 4 * 5 + 1


def test_the_roofline_has_each_module_and_the_clip() -> None:
    rows = list(roofline_rows(["tiny"], [1]))
    by_gpu = [row for row in rows if row["gpu"] == "L4"]
    assert by_gpu[-1]["module"] == "clip" and len(rows) == len(GPUS) * len(by_gpu)
    for key in ("gbytes", "gflop", "launches", "least_ms"):
        assert by_gpu[-1][key] == pytest.approx(sum(row[key] for row in by_gpu[:-1]))
    assert by_gpu[-1]["least_ms"] >= 1e3 * max(by_gpu[-1]["gflop"] / 121e3, by_gpu[-1]["gbytes"] / 300) - 1e-9


def test_goals_name_the_least_batch() -> None:
    clip = {"module": "clip", "preset": "mssts_r50"}
    roofline = [
        {**clip, "gpu": "A", "batch": 8, "most_frames_per_s": 2000.0},
        {**clip, "gpu": "A", "batch": 1, "most_frames_per_s": 900.0},
        {**clip, "gpu": "B", "batch": 1, "most_frames_per_s": 100.0},
    ]
    kernel = {"implementation": "mssts", "dtype": "float16"}
    kernels = [{**kernel, "offset_pixels": 0.5, "bound_us": 35.0}, {**kernel, "offset_pixels": 2.0, "bound_us": 46.0}]
    found = goals(kernels, roofline)
    assert found["r50_1000_frames_per_s_at_batch"] == {"A": 8, "B": None}
    assert found["op_45_us_allowed"] == {"0.5": True, "2.0": False}


def test_a_missing_library_ends_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "gpu-model", "--library", str(tmp_path / "none.so"), "--out", str(tmp_path / "f.json")]) == 2
    assert "make plugins" in capsys.readouterr().err and not (tmp_path / "f.json").exists()


def test_the_recorded_figures_keep_the_goals() -> None:
    """Of bench/results/gpu_model.json, which is made again where a kernel changes."""
    record = json.loads((Path(__file__).parents[2] / "bench/results/gpu_model.json").read_text(encoding="utf-8"))
    forward = [row for row in record["kernels"] if "deform_forward_tensor<__half, 32, 4, 4, 2>" in row["kernel"]]
    traffic = {row["offset_pixels"]: row["l2_to_l1_mb"] for row in forward}
    assert traffic[2.0] <= 240 and traffic[0.5] <= 100
    assert all(row["instructions_per_point"] <= 8.5 and row["spill_bytes"] == 0 for row in forward)


def test_the_recorded_kernels_spill_nothing_and_backwards_have_a_third_of_the_warps() -> None:
    record = json.loads((Path(__file__).parents[2] / "bench/results/gpu_model.json").read_text(encoding="utf-8"))
    ours = [row for row in record["kernels"] if row["implementation"] == "mssts"]
    assert [row["kernel"] for row in ours if row["spill_bytes"]] == []
    backward = [row for row in ours if "deform_backward" in row["kernel"] and row["occupancy"] is not None]
    assert len(backward) == 6 and all(row["occupancy"] >= 0.37 for row in backward)
    assert {row["registers"] <= 80 for row in ours if "deform_backward" in row["kernel"]} == {True}


def test_the_recorded_figures_are_those_of_the_decision_for_sums_in_l2() -> None:
    """On chip they do not pay at the L2's rate of loads.

    The decision stands in deform_attn_backward.cuh.
    """
    record = json.loads((Path(__file__).parents[2] / "bench/results/gpu_model.json").read_text(encoding="utf-8"))
    for offset in (0.5, 2.0):
        rows = [row for row in record["reductions"] if row["offset_pixels"] == offset]
        assert [row["levels_on_chip"] for row in rows] == [[], [2, 3], [1, 2, 3]]
        assert rows[0]["bound_us"] == min(row["bound_us"] for row in rows)


def test_the_built_library_is_read() -> None:
    from mssts.kernels import library

    built = library("cuda").path
    if built is None or shutil.which("c++filt") is None:
        pytest.skip("the CUDA library is not built, or there is no c++filt")
    try:
        sass.tool("cuobjdump"), sass.tool("nvdisasm")
    except MsstsError as error:
        pytest.skip(str(error))
    found = [kernel for kernel in kernels_of(built, 90) if kernel.launch is not None]
    # fp16, bf16 and fp32: forward, backward, and that with sums in fixed point.
    assert len(found) == 9 and not [kernel.note for kernel in found if kernel.note]
    assert all(kernel.stack_bytes == 0 and (kernel.occupancy or 0) >= 0.37 for kernel in found)
