"""`mssts bench load` and `stream` on a server whose engine takes a known time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from support.serving import needs_server, slow_down
from support.toy_engine import write_toy_engine

from mssts.cli import main
from mssts.serving.repository import model_repository
from mssts.serving.server import TritonServer

ENGINE_SECONDS = 0.1


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    engine = write_toy_engine(tmp_path_factory.mktemp("toy")).parent
    with model_repository(engine, threads=1) as repository:
        slow_down(repository, ENGINE_SECONDS)
        with TritonServer(repository) as running:
            yield running


@needs_server
def test_rows_say_what_a_server_of_known_speed_does(
    server: TritonServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, plot = tmp_path / "load.json", tmp_path / "load.png"
    options = ["--concurrency", "1,6", "--rates", "4", "--seconds", "2", "--size", "64x96", "--frames", "3"]
    files = ["--out", str(out), *(["--plot", str(plot)] if find_spec("matplotlib") else [])]
    assert main(["bench", "load", "--url", server.grpc_url, *options, *files]) == 0
    report = json.loads(out.read_text())
    assert {"machine", "commit", "server", "seconds"} <= set(report)
    one, six, open_loop = report["rows"]
    assert (one["mode"], one["concurrency"], one["rate"]) == ("closed", 1, None)
    assert (open_loop["mode"], open_loop["rate"]) == ("open", 4)
    for row in report["rows"]:
        assert row["errors"] == 0
        assert 1e3 * ENGINE_SECONDS <= row["ms_p50"] <= row["ms_p90"] <= row["ms_p99"]
        assert row["clips_per_second"] <= 1 / ENGINE_SECONDS
        assert row["frames_per_second"] == pytest.approx(3 * row["clips_per_second"])
        assert row["server_rss_mb"] > 20
        assert row["stage_ms"]["engine"] >= 1e3 * ENGINE_SECONDS
    assert one["rejected"] == 0
    # One clip is computed and two wait: of six clients some are refused, and the others wait for the two before them.
    assert six["rejected"] > 0
    assert six["ms_p50"] > 1.5 * one["ms_p50"]
    assert six["clips_per_second"] >= 0.9 * one["clips_per_second"]
    assert "refused" in capsys.readouterr().out


@needs_server
def test_streams_through_a_server_of_known_speed(
    server: TritonServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "stream.json"
    options = ["--frames", "13", "--rounds", "1", "--view-rounds", "1", "--viewers", "2", "--seconds", "2"]
    assert main(["bench", "stream", "--url", server.grpc_url, *options, "--out", str(out)]) == 0
    report = json.loads(out.read_text())
    assert {"machine", "versions", "commit", "engine", "size", "load_average_before"} <= set(report)
    rows = {row["name"]: row for row in report["rows"]}
    missing = {absent["name"]: absent["reason"] for absent in report["not_measured"]}
    for name in ("predict", "stream", "stream, no page", "stream, 2 viewers"):
        (rate,) = rows[name]["samples_frames_per_second"]
        windows = 3  # of 5 frames that share 1
        assert 0 < rate == rows[name]["frames_per_second"] <= 13 / (windows * ENGINE_SECONDS)
    assert rows["stream"]["ratio"] == pytest.approx(
        rows["stream"]["frames_per_second"] / rows["predict"]["frames_per_second"]
    )
    assert rows["stream, 2 viewers"]["pictures_least"] >= 1
    printed = capsys.readouterr().out
    if "camera" in missing:
        assert "apt-get install python3-gi" in missing["camera"]
        assert "camera: not measured here: GStreamer" in printed
    else:
        camera = rows["camera"]
        assert camera["clip_ms"] >= 1e3 * ENGINE_SECONDS
        assert 1e3 * ENGINE_SECONDS <= camera["ms_p5"] <= camera["ms_median"] <= camera["ms_p95"] <= camera["ms_max"]
        assert len(camera["samples_ms"]) >= 6 and camera["gaps"] == 0
        assert "a camera: median" in printed


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--view-rounds", "0"], "--view-rounds is 0; expected at least 1"),
        (["--url", "grpc://127.0.0.1:1"], "no Triton server answers there"),
        (["--model", "absent"], "absent: no such file"),
    ],
)
def test_a_stream_that_cannot_be_measured_is_one_line(
    capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    assert main(["bench", "stream", *options]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--concurrency", "0"], "--concurrency 0: expected whole numbers"),
        (["--concurrency", "x"], "--concurrency x: expected whole numbers"),
        (["--concurrency", ""], "give --concurrency, --rates, or both"),
        (["--rates", "-1"], "--rates -1: expected numbers"),
        (["--seconds", "0"], "--seconds is 0"),
        ([], "no Triton server answers there"),
    ],
)
def test_what_cannot_be_measured_is_one_line(capsys: pytest.CaptureFixture[str], options: list[str], said: str) -> None:
    assert main(["bench", "load", "--url", "grpc://127.0.0.1:1", *options]) == 2
    assert said in capsys.readouterr().err
