"""How time and memory grow with what is varied."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mssts.bench.scaling import command
from mssts.bench.scaling.growth import fit_growth
from mssts.cli import main


def test_a_power_law_is_found_with_its_error() -> None:
    x = np.array([1.0, 2, 4, 8, 16, 32])
    exact = fit_growth(x, 3 * x**1.5)
    assert exact.exponent == pytest.approx(1.5) and exact.error == pytest.approx(0, abs=1e-9)
    noise = np.random.default_rng(0).normal(0, 0.05, (200, 6))
    fits = [fit_growth(x, 3 * x**1.5 * np.exp(row)) for row in noise]
    scatter = np.std([fit.exponent for fit in fits])
    assert np.sqrt(np.mean([fit.error**2 for fit in fits if fit.error])) == pytest.approx(scatter, rel=0.15)
    of_two = fit_growth([1, 2], [1, 4])
    assert of_two.exponent == pytest.approx(2) and of_two.error is None


@pytest.mark.parametrize(("x", "y"), [([1, 1], [1, 2]), ([0, 1], [1, 2]), ([1, 2], [0, 1]), ([1], [1])])
def test_nothing_to_fit_is_an_error(x: list[float], y: list[float]) -> None:
    with np.errstate(all="ignore"), pytest.raises(ValueError, match="two different values"):
        fit_growth(x, y)


def test_each_axis_has_rows_and_an_exponent(
    tmp_path: Path,
    exported: tuple[Path, Path, object],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("openvino")
    checkpoint, engine, _ = exported
    cache, out = tmp_path / "cache", tmp_path / "scaling.json"
    cache.mkdir()
    (cache / f"{checkpoint.stem}-fp32").symlink_to(engine)  # is what the command would export
    monkeypatch.setattr(command, "_FRAMES", (1, 4))
    monkeypatch.setattr(command, "_QUERIES", (5, 10))
    monkeypatch.setattr(command, "_LENGTHS", (6, 12))
    code = main(
        ["bench", "scaling", "--checkpoint", str(checkpoint), "--size", "64x96", "--frames", "2", "--repeats", "2",
         "--axes", "frames,queries,length,clients", "--cache", str(cache), "--out", str(out),
         "--plot", str(tmp_path / "scaling.png")]
    )  # fmt: skip
    report = json.loads(out.read_text())
    by_axis = {axis: [row for row in report["rows"] if row["axis"] == axis] for axis in command._AXES}
    assert code == 0 and (tmp_path / "scaling.png").is_file()
    assert [row["value"] for row in by_axis["frames"]] == [1, 4]
    assert len(by_axis["clients"]) == 3 and not by_axis["pixels"]
    assert all(row["ms_median"] > 0 and row["samples_ms"] for row in report["rows"])
    assert by_axis["frames"][1]["ms_median"] > by_axis["frames"][0]["ms_median"]
    assert [row["runner"] for row in by_axis["queries"]] == ["pytorch", "pytorch"]
    fitted = {(fit["axis"], fit["figure"]) for fit in report["exponents"]}
    assert {("frames", "ms_median"), ("frames", "peak_memory_mb"), ("length", "ms_median")} <= fitted
    assert "grows as frames^" in capsys.readouterr().out
    assert main(["bench", "scaling", "--axes", "moons"]) == 2
