"""The benchmarks measure what they say and leave it in a JSON file."""

from __future__ import annotations

import json

import pytest

from mssts.bench.switches import variants
from mssts.cli import main
from mssts.model.config import BASELINE, Switches


def test_the_variants_are_the_baseline_each_addition_alone_and_all():
    found = variants()
    assert found["baseline"] == BASELINE
    assert found["all"] == Switches()
    assert set(found) == {"baseline", "intra_scale", "inter_scale", "temporal_decoder", "all"}


def test_what_the_switches_cost_is_printed_and_written(tmp_path, capsys):
    out = tmp_path / "switches.json"
    arguments = ["--preset", "tiny", "--size", "32x48", "--frames", "2", "--repeats", "2", "--out", str(out)]
    assert main(["bench", "switches", *arguments]) == 0
    report = json.loads(out.read_text())
    rows = {row["variant"]: row for row in report["rows"]}
    assert set(rows) == set(variants())
    # The parts add up: intra- and inter-scale share the two layers around them.
    added = {name: row["parameters"] - rows["baseline"]["parameters"] for name, row in rows.items()}
    assert all(added[name] > 0 for name in rows if name != "baseline")
    assert max(added.values()) == added["all"] < sum(added.values()) - added["all"]
    assert all(0 < row["ms_min"] <= row["ms_median"] <= row["ms_max"] for row in rows.values())
    assert {"machine", "versions", "commit", "threads"} <= set(report)
    printed = capsys.readouterr().out
    assert all(f"{row['parameters']:,}" in printed for row in rows.values())


@pytest.mark.parametrize(("flag", "value"), [("--size", "big"), ("--size", "4x4"), ("--frames", "0")])
def test_bad_arguments_are_one_line(capsys, flag, value):
    assert main(["bench", "switches", flag, value]) == 2
    error = capsys.readouterr().err
    assert flag in error
    assert error.count("\n") == 1
