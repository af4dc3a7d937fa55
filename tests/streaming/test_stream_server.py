"""A stream on the real server, which dies in the middle."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from support.media_files import write_video
from support.serving import needs_server, start_serve
from support.streams import PATIENCE, picture
from support.toy_engine import write_toy_engine

import mssts
from mssts.streaming import page as page_module
from mssts.streaming.page import Page
from mssts.streaming.page_address import PageAddress


@needs_server
def test_a_server_that_is_restarted_costs_a_pause_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its page shows that the server is there, before and after.

    A toy engine is back before a question to the server times out, so that the page need not see it away.
    """
    monkeypatch.setattr(page_module, "_HEALTH_SECONDS", 0.05)
    length = 90
    engine = write_toy_engine(tmp_path / "engine").parent
    path = write_video(tmp_path / "scene.mp4", [picture(number) for number in range(length)], rate=12)
    with mssts.load(engine) as segmenter, mssts.stream(path, segmenter) as stream:
        expected = [result.to_line() for result in stream]
    served = start_serve(engine)
    try:
        lines = []
        said: list[str] = []
        with mssts.load(served.grpc) as segmenter, mssts.stream(path, segmenter) as stream:
            page = Page(PageAddress.parse("0"), "scene", segmenter, said.append)
            page.open(stream)
            address = said[0].split()[-1]
            try:
                wait_for_servers(address, {"name": served.grpc.removeprefix("grpc://"), "is_ready": True})
                for result in stream:
                    lines.append(result.to_line())
                    if len(lines) == 20:
                        os.kill(served.server, signal.SIGKILL)
                wait_for_servers(address, {"is_ready": True})
            finally:
                page.close()
    finally:
        served.end()
    assert lines == expected


def wait_for_servers(address: str, expected: dict[str, Any]) -> None:
    """Waits until the page says so of its one server."""
    deadline = time.monotonic() + PATIENCE
    while True:
        with urllib.request.urlopen(address + "state", timeout=PATIENCE) as answer:
            servers = json.load(answer)["servers"]
        if servers and expected.items() <= servers[0].items():
            assert len(servers) == 1
            return
        assert time.monotonic() < deadline, servers
        time.sleep(0.02)
