"""TLS between client and server, and who is let in.

The address on which a server may listen.
"""

from __future__ import annotations

import socket
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import pytest
from support.certificates import needs_openssl, options_with
from support.serving import Served, assert_same, clip_with_rectangles, needs_server, start_serve

import mssts
from mssts.cli import main
from mssts.errors import MsstsError
from mssts.segmenters.local import LocalSegmenter
from mssts.segmenters.triton import AsyncTritonSegmenter

_TLS_FILES = {"authority": "ca.crt", "certificate": "client.crt", "key": "client.key"}


@pytest.fixture(scope="module")
def served(engine: Path, certificates: Path) -> Iterator[Served]:
    options = ["--tls-certificate", "server.crt", "--tls-key", "server.key", "--tls-client-authority", "ca.crt"]
    paths = [option if option.startswith("--") else str(certificates / option) for option in options]
    running = start_serve(engine, *paths)
    yield running
    running.end()


@needs_server
@needs_openssl
def test_a_client_with_a_certificate_is_served(served: Served, certificates: Path, local: LocalSegmenter) -> None:
    assert served.grpc.startswith("grpcs://127.0.0.1:")
    clip = clip_with_rectangles()
    with mssts.load(served.grpc, client=options_with(certificates)) as segmenter:
        assert_same(segmenter.segment(clip), local.segment(clip))


@needs_server
@needs_openssl
def test_commands_with_a_certificate(served: Served, engine: Path, certificates: Path, tmp_path: Path) -> None:
    for t in range(9):
        cv2.imwrite(str(tmp_path / f"{t}.png"), clip_with_rectangles()[t % 3, ..., ::-1])
    paths = [f"--tls-{name}={certificates / file}" for name, file in _TLS_FILES.items()]
    for out, engine_options in (("served", ["--url", served.grpc, *paths]), ("local", ["--model", str(engine)])):
        assert main(["predict", str(tmp_path), *engine_options, "--out", str(tmp_path / out), "--pictures", "0"]) == 0
    assert (tmp_path / "served" / "results.json").read_bytes() == (tmp_path / "local" / "results.json").read_bytes()
    short = ["--seconds", "1", "--concurrency", "1", "--size", "96x128", "--out", str(tmp_path / "load.json")]
    assert main(["bench", "load", "--url", served.grpc, *short, *paths]) == 0


@pytest.mark.parametrize("name", _TLS_FILES)
def test_certificates_without_a_server_are_refused(
    engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert main(["predict", str(tmp_path), "--model", str(engine), f"--tls-{name}", "file"]) == 2
    assert f"--tls-{name} is for a server; give its --url" in capsys.readouterr().err


@needs_server
@needs_openssl
def test_asyncio_with_a_certificate(served: Served, certificates: Path, local: LocalSegmenter) -> None:
    import asyncio

    async def ask() -> mssts.Instances:
        async with AsyncTritonSegmenter(served.grpc, options_with(certificates)) as segmenter:
            return await segmenter.segment(clip_with_rectangles())

    assert_same(asyncio.run(ask()), local.segment(clip_with_rectangles()))


@needs_server
@needs_openssl
@pytest.mark.parametrize(
    ("authority", "client", "said"),
    [("ca", None, "no Triton server answers there"), ("other", "client", "TLS: .*CERTIFICATE_VERIFY_FAILED")],
    ids=["no certificate", "an authority that signed nothing"],
)
def test_others_are_not(served: Served, certificates: Path, authority: str, client: str | None, said: str) -> None:
    with pytest.raises(MsstsError, match=said):
        mssts.load(served.grpc, client=options_with(certificates, authority, client))


@needs_server
@needs_openssl
def test_a_plaintext_client_is_not_and_is_given_a_hint(served: Served) -> None:
    with pytest.raises(MsstsError, match=r"no Triton server answers there.*Socket closed"):
        mssts.load(served.grpc.replace("grpcs", "grpc"))


@needs_server
@needs_openssl
def test_http_metrics_and_health_stay_on_this_machine(served: Served) -> None:
    for url in (f"{served.http}/v2/health/ready", served.metrics, served.health):
        assert url.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(url, timeout=5) as page:
            assert page.status == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_an_address_that_others_reach_is_refused_with_its_reason(
    engine: Path, capsys: pytest.CaptureFixture[str], host: str
) -> None:
    assert main(["serve", "--model", str(engine), "--host", host]) == 2
    said = capsys.readouterr().err
    assert "Triton 2.51 of 2024, a build with known holes" in said and "--trust-network allows it" in said


@needs_server
def test_a_container_may_listen_on_all_addresses(
    serve: Callable[..., Served], engine: Path, local: LocalSegmenter
) -> None:
    served = serve(engine, "--host", "0.0.0.0", "--trust-network")
    try:
        port = int(served.grpc.rpartition(":")[2])
        with mssts.load(f"grpc://127.0.0.1:{port}") as segmenter:
            clip = clip_with_rectangles()
            assert_same(segmenter.segment(clip), local.segment(clip))
        with socket.create_connection((socket.gethostbyname(socket.gethostname()), port), timeout=5):
            pass
    finally:
        served.end()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--tls-certificate", "a"], "both --tls-certificate and --tls-key"),
        (["--tls-client-authority", "a"], "needs --tls-certificate and --tls-key"),
    ],
)
def test_half_of_tls_is_refused(
    engine: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    assert main(["serve", "--model", str(engine), *options]) == 2
    assert said in capsys.readouterr().err


@needs_server
def test_a_certificate_that_is_not_there(engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--model", str(engine), "--tls-certificate", "absent.crt", "--tls-key", "absent.key"]) == 2
    assert "absent.crt: no such file; expected a PEM file" in capsys.readouterr().err
