"""Serving: the model repository, the real tritonserver from start to end, and the client."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from support.media_files import with_exif
from support.toy_engine import COLOURS, write_toy_engine

from mssts import contract
from mssts.cli import main
from mssts.errors import MsstsError
from mssts.files import sha256
from mssts.manifest import FixedShape, Manifest
from mssts.segmenters.base import Instances
from mssts.segmenters.local import LocalSegmenter
from mssts.segmenters.triton import StageTime, TritonSegmenter
from mssts.serving import installation
from mssts.serving.backend import answer
from mssts.serving.model_config import MODELS, STAGES, config_pbtxt
from mssts.serving.repository import model_repository
from mssts.serving.server import TritonServer

ROOT = Path(__file__).resolve().parents[2]
RED, GREEN, BLUE = range(3)

# On other versions a missing wheel is a defect of the set-up and fails.
needs_wheel = pytest.mark.skipif(
    sys.version_info >= (3, 13), reason="Triton's wheel needs numpy < 2, which Python 3.13 does not have"
)


def needs_server(test: Callable[..., None]) -> Callable[..., None]:
    return pytest.mark.server(needs_wheel(test))


# The longest a process that was told to end may take. It takes 3 s, as Triton looks once a second whether its models
# are unloaded; the rest is for a busy machine.
END_SECONDS = 30


def clip_with_rectangles(frames: int = 3, height: int = 128, width: int = 192) -> np.ndarray:
    """Grey frames [T, H, W, 3]; a red rectangle in all of them and a larger blue one from the second on."""
    clip_THWC = np.full((frames, height, width, 3), 90, np.uint8)
    clip_THWC[:, 16:40, 24:64] = COLOURS[RED]
    clip_THWC[1:, 56:104, 80:160] = COLOURS[BLUE]
    return clip_THWC


def encoded(clip_THWC: np.ndarray, suffix: str = ".jpg") -> list[bytes]:
    return [cv2.imencode(suffix, frame[..., ::-1])[1].tobytes() for frame in clip_THWC]


def assert_same(found: Instances, expected: Instances) -> None:
    """Bit for bit: the server runs the same functions on the same bytes."""
    np.testing.assert_array_equal(found.scores, expected.scores)
    np.testing.assert_array_equal(found.labels, expected.labels)
    np.testing.assert_array_equal(found.boxes, expected.boxes)
    assert found.rles == expected.rles
    assert found.size == expected.size


def processes_of(server_folder: str) -> list[int]:
    """The tritonserver and stub processes that were started from a server's temporary folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if server_folder.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:  # it ended while we looked
            continue
    return found


def assert_gone(server_folder: str, seconds: float = 0) -> None:
    deadline = time.monotonic() + seconds
    while processes_of(server_folder) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert processes_of(server_folder) == []


# --- without a server ----------------------------------------------------------------------------------------------


def test_triton_repo_holds_the_models_and_nothing_else() -> None:
    # Triton takes every folder for a model, and a stray file would be deployed with it.
    assert {path.name for path in (ROOT / "triton_repo").iterdir()} == set(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_config_is_what_the_contract_says(name: str) -> None:
    # To write them again: python -m mssts.serving.model_config triton_repo
    assert (ROOT / "triton_repo" / name / "config.pbtxt").read_text(encoding="utf-8") == config_pbtxt(name)


def test_config_parameters_survive_protobuf_text() -> None:
    text_format = pytest.importorskip("google.protobuf.text_format")
    from tritonclient.grpc import model_config_pb2

    value = '{"name": "caf\\u00e9 \\"x\\"\\n", "path": "C:\\\\"}\nsecond line'
    config = text_format.Parse(config_pbtxt("preprocess", {"manifest": value}), model_config_pb2.ModelConfig())
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


def test_one_request_fails_alone_even_by_a_defect_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[str] = []
    backend = types.ModuleType("triton_python_backend_utils")
    backend.Tensor = lambda name, array: (name, array)
    backend.InferenceResponse = lambda output_tensors, error=None: (output_tensors, error)
    backend.TritonError = lambda message, code: f"{code}: {message}"
    backend.TritonError.INVALID_ARG, backend.TritonError.INTERNAL = "invalid", "internal"
    backend.Logger = types.SimpleNamespace(log_error=logged.append)
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", backend)

    def request(value: int) -> types.SimpleNamespace:
        tensor = types.SimpleNamespace(name=lambda: "x", as_numpy=lambda: value)
        return types.SimpleNamespace(inputs=lambda: [tensor])

    def reciprocal(inputs: dict[str, float]) -> dict[str, float]:
        if inputs["x"] < 0:
            raise MsstsError("x is negative;\nsend another")
        return {"y": 1 / inputs["x"]}

    assert answer([request(-1), request(0), request(2)], reciprocal) == [
        ([], "invalid: x is negative; send another"),
        ([], "internal: internal error (ZeroDivisionError: division by zero); the server's log has the details"),
        ([("y", 0.5)], None),
    ]
    assert len(logged) == 1 and "Traceback" in logged[0]


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
    ("url", "told"),
    [
        ("http://127.0.0.1:8000", "expected grpc://host:port"),
        ("somewhere", "expected grpc://host:port"),
        ("grpc://127.0.0.1:1", "no Triton server answers there"),
    ],
)
def test_client_without_a_server(url: str, told: str) -> None:
    start = time.monotonic()
    with pytest.raises(MsstsError, match=told):
        TritonSegmenter(url)
    assert time.monotonic() - start < 5


