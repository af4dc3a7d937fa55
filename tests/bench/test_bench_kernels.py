"""`mssts bench kernels`: refusals of wrong results, and complete, reliable rows."""

from __future__ import annotations

import json

import pytest
import torch

from mssts.bench.kernels import command as kernels
from mssts.bench.kernels import implementations as kernel_implementations
from mssts.bench.kernels import workloads
from mssts.bench.kernels.accuracy import exact_outputs
from mssts.bench.kernels.bandwidth import measure_bandwidth
from mssts.bench.kernels.baselines import grid_sample, grid_sample_points_first, grid_sample_stacked
from mssts.bench.kernels.cases import DTYPES, by_autograd, by_op
from mssts.bench.kernels.memory import peak_extra_memory
from mssts.cli import main
from mssts.model.config import preset

TINY = "encoder_tiny_144x256_t6"
TINY_DECODER = "decoder_tiny_144x256_t6"
TINY_TEMPORAL = "temporal_inter_tiny_144x256_t6"
REQUIRED = {
    "workload", "impl", "device", "dtype", "direction", "threads", "ms_median", "ms_p5", "ms_p95", "bytes", "flops",
    "gb_per_s", "fraction_of_bandwidth", "times_of_one_read_and_write", "max_error", "peak_extra_memory_mb",
}  # fmt: skip


@pytest.fixture(autouse=True)
def small_bandwidth(monkeypatch):
    """Makes the bandwidth's buffers small.

    They are gigabytes where caches are large, which a test does not need.
    """
    monkeypatch.setattr("mssts.bench.kernels.bandwidth._SMALLEST", 2**20)
    monkeypatch.setattr("mssts.bench.kernels.bandwidth.last_level_cache_bytes", lambda: 2**18)


def measure(tmp_path, *arguments, code=0):
    out = tmp_path / "kernels.json"
    assert main(["bench", "kernels", "--repeats", "2", "--out", str(out), *arguments]) == code
    return json.loads(out.read_text())


