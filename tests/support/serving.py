"""What the tests of serving share: clips whose instances can be told by eye, and servers as processes."""

from __future__ import annotations

import re
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from mssts.segmenters.base import Instances
from mssts.serving.server import TritonServer
from support.toy_engine import COLOURS

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


def left_in(folder: Path) -> list[Path]:
    return list(folder.glob("mssts*"))  # ours: importing onnxruntime leaves a file there too


def slow_down(repository: Path, seconds: float) -> None:
    """Makes the engine of a model repository take so much longer, whatever the clip."""
    model_py = repository / "engine" / "1" / "model.py"
    body = "        output = self.runner.infer("
    text = model_py.read_text(encoding="utf-8")
    assert body in text
    slow = f"        __import__('time').sleep({seconds})\n{body}"
    model_py.write_text(text.replace(body, slow), encoding="utf-8")


def metrics(server: TritonServer) -> Counter[str]:
    """The server's counters, `NAME{model,reason}`, `NAME{model}` or `NAME`, as Prometheus reads them."""
    with urllib.request.urlopen(server.metrics_url, timeout=10) as page:
        text = page.read().decode()
    found: Counter[str] = Counter()
    for name, labels, value in re.findall(r"^(\w+)(?:\{(.*?)\})? (\d+)(?:\.0*)?$", text, re.MULTILINE):
        values = dict(re.findall(r'(\w+)="(\w*)"', labels))
        kept = ",".join(values[key] for key in ("model", "reason") if key in values)
        found[f"{name}{{{kept}}}" if kept else name] = int(value)
    return found
