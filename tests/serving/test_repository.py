"""The model repository and what the models share, without a server."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import numpy as np
import pytest
from support.serving import (
    needs_wheel,
)
from support.toy_engine import write_toy_engine

from mssts.cli import main
from mssts.errors import MsstsError
from mssts.manifest import FixedShape
from mssts.segmenters.triton import TritonSegmenter
from mssts.serving import NONE, USUAL, installation
from mssts.serving.admission import Refused
from mssts.serving.backend import Answering, answer
from mssts.serving.health import CANARY
from mssts.serving.model_config import MODELS, STAGES, config_pbtxt
from mssts.serving.repository import write_model_repository

ROOT = Path(__file__).resolve().parents[2]


def test_triton_repo_holds_the_models_and_nothing_else() -> None:
    # Triton takes every folder for a model, and a stray file would be deployed with it.
    assert {path.name for path in (ROOT / "triton_repo").iterdir()} == set(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_config_is_what_the_contract_says(name: str) -> None:
    # To write them again: python -m mssts.serving.model_config triton_repo
    assert (ROOT / "triton_repo" / name / "config.pbtxt").read_text(encoding="utf-8") == config_pbtxt(name)


@pytest.mark.parametrize("name", MODELS)
def test_config_parameters_survive_protobuf_text(name: str) -> None:
    text_format = pytest.importorskip("google.protobuf.text_format")
    from tritonclient.grpc import model_config_pb2

    value = '{"name": "caf\\u00e9 \\"x\\"\\n", "path": "C:\\\\"}\nsecond line'
    config = text_format.Parse(config_pbtxt(name, {"manifest": value}), model_config_pb2.ModelConfig())
    assert config.parameters["manifest"].string_value == value


def load_model_py(name: str) -> types.ModuleType:
    path = ROOT / "triton_repo" / name / "1" / "model.py"
    spec = importlib.util.spec_from_file_location(f"triton_repo_{name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", STAGES)
def test_models_refuse_numpy_2(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model_py(name).TritonPythonModel()
    monkeypatch.setattr(np, "__version__", "2.1.0")
    with pytest.raises(MsstsError, match=r"numpy 2\.1\.0 is installed.*numpy < 2"):
        model.initialize({})


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The log of a stand-in for what Triton gives its models."""
    logged: list[str] = []
    backend = types.ModuleType("triton_python_backend_utils")
    backend.Tensor = lambda name, array: (name, array)
    backend.InferenceResponse = lambda output_tensors, error=None: (output_tensors, error)
    backend.TritonError = lambda message, code: f"{code}: {message}"
    backend.TritonError.INVALID_ARG, backend.TritonError.INTERNAL = "invalid", "internal"
    backend.TritonError.UNAVAILABLE = "unavailable"
    backend.TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1
    backend.Logger = types.SimpleNamespace(log_error=logged.append)
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", backend)
    return logged


def test_one_request_fails_alone_even_by_a_defect_of_ours(logged: list[str]) -> None:
    def request(value: int, identity: str = "") -> types.SimpleNamespace:
        tensor = types.SimpleNamespace(name=lambda: "x", as_numpy=lambda: value)
        return types.SimpleNamespace(inputs=lambda: [tensor], request_id=lambda: identity)

    def reciprocal(inputs: dict[str, float]) -> dict[str, float]:
        if inputs["x"] < 0:
            raise MsstsError("x is negative;\nsend another")
        if inputs["x"] > 9:
            raise Refused("come again")
        return {"y": 1 / inputs["x"]}

    requests = [request(-1), request(0), request(2), request(10), request(-1, CANARY)]
    assert answer(requests, reciprocal) == [
        ([], "invalid: x is negative; send another"),
        ([], "internal: internal error (ZeroDivisionError: division by zero); the server's log has the details"),
        ([("y", 0.5)], None),
        ([], "unavailable: come again"),
        ([], None),
    ]
    assert len(logged) == 1 and "Traceback" in logged[0]


