"""The files of `deploy/`, and programs around them."""

from __future__ import annotations

import socket
import subprocess
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mssts.serving.processes import stubs_of

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
ENTRYPOINT = DEPLOY / "docker" / "entrypoint.sh"


def read_yaml(path: Path) -> list[Any]:
    """The documents of a YAML file."""
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def run(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs a program, and returns what it printed."""
    return subprocess.run(list(map(str, arguments)), capture_output=True, text=True, check=False, **options)


def assert_silent(*arguments: str | Path) -> None:
    """Runs a checker that must have nothing to say."""
    done = run(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr


def write_program(path: Path, script: str) -> Path:
    """Writes an executable program."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(script, encoding="utf-8")
    path.chmod(0o755)
    return path


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in sockets]
    for listener in sockets:
        listener.close()
    return ports


def answer_of(url: str) -> str:
    """The body of a page."""
    with urllib.request.urlopen(url, timeout=10) as page:
        return page.read().decode()


@dataclass(frozen=True)
class Ports:
    """The ports of a server."""

    grpc: int
    http: int
    metrics: int


@dataclass(frozen=True)
class Entrypoint(Ports):
    """A running entry point of the container, with its server."""

    process: subprocess.Popen[str]
    engine: Path

    @property
    def metrics_page(self) -> str:
        """What Prometheus would read."""
        return answer_of(f"http://127.0.0.1:{self.metrics}/metrics")

    @property
    def server(self) -> int:
        """The id of the tritonserver's process."""
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                name, fields = path.read_text().rpartition(")")[::2]
            except OSError:  # it ended while we looked
                continue
            if "(tritonserver" in name and int(fields.split()[1]) == self.process.pid:
                return int(path.parent.name)
        raise AssertionError("the entry point has no tritonserver")

    def stub(self, model: str) -> int:
        """The id of the process of a model."""
        (found,) = (pid for pid, name in stubs_of(self.server).items() if name == model)
        return found
