"""Videos for bulk prediction, and the processes of Ray to be killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np

HEIGHT, WIDTH = 64, 96
LONG = 2000  # frames: seconds of work, so that the process that opens it is seen


def write_video(path: Path, length: int = 12, start: int = 0) -> Path:
    """A red square that moves to the right, from a place of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=12)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = WIDTH, HEIGHT, "yuv420p", 2_000_000
        for t in range(length):
            left = (start + 2 * t) % (WIDTH - 32)
            rgb = np.full((HEIGHT, WIDTH, 3), 60, np.uint8)
            rgb[16:48, left : left + 32] = (255, 0, 0)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        container.mux(stream.encode())
    return path


def write_videos(folder: Path, count: int, length: int = 12) -> Path:
    """A folder of videos that differ in length and content."""
    for n in range(count):
        write_video(folder / f"scene{n:03d}.mp4", length + 3 * n, 5 * n)
    return folder


def command(*arguments: object) -> list[str]:
    """The command line of `mssts predict` with these arguments."""
    return [sys.executable, "-m", "mssts.cli", "predict", *map(str, arguments)]


@contextmanager
def started(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """`mssts predict` in a process, which is killed if the block ends first."""
    process = subprocess.Popen(
        command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def finish(process: subprocess.Popen[str], seconds: float = 180) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out, err


def descendants(pid: int) -> dict[int, str]:
    """The processes below a process, with their command lines."""
    parents: dict[int, int] = {}
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                parents[int(process.name)] = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                continue
    found: dict[int, str] = {}
    for child in parents:
        above = child
        while above in parents and above != pid:
            above = parents[above]
        if above == pid and child != pid:
            found[child] = _command_line(child)
    return found


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def is_worker(command_line: str) -> bool:
    """Whether it is one of our actors, by the title that Ray gives its process."""
    return command_line.startswith("ray::Worker")


def has_open(pid: int, path: Path) -> bool:
    """Whether a process has a file open."""
    try:
        return any(link.readlink() == path for link in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False


@contextmanager
def killing_workers(driver: int, which: Callable[[int], bool], limit: int | None = None) -> Iterator[list[int]]:
    """Kills workers of a driver with SIGKILL while the block runs.

    Those that `which` is true of, and `limit` at most. Yields the list of those that were killed.
    """
    killed: list[int] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.02):
            for pid, line in descendants(driver).items():
                if is_worker(line) and pid not in killed and (limit is None or len(killed) < limit) and which(pid):
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield killed
    finally:
        stop.set()
        thread.join()


def wait_for(condition: Callable[[], object], seconds: float = 120, what: str = "it") -> None:
    """Waits until a condition is true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen within {seconds} seconds"
        time.sleep(0.05)


def parts(out: Path) -> list[Path]:
    """The videos that are done, of a run that is not."""
    return sorted((out / "parts").glob("*/*.jsonl"))
