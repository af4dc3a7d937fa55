"""One toy engine for all tests of serving, and one server a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.certificates import write_certificates
from support.serving import Served, start_serve
from support.toy_engine import write_toy_engine

from mssts.segmenters.local import LocalSegmenter
from mssts.segmenters.triton import TritonSegmenter
from mssts.serving.repository import model_repository
from mssts.serving.server import TritonServer


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


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own for temporary files.

    `left_in` tells what is left there.
    """
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)
    return folder


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    """`start_serve`, with an end to what a test leaves running, as when it fails."""
    started: list[Served] = []

    def start(*arguments: Any, **options: Any) -> Served:
        started.append(start_serve(*arguments, **options))
        return started[-1]

    yield start
    for served in started:
        if served.process.poll() is None:
            served.end()