def test_two_requests_are_answered_at_once_and_a_third_waits(logged: list[str]) -> None:
    sent: dict[int, object] = {}
    first_two, go_on = threading.Barrier(2), threading.Event()

    def request(value: int, identity: str = "") -> types.SimpleNamespace:
        tensor = types.SimpleNamespace(name=lambda: "x", as_numpy=lambda: np.array(value))
        sender = types.SimpleNamespace(send=lambda response, flags: sent.update({value: (response, flags)}))
        return types.SimpleNamespace(
            inputs=lambda: [tensor], request_id=lambda: identity, get_response_sender=lambda: sender
        )

    def model(inputs: dict[str, np.ndarray]) -> dict[str, int]:
        if inputs["x"] < 2:
            first_two.wait(20)
            go_on.wait(20)
        if inputs["x"] == 1:
            raise MsstsError("one is refused")
        return {"y": -int(inputs["x"])}

    answering = Answering(2, model)
    answering.start([request(0)])  # returns, as another may come
    full = threading.Thread(target=answering.start, args=([request(1)],))
    full.start()
    full.join(0.1)
    assert full.is_alive() and sent == {}
    go_on.set()
    full.join(20)
    answering.start([request(2), request(3, CANARY)])
    answering.close()
    assert sent == {
        0: (([("y", 0)], None), 1),
        1: (([], "invalid: one is refused"), 1),
        2: (([("y", -2)], None), 1),
        3: (([], None), 1),
    }
    assert logged == []


def test_without_the_wheel_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "find_spec", lambda name: None)
    with pytest.raises(MsstsError, match=r"no tritonserver.*pip install 'mssts\[serve\]'.*Python 3\.10 to 3\.12"):
        installation.find_tritonserver()


@needs_wheel
def test_numpy_2_is_refused_before_a_server_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np, "__version__", "2.1.0")
    with pytest.raises(MsstsError, match=r"numpy 2\.1\.0 is installed.*install 'numpy<2'"):
        installation.find_tritonserver()


@needs_wheel
def test_a_missing_libpython_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    listing = f"\tlibc.so.6 => /lib/libc.so.6 (0x0)\n\tlibpython{version}.so.1.0 => not found\n"
    monkeypatch.setattr(
        installation.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, listing, "")
    )
    with pytest.raises(MsstsError, match=rf"libpython{version}\.so\.1\.0.*apt install libpython{version}"):
        installation.find_tritonserver()


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:8000", "expected grpc://host:port"),
        ("somewhere", "expected grpc://host:port"),
        ("grpc://127.0.0.1:1", "no Triton server answers there"),
    ],
)
def test_client_without_a_server(url: str, expected: str) -> None:
    start = time.monotonic()
    with pytest.raises(MsstsError, match=expected):
        TritonSegmenter(url)
    assert time.monotonic() - start < 5


def test_serve_refuses_a_missing_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--model", str(tmp_path / "absent")]) == 2
    assert re.fullmatch(r"mssts serve: error: .*absent: no such file.*\n", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("shape", "expected"), [(None, "1x5x64x112"), (FixedShape(2, 4, 64, 128), "2x4x64x128")], ids=["any", "one"]
)
def test_a_server_is_warm_for_the_usual_clip(tmp_path: Path, shape: FixedShape | None, expected: str) -> None:
    # The toy engine's rule is a short edge of 64 and a long one of 128: 16:9 is 64×113.8, in multiples of 8.
    engine = write_toy_engine(tmp_path / "engine", shape).parent
    write_model_repository(tmp_path / "usual", engine, warm=USUAL)
    assert f'"warm" value {{ string_value: "{expected}" }}' in (tmp_path / "usual/engine/config.pbtxt").read_text()
    write_model_repository(tmp_path / "none", engine, warm=NONE)
    assert '"warm"' not in (tmp_path / "none/engine/config.pbtxt").read_text()
