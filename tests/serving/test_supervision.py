"""Servers that die or hang: what is noticed, how soon, and what clients lose."""

from __future__ import annotations

import json
import os
import re
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.serving import (
    Served,
    assert_gone,
    assert_same,
    clip_with_rectangles,
    end_of,
    left_in,
    needs_server,
    start_serve,
)

from mssts.cli import main
from mssts.errors import MsstsError
from mssts.segmenters.local import LocalSegmenter
from mssts.segmenters.triton import TritonSegmenter
from mssts.serving import processes
from mssts.serving.processes import Process
from mssts.serving.supervisor import RestartLimits

NOTICED_SECONDS = 2.0
SERVED_AGAIN_SECONDS = 15.0


@pytest.fixture
def served(engine: Path, temporary: Path) -> Iterator[Served]:
    running = start_serve(engine)
    yield running
    if running.process.poll() is None:
        running.end()
    assert_gone(running.folder)
    assert left_in(temporary) == []


def status(url: str) -> int:
    """The status of a page, 0 where nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=5) as page:
            return page.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def wait_for(url: str, wanted: bool, seconds: float) -> float:
    """Seconds until a page is 200, or until it is not."""
    start = time.monotonic()
    while (status(url) == 200) != wanted:
        assert time.monotonic() - start < seconds, f"{url} is {'not ' if wanted else ''}200 for {seconds} s"
        time.sleep(0.05)
    return time.monotonic() - start


@needs_server
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_model_that_dies_costs_a_pause_and_not_a_clip(
    served: Served, local: LocalSegmenter, number: signal.Signals
) -> None:
    clips = [clip_with_rectangles(frames) for frames in (2, 3, 4, 5)] * 4
    found = []
    with TritonSegmenter(served.grpc) as client:
        for i, instances in enumerate(client.segment_many(clips)):
            if i == 5:
                os.kill(served.stub("engine"), number)
                wait_for(f"{served.http}/v2/health/ready", False, NOTICED_SECONDS)
                wait_for(served.health, False, NOTICED_SECONDS)
                wait_for(served.health, True, SERVED_AGAIN_SECONDS)
            found.append(instances)
    for instances, clip in zip(found, clips, strict=True):
        assert_same(instances, local.segment(clip))
    assert status(f"{served.http}/v2/health/ready") == 200
    code, said = served.end()
    assert code == 0
    what = r"was killed by signal 9 \(SIGKILL\)" if number == signal.SIGKILL else "is stopped"
    assert re.search(rf"mssts serve: the process of engine \(pid \d+\) {what}; the server is killed and started", said)
    assert re.search(r"mssts serve: the server is ready again after \d+\.\d s", said)


@needs_server
def test_a_server_that_dies_costs_a_pause_and_not_a_clip(served: Served, local: LocalSegmenter) -> None:
    clips = [clip_with_rectangles(frames) for frames in (2, 3, 4, 5)] * 4
    found = []
    with TritonSegmenter(served.grpc) as client:
        for i, instances in enumerate(client.segment_many(clips)):
            if i == 5:
                os.kill(served.server, signal.SIGKILL)
            found.append(instances)
    for instances, clip in zip(found, clips, strict=True):
        assert_same(instances, local.segment(clip))
    with urllib.request.urlopen(served.health, timeout=5) as page:
        assert json.load(page) == {"ready": True, "reason": None, "restarts": 1, "supervised": True}


@needs_server
def test_serve_gives_up_and_says_why(serve: Callable[..., Served], engine: Path, temporary: Path) -> None:
    served = serve(engine, "--max-restarts", "0")
    os.kill(served.server, signal.SIGKILL)
    code, said = end_of(served.process)
    assert code == 2
    assert re.fullmatch(
        r"mssts serve: error: tritonserver \(pid \d+\) was killed by signal 9 \(SIGKILL\); the log says: .*\n", said
    )
    assert_gone(served.folder)
    assert left_in(temporary) == []


@needs_server
def test_the_probe_sees_what_the_server_does_not_say(
    engine: Path, temporary: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mssts.serving.repository import model_repository
    from mssts.serving.server import TritonServer

    with model_repository(engine, threads=1) as repository, TritonServer(repository) as server:
        probe = ["health", "--url", server.http_url, "--metrics-url", server.metrics_url.removesuffix("/metrics")]
        assert main(probe) == 0
        (engine_stub,) = (pid for pid, model in server.stubs.items() if model == "engine")
        os.kill(engine_stub, signal.SIGKILL)
        time.sleep(0.2)
        assert status(f"{server.http_url}/v2/health/ready") == 200  # what 2.51 says
        assert main(probe) == 1
        assert "the process of a model" in (said := capsys.readouterr().err) and "signal 9" in said
        # As over a network, where the processes cannot be seen.
        monkeypatch.setattr("mssts.serving.health.servers", lambda protocol, port: [])
        assert main([*probe, "--no-canary"]) == 0
        assert main(probe) == 1
        assert "engine does not answer (Stub process 'engine_0_0' is not healthy" in capsys.readouterr().err
    assert main(probe) == 1
    assert "no answer from 127.0.0.1" in capsys.readouterr().err


@needs_server
def test_a_canary_changes_no_figures_of_the_ensemble(server, client, local) -> None:
    from mssts.serving.health import Endpoint, ask_canary, models_of_python
    from mssts.serving.model_config import MODELS, STAGES

    endpoint = Endpoint.parse(server.http_url)
    configs = models_of_python(endpoint, MODELS)
    assert set(configs) == set(STAGES)
    before = client.statistics()["mssts_vis"]
    for config in configs.values():
        assert ask_canary(endpoint, config) is None
        assert endpoint.ask(f"/v2/models/{config['name']}/ready")[0] == 200
    assert client.statistics()["mssts_vis"] == before
    clip = clip_with_rectangles()
    assert_same(client.segment(clip), local.segment(clip))


@needs_server
def test_an_inherited_allocator_does_not_reach_the_models(
    serve: Callable[..., Served], engine: Path, temporary: Path
) -> None:
    # Any library will do; jemalloc, which ended the engine's process, need not be installed here.
    import numpy

    (library,) = list(Path(numpy.__file__).parent.glob("random/mtrand*.so"))[:1]
    served = serve(engine, environment={"LD_PRELOAD": str(library)})
    for pid in [served.server, served.stub("engine")]:
        assert b"LD_PRELOAD=" not in Path(f"/proc/{pid}/environ").read_bytes()
    served.end()


def test_restart_limits() -> None:
    limits = RestartLimits()
    assert [limits.pause(recent) for recent in range(5)] == [0, 0.5, 1, 2, 4]
    assert limits.pause(50) == 30
    with pytest.raises(MsstsError, match="at least 0, not -1"):
        RestartLimits(-1)


@pytest.mark.parametrize(
    ("stat", "fault"),
    [
        ("7 (a (b) c) S 1 " + "0 " * 47 + "0", None),
        ("7 (tritonserver) T 1 " + "0 " * 47 + "0", "is stopped"),
        ("7 (tritonserver) t 1 " + "0 " * 47 + "0", None),
        ("7 (triton_python_b) Z 1 " + "0 " * 47 + "9", "was killed by signal 9 (SIGKILL)"),
        ("7 (triton_python_b) Z 1 " + "0 " * 47 + "256", "has ended with exit code 1"),
    ],
)
def test_what_the_kernel_says_of_a_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stat: str, fault: str | None
) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "stat").write_text(stat)
    monkeypatch.setattr(processes, "_PROC", tmp_path)
    one = processes.process(7)
    assert isinstance(one, Process) and one.fault() == fault
    assert processes.process(8) is None


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "http://127.0.0.1", "https://a:1", "http://a:1/x", "http://a:b"])
def test_the_probe_wants_an_http_url(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["health", "--url", url]) == 2
    assert "expected http://host:port" in capsys.readouterr().err
