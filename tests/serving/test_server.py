"""The server's process: start, ports, failures, and its certain end."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.serving import (
    END_SECONDS,
    GREEN,
    Served,
    assert_gone,
    left_in,
    needs_server,
    needs_wheel,
    processes_of,
)
from support.toy_engine import COLOURS, write_toy_engine

from mssts.cli import main
from mssts.errors import MsstsError
from mssts.files import sha256
from mssts.manifest import FixedShape, Manifest
from mssts.segmenters.local import LocalSegmenter
from mssts.segmenters.triton import TritonSegmenter
from mssts.serving.model_config import STAGES
from mssts.serving.processes import process
from mssts.serving.repository import model_repository
from mssts.serving.server import TritonServer


@needs_server
def test_an_engine_of_one_shape_is_warm_and_served(tmp_path: Path) -> None:
    shape = FixedShape(1, 4, 64, 128)
    engine = write_toy_engine(tmp_path, shape).parent
    frames_THWC = np.zeros((3, 72, 128, 3), np.uint8)
    frames_THWC[:, :36, :64] = COLOURS[GREEN]
    with (
        model_repository(engine, threads=1, warm=shape) as repository,
        TritonServer(repository) as running,
        TritonSegmenter(running.grpc_url) as segmenter,
    ):
        assert '"warm" value { string_value: "1x4x64x128" }' in (repository / "engine" / "config.pbtxt").read_text()
        served = segmenter.segment(frames_THWC, 0.5)
    expected = LocalSegmenter(engine, threads=1).segment(frames_THWC, 0.5)
    assert served.labels.tolist() == expected.labels.tolist() == [GREEN]
    np.testing.assert_array_equal(served.boxes, expected.boxes)
    assert served.rles == expected.rles
    with (
        model_repository(engine, threads=1, warm=FixedShape(1, 5, 64, 128)) as repository,
        pytest.raises(MsstsError, match=r"takes clips of 1 to 4 frames .* got 5 frames"),
        TritonServer(repository),
    ):
        pass


@needs_wheel
@pytest.mark.parametrize("option", ["--grpc-port", "--http-port", "--metrics-port"])
def test_a_port_in_use(engine: Path, temporary: Path, capsys: pytest.CaptureFixture[str], option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--model", str(engine), option, str(port)]) == 2
    assert re.fullmatch(
        rf"mssts serve: error: the \w+ port {port} of 127\.0\.0\.1 is in use.*\n", capsys.readouterr().err
    )
    assert left_in(temporary) == []


@needs_server
def test_an_engine_that_cannot_be_loaded(
    engine: Path, tmp_path: Path, temporary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "model.onnx"
    broken.write_bytes(b"not an ONNX file")
    dataclasses.replace(Manifest.read(engine), artefact_sha256=sha256(broken)).write(tmp_path)
    assert main(["serve", "--model", str(broken)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(rf"failed to start.*its log says: engine: {broken}: (ONNX Runtime|OpenVINO) cannot load it", error)
    assert_gone(str(temporary))
    assert left_in(temporary) == []


@needs_server
def test_a_server_that_never_becomes_ready(engine: Path, temporary: Path) -> None:
    before = list(Path("/dev/shm").glob(f"mssts_{os.getpid()}_*"))  # the module's server runs beside it
    with model_repository(engine) as repository:
        model_py = repository / "postprocess" / "1" / "model.py"
        model_py.write_text("import time\ntime.sleep(60)\n", encoding="utf-8")
        with (
            pytest.raises(MsstsError, match=r"not ready after 2 s; its log says: .*(loading|loaded|Initialize)"),
            TritonServer(repository, startup_timeout=2),
        ):
            pass
    assert_gone(str(temporary))
    assert left_in(temporary) == []
    assert list(Path("/dev/shm").glob(f"mssts_{os.getpid()}_*")) == before


@needs_server
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_serve_ends_with_all_it_started(
    serve: Callable[..., Served], engine: Path, temporary: Path, number: signal.Signals
) -> None:
    served = serve(engine)
    assert len(processes_of(served.folder)) == 1 + len(STAGES)
    assert served.end(number) == (0, "")
    assert_gone(served.folder)
    assert left_in(temporary) == []
    assert list(Path("/dev/shm").glob(f"mssts_{served.process.pid}_*")) == []


@needs_server
def test_the_server_ends_when_its_parent_is_killed(serve: Callable[..., Served], engine: Path, temporary: Path) -> None:
    served = serve(engine)
    served.process.kill()
    served.process.communicate()
    assert_gone(served.folder, END_SECONDS)
    assert list(Path("/dev/shm").glob(f"mssts_{served.process.pid}_*")) == []


@needs_server
def test_a_program_with_a_server_can_be_terminated(engine: Path, temporary: Path) -> None:
    # As the demo is: a program with no handler of its own, terminated while it works.
    program = (
        "import sys, time\n"
        "from mssts.serving.repository import model_repository\n"
        "from mssts.serving.server import TritonServer\n"
        "with model_repository(sys.argv[1]) as repository, TritonServer(repository):\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(engine)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.terminate()
    process.communicate(timeout=END_SECONDS)
    assert process.returncode == 128 + signal.SIGTERM
    assert_gone(str(temporary))
    assert left_in(temporary) == []


@needs_server
def test_models_end_by_themselves_when_the_server_stops(engine: Path) -> None:
    """A model whose metrics outlive their server ends by a segmentation fault."""
    with model_repository(engine, threads=1) as repository, TritonServer(repository) as running:
        os.kill(running.pid, signal.SIGTERM)
        faults = set()
        deadline = time.monotonic() + END_SECONDS
        while (server := process(running.pid)) and server.state != "Z" and time.monotonic() < deadline:
            faults |= {fault for pid in running.stubs if (one := process(pid)) and (fault := one.fault())}
            time.sleep(0.01)
        assert not [fault for fault in faults if "signal" in fault]
