"""Records: their names, the page of all, what got slower between two."""

from __future__ import annotations

import json
import re
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from mssts.bench.records import read_record, record_name, save_record
from mssts.bench.report.marks import WRITERS, marks, written
from mssts.cli import main

STAMP = {
    "machine": {"cpu": "AMD EPYC", "cores": 2, "memory_gib": 23.5},
    "versions": {"numpy": "1.26.4"},
    "commit": "0123456789ab",
}


def write(path: Path, *rows: dict[str, Any], **fields: Any) -> Path:
    path.write_text(json.dumps({"benchmark": "fps", "rows": rows, **STAMP, **fields}), encoding="utf-8")
    return path


def timed(runner: str, median: float, samples: list[float] | None = None, **fields: Any) -> dict[str, Any]:
    return {"runner": runner, "precision": "fp32", "ms_median": median, "samples_ms": samples, **fields}


def test_a_record_is_named_by_what_machine_date_and_commit() -> None:
    assert record_name("fps", STAMP, datetime(2026, 11, 26, tzinfo=timezone.utc)) == (
        "fps_amd-epyc-2c_20261126_0123456789ab.json"
    )
    xeon = {**STAMP, "machine": {"cpu": "Intel(R) Xeon(R) Processor", "cores": 4}}
    assert record_name("fps", xeon, datetime(2026, 1, 2, tzinfo=timezone.utc)).startswith("fps_intel-xeon-4c_20260102_")
    gpu = {**STAMP, "gpu": "NVIDIA H100 80GB HBM3"}
    assert record_name("kernels", gpu).startswith("kernels_nvidia-h100-80gb-hbm3_")


def test_a_second_record_of_a_day_and_commit_does_not_replace_the_first(tmp_path: Path) -> None:
    first, second = (save_record("fps", {"rows": [{"ms": ms}]}, tmp_path) for ms in (1, 2))
    assert first.parent == second.parent == tmp_path
    assert [read_record(path).value["rows"][0]["ms"] for path in (first, second)] == [1, 2]
    assert {"benchmark", "machine", "versions", "commit"} <= set(read_record(first).value)