def error_line(capsys, *arguments):
    assert main(["bench", "kernels", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_rows_are_whole_and_nothing_is_dropped(tmp_path, capsys):
    report = measure(
        tmp_path, "--workload", TINY_DECODER, TINY_TEMPORAL, "--direction", "forward", "backward", "--threads", "1",
        "--no-memory",
    )  # fmt: skip
    assert {"machine", "versions", "commit", "bandwidth", "device", "notes", "seed"} <= set(report)
    rows = report["rows"]
    for row in rows:
        assert set(row) >= REQUIRED
        assert row["wrong"] == ""
        assert 0 < row["ms_p5"] <= row["ms_median"] <= row["ms_p95"]
        assert row["threads"] == 1
        assert row["gb_per_s"] == pytest.approx(row["bytes"] / row["ms_median"] / 1e6)
    # Each implementation has a row or a reason, in each of the four cases.
    listed = {(e["workload"], e["direction"], e["impl"]) for e in rows + report["absent"]}
    expected = {
        (name, direction, impl)
        for name, op in ((TINY_DECODER, "MSDeformAttn"), (TINY_TEMPORAL, "SplitTemporalAttn"))
        for direction in ("forward", "backward")
        for impl in kernel_implementations.IMPLEMENTATIONS[op]
    }
    assert listed == expected
    assert len(listed) == len(rows) + len(report["absent"])
    assert all(entry["reason"] for entry in report["absent"])
    by_name = {row["impl"]: row for row in rows if row["workload"] == TINY_DECODER and row["direction"] == "forward"}
    assert by_name["grid_sample"]["speedup_vs_grid_sample"] == 1
    assert {"grid_sample", "grid_sample_stacked", "onnx_function", "copy"} <= set(by_name)
    printed = capsys.readouterr().out
    assert all(f"{row['impl']} " in printed for row in rows)
    assert all(entry["reason"] in printed for entry in report["absent"])


def test_what_was_asked_for_is_what_is_measured(tmp_path):
    report = measure(
        tmp_path, "--workload", TINY_DECODER, "--impl", "grid_sample", "--dtype", "float16", "bfloat16",
        "--threads", "1", "--no-memory",
    )  # fmt: skip
    found = [(row["impl"], row["dtype"], row["threads"], row["speedup_vs_grid_sample"]) for row in report["rows"]]
    assert found == [("grid_sample", "float16", 1, 1), ("grid_sample", "bfloat16", 1, 1)]
    assert report["absent"] == []
    assert [entry["threads"] for entry in report["bandwidth"]] == [1]


def shifted(inputs):
    out = by_op(inputs).clone()
    out[0, -1] += 0.01  # one query of thousands
    return out


def broken(inputs):
    raise RuntimeError("no such instruction")


@pytest.mark.parametrize(
    ("function", "why"),
    [(shifted, "error"), (lambda inputs: by_op(inputs)[:, 1:], "expected"), (broken, "no such instruction"),
     (lambda inputs: by_op(inputs) * float("nan"), "nan")],
    ids=["wrong numbers", "wrong shape", "raises", "not a number"],
)  # fmt: skip
def test_one_that_computes_wrongly_is_refused(tmp_path, capsys, monkeypatch, function, why):
    table = kernel_implementations.IMPLEMENTATIONS["MSDeformAttn"]
    monkeypatch.setitem(table, "mssts", by_autograd(function))
    chosen = "--workload", TINY_DECODER, "--impl", "mssts", "grid_sample", "--threads", "1"
    report = measure(tmp_path, *chosen, "--no-memory", code=1)
    rows = {row["impl"]: row for row in report["rows"]}
    assert why in rows["mssts"]["wrong"]
    assert rows["mssts"]["ms_median"] is None
    assert rows["mssts"]["speedup_vs_grid_sample"] is None
    assert rows["grid_sample"]["wrong"] == ""
    assert rows["grid_sample"]["ms_median"] > 0
    assert "wrong: " in capsys.readouterr().out


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("workload", [TINY, TINY_DECODER])
def test_the_baselines_compute_the_op(workload, direction, dtype):
    inputs = workloads.WORKLOADS[workload].make(DTYPES[dtype], "cpu", seed=3)
    exact = exact_outputs(inputs, direction)
    for function in (grid_sample, grid_sample_stacked, grid_sample_points_first):
        case = type("Case", (), {"inputs": [inputs], "direction": direction})
        assert exact.complaint(exact.errors(by_autograd(function)(case).call(0))) == ""


def test_a_points_level_taken_for_another_is_seen_in_every_gradient():
    inputs = workloads.WORKLOADS[TINY_DECODER].make(torch.bfloat16, "cpu", seed=0)
    exact = exact_outputs(inputs, "backward")
    for index, output in enumerate(exact.outputs):
        outputs = [other.clone() for other in exact.outputs]
        outputs[index] = output.roll(1, 3)
        assert f"output {index}" in exact.complaint(exact.errors(outputs))


def test_workloads_are_the_models():
    for name, kind in (("mssts_r50", "r50"), ("mssts_swin_l", "swin_l"), ("tiny", "tiny")):
        config = preset(name).model
        chosen = [w for w in workloads.WORKLOADS.values() if f"_{kind}_" in w.name and w.op == "MSDeformAttn"]
        assert chosen
        for workload in chosen:
            sizes = workload.heads, len(workload.shapes), workload.points
            assert sizes == (config.heads, config.levels, config.points)
            assert workload.heads * workload.channels == config.width
            assert workload.queries in (None, config.queries)
        split = [w for w in workloads.WORKLOADS.values() if f"_{kind}_" in w.name and "temporal_int" in w.name]
        for workload in split:
            assert (workload.heads, workload.heads * workload.channels) == (config.split_heads, config.split_width)


def test_help_names_every_implementation():
    known = {name for table in kernel_implementations.IMPLEMENTATIONS.values() for name in table}
    assert set(kernels._IMPLEMENTATIONS) == known


def test_bytes_are_those_of_the_tensors():
    for name in (TINY, TINY_DECODER, TINY_TEMPORAL, "temporal_decoder_r50_t5"):
        workload = workloads.WORKLOADS[name]
        inputs = workload.make(torch.float16, "cpu", seed=0)
        tensors = list(inputs.leaves)
        if name.startswith("temporal"):
            out = inputs.grad_out_BTSC
        else:
            tensors, out = [*tensors, inputs.reference_NQLR], inputs.grad_out_NQC

        def size(*tensors):
            return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

        assert workload.bytes_moved(2, "forward") == size(*tensors, out)
        assert workload.bytes_moved(2, "backward") == size(*tensors, out, *inputs.leaves)
        assert workload.output_bytes(2, "forward") == size(out)
        assert workload.output_bytes(2, "backward") == size(*inputs.leaves)


def test_inputs_are_those_of_the_seed():
    workload = workloads.WORKLOADS[TINY]
    first, again, other = (workload.make(torch.float32, "cpu", seed) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first.leaves, again.leaves, strict=True))
    assert not torch.equal(first.value_NSMD, other.value_NSMD)


def test_memory_is_what_the_stack_of_samples_takes():
    workload = workloads.WORKLOADS[TINY]
    found = peak_extra_memory(TINY, "float32", "forward", 1, ["grid_sample_stacked", "copy", "unheard_of"], 0)
    if found["copy"] is None:
        pytest.skip("this system has no /proc/self/clear_refs to measure by")
    # D samples a point; they are stacked, and weighed into a tensor as large again, minus a page here and there.
    stack = workload.samples * workload.channels * 4 / 1e6
    assert 1.9 * stack <= found["grid_sample_stacked"] <= 4 * stack
    assert found["copy"] < 0.1 * stack
    assert found["unheard_of"] is None


def test_bandwidth_counts_what_is_read_and_written():
    found = measure_bandwidth("cpu", 1)
    assert found["gb_per_s"] >= found["gb_per_s_median"] > 0
    assert found["beyond_caches"]


def test_unknown_names_are_one_line_that_lists_the_known(capsys):
    error = error_line(capsys, "--workload", "encoder_r18")
    assert "encoder_r18" in error
    assert all(name in error for name in workloads.WORKLOADS)
    error = error_line(capsys, "--impl", "cublas", "--workload", TINY)
    assert "cublas" in error
    assert all(name in error for name in kernel_implementations.IMPLEMENTATIONS["MSDeformAttn"])
    error = error_line(capsys, "--impl", "sdpa", "--workload", TINY)
    assert "MSDeformAttn" in error
    assert "--repeats" in error_line(capsys, "--repeats", "0")
    assert "--threads" in error_line(capsys, "--threads", "0")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_is_one_line(capsys, tmp_path):
    out = tmp_path / "gpu.json"
    error = error_line(capsys, "--device", "cuda", "--workload", "all", "--out", str(out))
    assert "GPU" in error
    assert not out.exists()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_on_a_gpu_rows_are_whole(tmp_path):
    report = measure(
        tmp_path, "--device", "cuda", "--workload", TINY, TINY_TEMPORAL, "--dtype", "float32", "float16", "bfloat16",
        "--direction", "forward", "backward",
    )  # fmt: skip
    assert all(0 < row["ms_p5"] <= row["ms_median"] for row in report["rows"])
    assert report["device"]["name"]