def test_serve_refuses_a_missing_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--model", str(tmp_path / "absent")]) == 2
    assert re.fullmatch(r"mssts serve: error: .*absent: no such file.*\n", capsys.readouterr().err)


# --- one server for all --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_engine(tmp_path_factory.mktemp("toy")).parent


@pytest.fixture(scope="module")
def server(engine: Path) -> Iterator[TritonServer]:
    with model_repository(engine, threads=1) as repository, TritonServer(repository) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: TritonServer) -> Iterator[TritonSegmenter]:
    with TritonSegmenter(server.grpc_url) as segmenter:
        yield segmenter


@pytest.fixture(scope="module")
def local(engine: Path) -> Iterator[LocalSegmenter]:
    segmenter = LocalSegmenter(engine, threads=1)
    yield segmenter
    segmenter.close()


@needs_server
@pytest.mark.parametrize("size", [(128, 192), (61, 47), (720, 1280)])  # the toy engine's short edge is 64
def test_server_answers_as_the_local_pipeline(
    client: TritonSegmenter, local: LocalSegmenter, size: tuple[int, int]
) -> None:
    clip_THWC = clip_with_rectangles(4, *size)
    for clip in (clip_THWC, encoded(clip_THWC), encoded(clip_THWC, ".png")):
        assert_same(client.segment(clip), local.segment(clip))


@needs_server
@pytest.mark.parametrize(("tag", "quarter_turns"), [(3, 2), (6, 1)])
def test_server_decodes_frames_as_displayed(client: TritonSegmenter, tag: int, quarter_turns: int) -> None:
    clip_THWC = clip_with_rectangles()
    stored_THWC = np.ascontiguousarray(np.rot90(clip_THWC, quarter_turns, axes=(1, 2)))
    turned = [with_exif(frame, tag) for frame in encoded(stored_THWC, ".png")]
    assert_same(client.segment(turned), client.segment(clip_THWC))


@needs_server
def test_server_finds_what_was_drawn(client: TritonSegmenter) -> None:
    clip_THWC = clip_with_rectangles()
    for clip in (clip_THWC, encoded(clip_THWC)):
        found = client.segment(clip, score_threshold=0.1)
        assert found.labels.tolist() == [BLUE, RED]  # the larger first; no green
        assert found.size == (128, 192)
        assert [rle is None for rle in found.rles[0]] == [True, False, False]
        np.testing.assert_allclose(found.boxes[1, 0], [24, 16, 64, 40], atol=1e-3)
        np.testing.assert_allclose(found.boxes[0, 2], [80, 56, 160, 104], atol=1e-3)
        drawn = np.zeros((128, 192), np.uint8)
        drawn[16:40, 24:64] = 1
        mask = coco_mask.decode({"size": [128, 192], "counts": found.rles[1][0]})
        # The engine sees half the resolution, and its logits are steeper inside than outside, so a border may move by
        # two pixels: (44 · 28) / (40 · 24) = 1.28.
        assert np.logical_and(mask, drawn).sum() / np.logical_or(mask, drawn).sum() > 1 / 1.28


@needs_server
def test_a_clip_without_instances(client: TritonSegmenter) -> None:
    found = client.segment(clip_with_rectangles(), score_threshold=1.5)
    assert len(found) == 0 and found.boxes.shape == (0, 3, 4) and found.rles == ()


@needs_server
def test_client_learns_the_manifest(client: TritonSegmenter, server: TritonServer, engine: Path) -> None:
    assert client.manifest == Manifest.read(engine)
    assert re.fullmatch(r"\d+\.\d+\.\d+", server.version)
    assert client.server_version == server.version


