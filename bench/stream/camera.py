"""A camera on this machine: a real RTSP server in a process of its own."""

from __future__ import annotations

import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mssts.errors import MsstsError

if TYPE_CHECKING:
    from typing_extensions import Self

DEBIAN_PACKAGES = (
    "python3-gi gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-base gstreamer1.0-plugins-good "
    "gstreamer1.0-plugins-ugly"
)
_SCRIPT = Path(__file__).with_name("gst_camera.py")
_PYTHON = Path("/usr/bin/python3")
_HAS_SERVER = """
import gi
gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import Gst, GstRtspServer
Gst.init(None)
missing = [name for name in ("videotestsrc", "x264enc", "rtph264pay") if not Gst.ElementFactory.find(name)]
raise SystemExit(" ".join(missing) or 0)
"""


def gstreamer_python() -> str | None:
    """The system's Python, where it has GStreamer's RTSP server and an H.264 encoder."""
    if not _PYTHON.exists():
        return None
    done = subprocess.run([str(_PYTHON), "-c", _HAS_SERVER], capture_output=True, timeout=60, check=False)
    return str(_PYTHON) if done.returncode == 0 else None


class Camera:
    """The camera's process, which can be killed and started again on its port.

    A context manager that starts it and ends it.

    Args:
        python: that of `gstreamer_python`.
        pictures_NHWC: what it sees, RGB uint8, again and again.
        rate: pictures a second.
        account: a user and a password that it asks for, if any.

    Attributes:
        process: that runs now.
    """

    process: subprocess.Popen[str]

    def __init__(self, python: str, pictures_NHWC: np.ndarray, rate: int, account: tuple[str, ...] = ()) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        count, height, width, _ = pictures_NHWC.shape
        self._folder = tempfile.TemporaryDirectory(prefix="mssts-camera-")
        file = Path(self._folder.name) / "pictures.rgb"
        file.write_bytes(np.ascontiguousarray(pictures_NHWC).tobytes())
        self._rate, self._period = rate, count / rate
        self._epoch = time.time()
        words = (python, _SCRIPT, port, self._epoch, file, width, height, rate, *account)
        self._command = list(map(str, words))
        self.url = f"rtsp://127.0.0.1:{port}/camera"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.kill()
        self._folder.cleanup()

    def start(self) -> None:
        """Starts the process and waits until it listens.

        Raises:
            MsstsError: it did not.
        """
        self.process = subprocess.Popen(
            self._command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, stdin=subprocess.DEVNULL
        )
        assert self.process.stdout is not None
        if self.process.stdout.readline() != "listening\n":
            self.kill()
            raise MsstsError("GStreamer's RTSP server did not start; try the command " + " ".join(self._command))

    def kill(self) -> None:
        """Ends the process at once."""
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def age(self, number: int) -> float:
        """Seconds since it took the picture of that number last."""
        return (time.time() - self._epoch - number / self._rate) % self._period
