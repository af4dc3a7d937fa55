"""Clips through shared memory: when asked, when allowed, and over a restart."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.serving import Served, assert_same, clip_with_rectangles, needs_server, start_serve

import mssts
from mssts.errors import MsstsError
from mssts.segmenters.local import LocalSegmenter
from mssts.segmenters.triton import AsyncTritonSegmenter, ClientOptions
from mssts.serving.server import TritonServer

OPTIONS = ClientOptions(shared_memory=True, in_flight=3)


@pytest.fixture(scope="module")
def served(engine: Path) -> Iterator[Served]:
    running = start_serve(engine, "--allow-shared-memory")
    yield running
    running.end()


def regions() -> list[Path]:
    return list(Path("/dev/shm").glob(f"mssts_client_{os.getpid()}_*"))


@needs_server
def test_the_same_results_and_nothing_is_left(served: Served, local: LocalSegmenter) -> None:
    clips = [clip_with_rectangles(2 + i % 4, 64 + 16 * (i % 5), 192) for i in range(10)]
    with mssts.load(served.grpc, client=OPTIONS) as segmenter:
        for found, clip in zip(segmenter.segment_many(clips), clips, strict=True):
            assert_same(found, local.segment(clip))
        assert 1 <= len(regions()) <= 3 * len(clips)
        with pytest.raises(MsstsError, match="1 to 64 frames, not 65"):
            segmenter.segment(clip_with_rectangles(65, 64, 96))
    assert regions() == []


@needs_server
def test_a_restart_costs_no_clip(served: Served, local: LocalSegmenter) -> None:
    clip = clip_with_rectangles()
    with mssts.load(served.grpc, client=OPTIONS) as segmenter:
        for i, found in enumerate(segmenter.segment_many([clip] * 9)):
            assert_same(found, local.segment(clip))
            if i == 3:
                os.kill(served.server, signal.SIGKILL)
    assert regions() == []


@needs_server
def test_a_server_that_does_not_allow_it_says_how(server: TritonServer) -> None:
    with pytest.raises(MsstsError, match=r"does not allow shared memory .*--allow-shared-memory"):
        mssts.load(server.grpc_url, client=OPTIONS)


def test_where_it_cannot_work() -> None:
    with pytest.raises(MsstsError, match="not for asyncio"):
        AsyncTritonSegmenter("grpc://127.0.0.1:1", OPTIONS)