@pytest.mark.parametrize("text", ["[]", "{}", '{"rows": 3}', '{"rows": [4]}', "{"])
def test_what_is_not_a_record_is_one_line(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.json"
    path.write_text(text, encoding="utf-8")
    assert main(["bench", "report", str(path), "--out", str(tmp_path / "page.html")]) == 2
    error = capsys.readouterr().err.strip()
    assert "a.json" in error and "\n" not in error
    assert not (tmp_path / "page.html").exists()


def compared(tmp_path: Path, *options: str) -> tuple[int, dict[str, dict[str, Any]]]:
    out = tmp_path / "out.json"
    code = main(["bench", "compare", str(tmp_path / "a.json"), str(tmp_path / "b.json"), "--out", str(out), *options])
    return code, {row["row"]: row for row in json.loads(out.read_text())["rows"]}


NEW = timed("new", 1)


def test_what_got_slower_is_named_and_is_the_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    steady = [99.0, 100.0, 101.0] * 4
    write(tmp_path / "a.json", timed("openvino", 100, steady), timed("pytorch", 200, [2 * x for x in steady]))
    write(
        tmp_path / "b.json", timed("openvino", 120, [1.2 * x for x in steady]), timed("pytorch", 198), timed("new", 1)
    )
    code, rows = compared(tmp_path)
    assert code == 1
    slow = rows["openvino, fp32"]
    assert slow["slower"] and slow["ratio"] == pytest.approx(1.2)
    assert 1.15 < slow["low"] <= 1.2 <= slow["high"] < 1.25
    assert not rows["pytorch, fp32"]["slower"] and rows["pytorch, fp32"]["low"] is None
    assert "new, fp32: only in" in capsys.readouterr().out
    assert compared(tmp_path, "--tolerance", "0.25")[0] == 0


def test_what_lies_within_the_noise_is_not_slower(tmp_path: Path) -> None:
    write(tmp_path / "a.json", timed("openvino", 100, [60.0, 90.0, 100.0, 150.0, 180.0]))
    write(tmp_path / "b.json", timed("openvino", 115, [70.0, 100.0, 115.0, 160.0, 170.0]))
    code, rows = compared(tmp_path)
    assert code == 0 and rows["openvino, fp32"]["ratio"] == pytest.approx(1.15)
    assert rows["openvino, fp32"]["low"] < 1 < rows["openvino, fp32"]["high"]


def test_rates_are_turned_over(tmp_path: Path) -> None:
    for name, rate in (("a", 10.0), ("b", 8.0)):
        write(tmp_path / f"{name}.json", {"mode": "open", "rate": 12, "clips_per_second": rate, "ms_p50": None})
    code, rows = compared(tmp_path)
    assert code == 1 and rows["open, rate 12"]["ratio"] == pytest.approx(1.25)
    for name, rate in (("a", 40.0), ("b", 50.0)):  # of the whole, as `mssts demo` has it
        write(tmp_path / f"{name}.json", {"name": "disc", "ap": 0.5}, benchmark="demo", frames_per_second=rate)
    code, rows = compared(tmp_path)
    assert code == 0 and rows["whole"]["ratio"] == pytest.approx(0.8)


def test_rows_of_one_clip_in_flight_are_those_of_records_that_do_not_say_it(tmp_path: Path) -> None:
    one, two = ({**timed("tensorrt", ms), "in_flight": clips} for ms, clips in ((4, 1), (5, 2)))
    write(tmp_path / "a.json", timed("tensorrt", 2))
    write(tmp_path / "b.json", one, two)
    _, rows = compared(tmp_path)
    assert rows.keys() == {"tensorrt, fp32"} and rows["tensorrt, fp32"]["ratio"] == 2
    write(tmp_path / "a.json", one, two)
    assert compared(tmp_path)[1].keys() == {"tensorrt, fp32", "tensorrt, fp32, in_flight 2"}


def test_rows_that_cannot_be_told_apart_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        write(tmp_path / f"{name}.json", timed("openvino", 1), timed("openvino", 2))
    assert main(["bench", "compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 2
    assert "two rows of openvino, fp32" in capsys.readouterr().err


def test_the_page_holds_every_record_and_asks_nothing_of_the_network(tmp_path: Path) -> None:
    write(
        tmp_path / "fps.json", timed("<script>openvino", 123.4, floor_ms=100.0, ms_p5=120.0, ms_p95=130.0),
        not_measured=[{"runner": "tensorrt", "precision": "fp16", "reason": "not installed"}],
    )  # fmt: skip
    grown = [{"axis": "frames", "value": frames, "ms_median": 10.0 * frames} for frames in (1, 2, 5)]
    write(tmp_path / "scaling.json", *grown, benchmark="scaling")
    page = tmp_path / "page.html"
    assert main(["bench", "report", str(tmp_path), "--out", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    for expected in ("&lt;script&gt;openvino", "123", 'class="floor"', "not installed", "numpy 1.26.4", "0123456789ab"):
        assert expected in text
    assert 'class="line l0"' in text  # of the record in which something grows
    assert not re.search(r"(?:src|href)=\"?(?:https?:|//)|@import|url\(", text)
    assert text.count("<section") == text.count("</section>") == 2


def test_committed_records_can_be_read() -> None:
    folder = Path(__file__).parents[2] / "bench" / "results"
    for path in folder.glob("*.json"):
        assert read_record(path).tables, path


@pytest.mark.parametrize("page", ["README.md", "docs/benchmarks.md"])
def test_the_pages_have_the_figures_of_the_records(page: str) -> None:
    root = Path(__file__).parents[2]
    records = [read_record(path) for path in sorted((root / "bench" / "results").glob("*.json"))]
    found = written(root / page)
    assert found == {name: WRITERS[name](records) for name in found}


def test_figures_are_those_of_the_newest_records_and_go_between_the_marks(tmp_path: Path) -> None:
    engines = [timed("released", 1000.0, peak_memory_mb=1000), timed("openvino", 100.0, peak_memory_mb=500)]
    write(tmp_path / "fps_amd_20250101_a.json", timed("released", 1.0, peak_memory_mb=1), engines[1])
    write(tmp_path / "fps_amd_20260101_b.json", *engines, frames=5, size=[360, 640])
    write(tmp_path / "demo_amd_20260101_b.json", benchmark="demo", ap=0.5, frames_per_second=20.0, per_category=[{}])
    readme = tmp_path / "README.md"
    begin, end = marks("figures")
    readme.write_text(f"before\n{begin}\nold\n{end}\nafter\n", encoding="utf-8")
    options = ["--out", str(tmp_path / "page.html"), "--readme", str(readme)]
    assert main(["bench", "report", *map(str, tmp_path.glob("*.json")), *options]) == 0
    text = readme.read_text(encoding="utf-8")
    assert "10.0 times as fast, 0.50 of its memory" in text and "| 50.0 |" in text and "| 20 frames/s |" in text
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    (tmp_path / "page.html").unlink()
    readme.write_text("no marks", encoding="utf-8")
    assert main(["bench", "report", *map(str, tmp_path.glob("*.json")), *options]) == 2
    assert not (tmp_path / "page.html").exists()  # all or nothing


def test_memory_that_was_not_measured_is_left_out_of_the_figures(tmp_path: Path) -> None:
    write(tmp_path / "fps_amd_20260101_b.json", timed("released", 100.0, peak_memory_mb=None),
          timed("openvino", 10.0, peak_memory_mb=None), frames=5, size=[360, 640])  # fmt: skip
    write(tmp_path / "demo_amd_20260101_b.json", benchmark="demo", ap=0.5, frames_per_second=20.0, per_category=[{}])
    write(tmp_path / "demo_amd_20260102_b.json", benchmark="demo", ap=None, frames_per_second=1.0, per_category=[{}])
    text = WRITERS["figures"]([read_record(path) for path in tmp_path.glob("*.json")])
    assert "10.0 times as fast |" in text and "| 50.0 |" in text


def profile(path: Path, precision: str, floor: float, own: float, products: float, ops: float, passes: float) -> None:
    """A profile whose only module is the backbone."""
    ms = products + ops + passes
    row = {
        "ms": ms, "floor_ms": floor, "own_rate_ms": own, "products_ms": products, "ops_ms": ops, "passes_ms": passes,
    }  # fmt: skip
    value = {
        "benchmark": "profile", "preset": "mssts_r50", "runner": "openvino", "precision": precision, "total_ms": ms,
        "total": {"name": "total", **row}, "modules": [{"name": "backbone", **row}], **STAMP,
    }  # fmt: skip
    path.write_text(json.dumps(value), encoding="utf-8")


def test_the_goals_stand_beside_what_takes_the_time(tmp_path: Path) -> None:
    profile(tmp_path / "profile_amd_20260101_a.json", "fp32", 1, 1, 1, 1, 1)
    profile(tmp_path / "profile_amd_20260102_a.json", "fp32", 1000, 1050, 1120, 60, 120)
    profile(tmp_path / "profile_amd_20260102_a-2.json", "bf16", 500, 520, 560, 40, 100)
    profile(tmp_path / "profile_amd_20260102_a-3.json", "int8", 250, 280, 330, 40, 90)
    table = WRITERS["goals"]([read_record(path) for path in tmp_path.glob("*.json")])
    rows = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]] for line in table.splitlines()
            if line.startswith("|")}  # fmt: skip
    assert rows["the goal"] == ["1,100, 1.10 × floor", "600, 1.20 × floor", "420, 0.60 × bf16"]
    assert rows["the engine"] == ["1,300, 1.30 × floor", "700, 1.40 × floor", "460, 1.84 × floor"]
    assert rows["backbone"] == ["1,000 / 1,050 / 1,300", "500 / 520 / 700", "250 / 280 / 460"]
    (left,) = (cells for name, cells in rows.items() if name.startswith("ops and passes now"))
    assert left == ["180, 50", "140, 80", "130, 140"]
    assert "among the records" in WRITERS["goals"]([])


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ({"benchmark": "fps"}, {"benchmark": "kernels"}, "a record of kernels, and"),
        ({"rows": [timed("openvino", 0)]}, {}, "no row with a time in common"),
        ({"machine": "two cores"}, {}, "machine must be an object"),
    ],
)
def test_records_that_cannot_be_compared_are_one_line(
    tmp_path: Path, a: dict[str, Any], b: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, fields in (("a", a), ("b", b)):
        value = {"benchmark": "fps", "rows": [timed("openvino", 1)], **STAMP, **fields}
        (tmp_path / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    out = tmp_path / "out.json"
    assert main(["bench", "compare", str(tmp_path / "a.json"), str(tmp_path / "b.json"), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not out.exists()


def test_other_settings_are_a_note_and_odd_samples_leave_the_noise_unknown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "a.json", timed("openvino", 100, [0.0, 0.0]), preset="mssts_r50", size=[360, 640])
    write(tmp_path / "b.json", timed("openvino", 100, [100.0, 101.0]), preset="tiny", size=[360, 640])
    code, rows = compared(tmp_path)
    assert code == 0 and rows["openvino, fp32"]["low"] is None
    printed = capsys.readouterr().out
    assert "note: preset is not the same: mssts_r50; tiny" in printed and "note: size" not in printed


def test_the_page_takes_what_is_no_number_as_absent(tmp_path: Path) -> None:
    odd = {"ms_p5": "soon", "floor_ms": True, "ms_p95": float("inf")}
    write(tmp_path / "fps.json", timed("openvino", 100, **odd), not_measured=7)
    grown = [{"axis": ["frames"], "value": "many", "ms_median": 1.0}, {"axis": 1, "value": 2, "ms_median": "long"}]
    write(tmp_path / "scaling.json", *grown, benchmark="scaling")
    page = tmp_path / "page.html"
    assert main(["bench", "report", str(tmp_path), "--out", str(page)]) == 0
    assert "openvino" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["switches", "--out", "{file}/record.json"], "is a file"),
        (["profile", "--plot", "{tmp}/plot.bmp"], ".png, .svg, .pdf"),
        (["scaling", "--plot", "{tmp}"], "is a folder"),
        (["stream", "--out", "{file}/record.json"], "is a file"),
        (["ap", "results.json", "--data", "absent.json", "--sheet", "{tmp}"], "is a folder"),
        (["fps", "--runners", "nope", "--cache", "{tmp}/cache"], "there is no 'nope'"),
        (["fps", "--checkpoint", "{file}", "--runners", "openvino"], "or damaged"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_measured(
    tmp_path: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    words = [word.format(tmp=tmp_path, file=tmp_path / "file") for word in options]
    out = [] if "--out" in words else ["--out", str(tmp_path / "new.json")]
    assert main(["bench", *words, *out]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