def corrupt(frames: list[bytes]) -> list[bytes]:
    return [frames[0], frames[1][: len(frames[1]) // 2], *frames[2:]]


@needs_server
@pytest.mark.parametrize(
    ("clip", "told"),
    [
        (corrupt(encoded(clip_with_rectangles())), "^frame 1: a truncated JPEG"),
        ([b"\xff\xd8\xff\xe0 nonsense \xff\xd9"] * 2, "^frame 0: a .*JPEG"),
        ([b"not an image"], "^frame 0: not a JPEG or PNG"),
        ([*encoded(clip_with_rectangles(1)), *encoded(clip_with_rectangles(1, 64, 64))], "^frame 1 is 64×64"),
        ([], "1 to 64 frames, not 0"),
        (np.zeros((65, 8, 8, 3), np.uint8), "1 to 64 frames, not 65"),
        (np.zeros((1, 2161, 3841, 3), np.uint8), "over the limit of 8294400 pixels"),
        (encoded(np.zeros((1, 2161, 3841, 3), np.uint8), ".png"), "over the limit of 8294400 pixels"),
        (encoded(np.zeros((8, 2160, 3840, 3), np.uint8)), "over the limit of 58982400 pixels a clip"),
        (np.zeros((2, 8, 8, 4), np.uint8), r"^unexpected shape for input 'frames_raw'"),
        (np.zeros((8, 8, 3), np.uint8), r"^unexpected shape for input 'frames_raw'"),
        (np.zeros((1, 8, 8, 3), np.float32), "^frames must be uint8, not float32"),
    ],
    ids=[
        "truncated", "corrupt", "no-image", "sizes-differ", "empty", "many-frames", "large-frame", "large-png",
        "large-clip", "four-channels", "no-time", "floats",
    ],
)  # fmt: skip
def test_a_bad_request_is_refused_and_the_next_succeeds(
    client: TritonSegmenter, local: LocalSegmenter, clip: np.ndarray | list[bytes], told: str
) -> None:
    with pytest.raises(MsstsError, match=told) as caught:
        client.segment(clip)
    assert "\n" not in str(caught.value)
    good = clip_with_rectangles()
    assert_same(client.segment(good), local.segment(good))


@needs_server
@pytest.mark.parametrize(("given", "told"), [(("raw", "jpeg"), "holds both"), ((), "holds neither")])
def test_frames_come_in_exactly_one_form(server: TritonServer, given: tuple[str, ...], told: str) -> None:
    import tritonclient.grpc as triton

    clip_THWC = clip_with_rectangles()
    raw = triton.InferInput("frames_raw", clip_THWC.shape, "UINT8").set_data_from_numpy(clip_THWC)
    jpeg = triton.InferInput("frames_jpeg", [3], "BYTES").set_data_from_numpy(np.array(encoded(clip_THWC), object))
    tensors = {"raw": raw, "jpeg": jpeg}
    with (
        triton.InferenceServerClient(server.grpc_url.removeprefix("grpc://")) as plain,
        pytest.raises(triton.InferenceServerException, match=told),
    ):
        plain.infer(contract.ENSEMBLE, [tensors[name] for name in given])


@needs_server
def test_threads_may_share_a_client(client: TritonSegmenter, local: LocalSegmenter) -> None:
    clips = [clip_with_rectangles(frames) for frames in (2, 3, 4, 5)] * 3
    expected = [local.segment(clip) for clip in clips]
    with ThreadPoolExecutor(4) as pool:
        for found, wanted in zip(pool.map(client.segment, clips), expected, strict=True):
            assert_same(found, wanted)


def settled_statistics(client: TritonSegmenter) -> dict[str, StageTime]:
    """Triton counts a request a moment after it has answered it."""
    previous = client.statistics()
    while True:
        time.sleep(0.1)
        statistics = client.statistics()
        if statistics == previous:
            return statistics
        previous = statistics


@needs_server
def test_statistics_tell_where_the_time_went(client: TritonSegmenter) -> None:
    clip = encoded(clip_with_rectangles())
    before = settled_statistics(client)
    start = time.perf_counter_ns()
    for _ in range(3):
        client.segment(clip)
    latency_ns = time.perf_counter_ns() - start
    spent = {name: after - before[name] for name, after in settled_statistics(client).items()}
    assert {name: time_of.count for name, time_of in spent.items()} == dict.fromkeys(MODELS, 3)
    ensemble = spent[contract.ENSEMBLE]
    assert all(spent[name].compute_ns > 0 for name in STAGES)
    assert sum(spent[name].compute_ns for name in STAGES) == ensemble.compute_ns
    # The server's clock runs on until it has tidied up, so its total may exceed what the client saw, but not by much.
    assert 0.1 < ensemble.total_ns / latency_ns < 1.5


@needs_server
def test_models_run_on_this_environments_packages(server: TritonServer) -> None:
    stubs = 0
    for pid in processes_of(server.log_path.parent.name):
        maps = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8")
        if "/_multiarray_umath" in maps:
            stubs += 1
            assert f"{Path(np.__file__).parent}/" in maps
    assert stubs == len(STAGES)


@needs_server
def test_server_listens_on_loopback_only(server: TritonServer) -> None:
    sockets = set()
    for pid in processes_of(server.log_path.parent.name):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            match = re.fullmatch(r"socket:\[(\d+)\]", str(link.readlink()))
            if match:
                sockets.add(match[1])
    listening = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text(encoding="ascii").splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in sockets:  # 0A: listening
                listening.append(fields[1].partition(":")[0])
    # 127.0.0.1, as the kernel writes it, for gRPC, HTTP and metrics; gRPC's socket is an IPv6 one (::ffff:127.0.0.1).
    assert [address.removeprefix("0000000000000000FFFF0000") for address in listening] == ["0100007F"] * 3


@needs_server
def test_clients_cannot_reach_beyond_their_requests(server: TritonServer) -> None:
    import tritonclient.grpc as triton
    import tritonclient.http as triton_http

    with triton.InferenceServerClient(server.grpc_url.removeprefix("grpc://")) as plain:
        for reach in (
            lambda: plain.register_system_shared_memory("region", "/any", 64),
            lambda: plain.unload_model("engine"),
            lambda: plain.update_log_settings({"log_verbose_level": 1}),
            lambda: plain.update_trace_settings(settings={"trace_level": ["TIMESTAMPS"]}),
        ):
            with pytest.raises(triton.InferenceServerException, match="restricted"):
                reach()
    with (
        triton_http.InferenceServerClient(server.http_url.removeprefix("http://")) as plain,
        pytest.raises(triton_http.InferenceServerException, match="restricted"),
    ):
        plain.register_system_shared_memory("region", "/any", 64)


# --- starting and ending -------------------------------------------------------------------------------------------


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


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own for temporary files; `left_in` tells what is left there."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)
    return folder


def left_in(folder: Path) -> list[Path]:
    return list(folder.glob("mssts*"))  # ours: importing onnxruntime leaves a file there too


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


def start_serve(engine: Path) -> tuple[subprocess.Popen[str], str]:
    """A running `mssts serve`, ready, and the name of its server's temporary folder."""
    process = subprocess.Popen(
        [sys.executable, "-m", "mssts.cli", "serve", "--model", str(engine), "--threads", "1"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(4)]
    assert re.match(r"grpc://127\.0\.0\.1:\d+ is ready", lines[0]), process.communicate()
    return process, Path(lines[3].split()[1]).parent.name


@needs_server
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_serve_ends_with_all_it_started(engine: Path, temporary: Path, number: signal.Signals) -> None:
    process, folder = start_serve(engine)
    assert len(processes_of(folder)) == 1 + len(STAGES)
    process.send_signal(number)
    _, error = process.communicate(timeout=END_SECONDS)
    assert (process.returncode, error) == (0, "")
    assert_gone(folder)
    assert left_in(temporary) == []
    assert list(Path("/dev/shm").glob(f"mssts_{process.pid}_*")) == []


@needs_server
def test_the_server_ends_when_its_parent_is_killed(engine: Path, temporary: Path) -> None:
    process, folder = start_serve(engine)
    process.kill()
    process.communicate()
    assert_gone(folder, END_SECONDS)
    assert list(Path("/dev/shm").glob(f"mssts_{process.pid}_*")) == []


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
def test_a_server_that_dies_is_told(engine: Path, temporary: Path) -> None:
    process, folder = start_serve(engine)
    server = min(processes_of(folder))  # the stubs are its children
    os.kill(server, signal.SIGKILL)
    _, error = process.communicate(timeout=END_SECONDS)
    assert process.returncode == 2
    assert re.fullmatch(r"mssts serve: error: tritonserver ended by itself \(signal 9\); its log says: .*\n", error)
    assert_gone(folder)
    assert left_in(temporary) == []
