"""Requests that no client would send leave the server as it was."""

from __future__ import annotations

import socket
import threading
import time

import pytest
from serving.fuzz import attack
from support.serving import assert_same, clip_with_rectangles, needs_server

from mssts.segmenters.local import LocalSegmenter
from mssts.segmenters.triton import TritonSegmenter
from mssts.serving.server import TritonServer


def run(server: TritonServer, client: TritonSegmenter, local: LocalSegmenter, requests: int, seed: int) -> None:
    outcome = attack(server, client, local, requests, seed, print)
    print(dict(outcome.answers), outcome.memory_mb)
    assert outcome.sent == requests
    # Damage is refused for what it is, and some requests are good after all.
    assert {answer.split()[1] for answer in outcome.answers} >= {"OK", "INVALID_ARGUMENT", "gone"}


@needs_server
def test_strange_requests(server: TritonServer, client: TritonSegmenter, local: LocalSegmenter) -> None:
    run(server, client, local, 150, seed=1)


@needs_server
@pytest.mark.soak
@pytest.mark.parametrize("seed", [2, 3])
def test_thousands_of_strange_requests(
    server: TritonServer, client: TritonSegmenter, local: LocalSegmenter, seed: int
) -> None:
    outcome = attack(server, client, local, 2000, seed, print)
    print(dict(outcome.answers), outcome.memory_mb, outcome.slowest)
    before, after = outcome.memory_mb
    assert after <= 1.05 * before


@needs_server
def test_a_client_that_reads_slowly_holds_up_nobody(
    server: TritonServer, client: TritonSegmenter, local: LocalSegmenter
) -> None:
    port = int(server.http_url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=5) as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        # It asks for everything a hundred times and reads nothing.
        slow.sendall(b"GET /v2/models/mssts_vis/config HTTP/1.1\r\nHost: x\r\n\r\n" * 100)
        clip = clip_with_rectangles()
        start = time.monotonic()
        for _ in range(3):
            assert_same(client.segment(clip), local.segment(clip))
        assert time.monotonic() - start < 10


@needs_server
def test_a_stop_finishes_what_is_in_flight(engine, local: LocalSegmenter) -> None:
    from support.serving import slow_down

    from mssts.serving.repository import model_repository

    clip = clip_with_rectangles()
    with model_repository(engine, threads=1) as repository:
        slow_down(repository, 1.0)
        with TritonServer(repository) as running, TritonSegmenter(running.grpc_url) as segmenter:
            found: list[object] = []
            thread = threading.Thread(target=lambda: found.append(segmenter.segment(clip)))
            thread.start()
            time.sleep(0.5)  # it is being computed
            running.stop()
            thread.join(timeout=30)
    assert len(found) == 1
    assert_same(found[0], local.segment(clip))


@needs_server
def test_a_threshold_that_is_no_number_hides_everything(client: TritonSegmenter) -> None:
    clip = clip_with_rectangles()
    assert len(client.segment(clip, float("nan"))) == 0
    assert len(client.segment(clip, float("-inf"))) == len(client.segment(clip)) > 0
