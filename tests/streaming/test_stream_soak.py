"""Ten thousand frames through one stream and the real server (`make test-soak`).

The figures are printed and added to `runs/soak.json`. Fewer frames by the environment variable MSSTS_SOAK_FRAMES.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from support.figures import record
from support.serving import needs_server

from mssts import masks
from mssts.commands.demo import CHECKPOINT
from mssts.data.moving_shapes import MovingShapesConfig, render_video
from mssts.serving.processes import stubs_of
from mssts.serving.repository import model_repository
from mssts.serving.server import TritonServer

pytestmark = [pytest.mark.soak]

FRAMES = int(os.environ.get("MSSTS_SOAK_FRAMES", "10000"))
SETTLED = min(500, FRAMES // 2)  # frames until memory must stay as it is
LENGTH = 48  # played forwards and backwards, so that the object never jumps
GROWTH = 1.05


def order(frames: int) -> list[int]:
    once = [*range(LENGTH), *range(LENGTH - 2, 0, -1)]
    return [once[number % len(once)] for number in range(frames)]


def resident_mb(pid: int) -> float:
    """The resident memory of a process."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


@needs_server
def test_ten_thousand_frames(tmp_path: Path) -> None:
    from mssts.export.exporter import export_checkpoint

    export_checkpoint(CHECKPOINT, tmp_path / "engine")
    # One disc, never hidden, never out of the frame: a scene that is easy enough for the shipped model.
    scene = render_video(MovingShapesConfig(length=LENGTH, objects=(1, 1), leaving=0.0, radius=(0.2, 0.25)), 31, 3)
    video = tmp_path / "scene.mp4"
    with av.open(str(video), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(12), options={"preset": "ultrafast"})
        _, stream.height, stream.width, _ = scene.frames_THWC.shape
        stream.pix_fmt = "yuv420p"
        for t in order(FRAMES):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(scene.frames_THWC[t], format="rgb24")))
        container.mux(stream.encode())
    out = tmp_path / "tracks.jsonl"
    samples: list[tuple[int, float, float]] = []  # lines, MB of the client, MB of the server
    with model_repository(tmp_path / "engine") as repository, TritonServer(repository) as server:
        start = time.monotonic()
        client = subprocess.Popen(
            [sys.executable, "-m", "mssts.cli", "stream", str(video), "--url", server.grpc_url, "--jsonl", str(out)],
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        lines, size = 0, 0
        while client.poll() is None:
            if out.exists():
                with out.open("rb") as file:
                    file.seek(size)
                    new = file.read()
                lines, size = lines + new.count(b"\n"), size + len(new)
                samples.append(
                    (lines, resident_mb(client.pid), sum(map(resident_mb, (server.pid, *stubs_of(server.pid)))))
                )
            time.sleep(0.5)
        seconds = time.monotonic() - start
        assert client.stderr is not None
        error = client.stderr.read()
    assert client.returncode == 0, error

    results = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [result["frame"] for result in results] == list(range(FRAMES))
    identities = []
    truths = [masks.encode(np.ascontiguousarray(mask)) for mask in scene.masks_NTHW[0]]
    for result, t in zip(results, order(FRAMES), strict=True):
        found = [item["segmentation"]["counts"].encode() for item in result["instances"]]
        overlaps = masks.iou(found, [truths[t]], scene.masks_NTHW.shape[2:])[:, 0] if found else []
        identities += [item["track"] for item, iou in zip(result["instances"], overlaps, strict=True) if iou >= 0.5][:1]
    switches = int(np.count_nonzero(np.diff(identities)))
    settled = [sample for sample in samples if sample[0] >= SETTLED]
    growth = {
        name: round(max(sample[column] for sample in settled) / settled[0][column], 3)
        for column, name in ((1, "client"), (2, "server"))
    }
    figures = {
        "frames": FRAMES, "frames_per_second": round(FRAMES / seconds, 1), "missed": FRAMES - len(identities),
        "switches": switches, "growth": growth,
        "client_mb": [round(sample[1]) for sample in (settled[0], settled[-1])],
        "server_mb": [round(sample[2]) for sample in (settled[0], settled[-1])],
    }  # fmt: skip
    record("stream", figures)
    assert switches == 0 and len(identities) == FRAMES
    assert growth["client"] <= GROWTH and growth["server"] <= GROWTH
