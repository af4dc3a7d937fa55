"""Clips with obvious instances, and servers as processes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest

from mssts.segmenters.base import Instances
from mssts.serving.processes import stubs_of
from mssts.serving.server import TritonServer
from support.toy_engine import COLOURS

RED, GREEN, BLUE = range(3)

# On other versions a missing wheel is a defect of the set-up and fails.
needs_wheel = pytest.mark.skipif(
    sys.version_info >= (3, 13), reason="Triton's wheel needs numpy < 2, which Python 3.13 does not have"
)


def needs_server(test: Callable[..., None]) -> Callable[..., None]:
    return pytest.mark.server(needs_wheel(test))


# The longest a process that was asked to end may take. It takes 3 s, as Triton looks once a second whether its models
# are unloaded; the rest is for a busy machine.
END_SECONDS = 30


def clip_with_rectangles(frames: int = 3, height: int = 128, width: int = 192) -> np.ndarray:
    """Grey frames [T, H, W, 3].

    A red rectangle in all of them and a larger blue one from the second on.
    """
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
    """The tritonserver and stub processes of a server's temporary folder."""
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


@dataclass(frozen=True)
class Served:
    """A running `mssts serve`: process, output, and its server's temporary folder."""

    process: subprocess.Popen[str]
    grpc: str
    http: str
    metrics: str
    log: Path
    health: str

    @property
    def folder(self) -> str:
        return self.log.parent.name

    @property
    def server(self) -> int:
        """The id of the tritonserver's process."""
        return min(processes_of(self.folder))  # the stubs are its children

    def stub(self, model: str) -> int:
        """The id of the process of a model."""
        (found,) = (pid for pid, name in stubs_of(self.server).items() if name == model)
        return found

    def end(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
        """Ends it.

        Returns its exit code and what it wrote to stderr.
        """
        self.process.send_signal(number)
        return end_of(self.process)


def end_of(process: subprocess.Popen[str]) -> tuple[int, str]:
    """The exit code of a process that is about to end, and what it wrote to stderr."""
    _, error = process.communicate(timeout=END_SECONDS)
    return process.returncode, error


def start_serve(engine: Path, *options: str, environment: dict[str, str] | None = None) -> Served:
    """Starts `mssts serve` and waits until it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-m", "mssts.cli", "serve", "--model", str(engine), "--threads", "1", *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **(environment or {})},
    )  # fmt: skip
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(5)]
    if not re.match(r"grpcs?://\S+:\d+ is ready", lines[0]):
        process.kill()
        raise AssertionError((lines, process.communicate()))
    http, metrics, log, health = (line.split()[1] for line in lines[1:])
    return Served(process, lines[0].split()[0], http, metrics, Path(log), health)


def left_in(folder: Path) -> list[Path]:
    return list(folder.glob("mssts*"))  # ours: importing onnxruntime leaves a file there too


def slow_down(repository: Path, seconds: float) -> None:
    """Makes the engine of a model repository take so much longer, whatever the clip."""
    model_py = repository / "engine" / "1" / "model.py"
    text = model_py.read_text(encoding="utf-8")
    slow, count = re.subn(r"( +)output = self\.runner\.infer\(", rf"\1time.sleep({seconds})\n\g<0>", text)
    assert count == 1
    model_py.write_text(slow, encoding="utf-8")


def metrics(server: TritonServer) -> Counter[str]:
    """The server's counters by `NAME{model,reason}`, as Prometheus reads them."""
    with urllib.request.urlopen(server.metrics_url, timeout=10) as page:
        text = page.read().decode()
    found: Counter[str] = Counter()
    for name, labels, value in re.findall(r"^(\w+)(?:\{(.*?)\})? (\d+)(?:\.0*)?$", text, re.MULTILINE):
        values = dict(re.findall(r'(\w+)="(\w*)"', labels))
        kept = ",".join(values[key] for key in ("model", "reason") if key in values)
        found[f"{name}{{{kept}}}" if kept else name] = int(value)
    return found
