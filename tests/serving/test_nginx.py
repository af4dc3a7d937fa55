"""nginx in front of the real server, by `deploy/nginx/mssts.conf`."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.certificates import needs_openssl, options_with
from support.serving import assert_same, clip_with_rectangles, needs_server, slow_down
from support.tools import needs_tool, tool

import mssts
from mssts import contract
from mssts.errors import MsstsError
from mssts.segmenters.local import LocalSegmenter
from mssts.segmenters.triton.addresses import parse_urls
from mssts.segmenters.triton.failures import Kind, failure_of
from mssts.serving.admission import QueueLimits
from mssts.serving.repository import model_repository
from mssts.serving.server import TritonServer

pytestmark = [needs_tool("nginx"), needs_openssl]

RECIPE = Path(__file__).parents[2] / "deploy" / "nginx" / "mssts.conf"
ENGINE_SECONDS = 0.3
# The rest of a configuration, which the packages of nginx bring.
AROUND = """
{user}
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log stderr;
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/mssts.conf;
}}
"""


@pytest.fixture(scope="module")
def server(engine: Path) -> Iterator[TritonServer]:
    anything = QueueLimits(clips=100, seconds=0)  # so that all that is refused is refused by nginx
    with model_repository(engine, threads=1, queue=anything) as repository:
        slow_down(repository, ENGINE_SECONDS)
        with TritonServer(repository) as running:
            yield running


@pytest.fixture(scope="module")
def url(server: TritonServer, certificates: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("nginx")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    recipe = RECIPE.read_text(encoding="utf-8")
    for written, here in (
        ("127.0.0.1:8001", server.grpc_url.removeprefix("grpc://")),
        ("listen 8443", f"listen 127.0.0.1:{port}"),
        ("/etc/nginx/mssts", str(certificates)),
    ):
        assert written in recipe
        recipe = recipe.replace(written, here)
    (folder / "mssts.conf").write_text(recipe, encoding="utf-8")
    user = "user root;" if os.geteuid() == 0 else ""  # or else its worker could not read the test's folder
    (folder / "nginx.conf").write_text(AROUND.format(folder=folder, user=user), encoding="utf-8")
    command = [tool("nginx"), "-p", str(folder), "-c", str(folder / "nginx.conf")]
    checked = subprocess.run([*command, "-t"], capture_output=True, text=True, timeout=30, check=False)
    assert checked.returncode == 0, checked.stderr
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as nginx:
        deadline = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        yield f"grpcs://localhost:{port}"
        nginx.terminate()
        nginx.wait(timeout=10)


@needs_server
def test_a_client_with_a_certificate_is_served(url: str, certificates: Path, local: LocalSegmenter) -> None:
    clip = clip_with_rectangles()
    with mssts.load(url, client=options_with(certificates)) as segmenter:
        assert_same(segmenter.segment(clip), local.segment(clip))
        assert segmenter.stage_seconds()["engine"] >= ENGINE_SECONDS


@needs_server
@pytest.mark.parametrize(
    ("authority", "client", "said"),
    [("ca", None, "http2 header with status: 400"), ("other", "client", "TLS: .*CERTIFICATE_VERIFY_FAILED")],
    ids=["no certificate", "an authority that signed nothing"],
)
def test_others_are_not(url: str, certificates: Path, authority: str, client: str | None, said: str) -> None:
    with pytest.raises(MsstsError, match=said):
        mssts.load(url, client=options_with(certificates, authority, client))


@needs_server
def test_more_streams_than_the_limit_are_refused(url: str, certificates: Path) -> None:
    """12 clips on one connection: 4 reach the server, the rest is to come again."""
    import tritonclient.grpc as triton

    clip = clip_with_rectangles()
    frames = triton.InferInput("frames_raw", clip.shape, "UINT8").set_data_from_numpy(clip)
    said: list[str | None] = []
    over = threading.Event()

    def note(result: object, error: object) -> None:
        said.append(None if error is None else f"{failure_of(error).kind.name} {failure_of(error).message}")
        if len(said) == 12:
            over.set()

    (address,) = parse_urls(url)
    with triton.InferenceServerClient(**address.channel_arguments(options_with(certificates))) as flood:
        for _ in range(12):
            flood.async_infer(contract.ENSEMBLE, [frames], note)
        assert over.wait(30)
    by_nginx = [one for one in said if one is not None and "status: 503" in one]
    assert len(by_nginx) == 8 and all(one.startswith(Kind.FULL.name) for one in by_nginx)
    assert said.count(None) == 4


@needs_server
def test_a_client_behind_the_limit_gets_all_its_results(url: str, certificates: Path, local: LocalSegmenter) -> None:
    clips = [clip_with_rectangles(2 + i % 3) for i in range(6)]
    with mssts.load(url, client=options_with(certificates, in_flight=6)) as segmenter:
        for found, clip in zip(segmenter.segment_many(clips), clips, strict=True):
            assert_same(found, local.segment(clip))


@needs_server
def test_nothing_else_of_the_server_is_reached(url: str, certificates: Path) -> None:
    import tritonclient.grpc as triton

    (address,) = parse_urls(url)
    with triton.InferenceServerClient(**address.channel_arguments(options_with(certificates))) as client:
        assert client.is_server_live()
        for ask in (client.get_model_repository_index, client.get_trace_settings, client.get_log_settings):
            with pytest.raises(triton.InferenceServerException) as refused:
                ask()
            assert "PERMISSION_DENIED" in str(refused.value.status())
