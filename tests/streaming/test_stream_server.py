"""A stream on the real server, which dies in the middle."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from support.media_files import write_video
from support.serving import needs_server, start_serve
from support.streams import picture
from support.toy_engine import write_toy_engine

import mssts


@needs_server
def test_a_server_that_is_restarted_costs_a_pause_and_nothing_else(tmp_path: Path) -> None:
    length = 90
    engine = write_toy_engine(tmp_path / "engine").parent
    path = write_video(tmp_path / "scene.mp4", [picture(number) for number in range(length)], rate=12)
    with mssts.load(engine) as segmenter, mssts.stream(path, segmenter) as stream:
        expected = [result.to_line() for result in stream]
    served = start_serve(engine)
    try:
        lines = []
        with mssts.load(served.grpc) as segmenter, mssts.stream(path, segmenter) as stream:
            for result in stream:
                lines.append(result.to_line())
                if len(lines) == 20:
                    os.kill(served.server, signal.SIGKILL)
    finally:
        served.end()
    assert lines == expected
