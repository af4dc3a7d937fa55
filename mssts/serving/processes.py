"""Processes of a tritonserver, as /proc shows them: dead, stopped, or running."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
# The kernel keeps the first 15 characters of a program's name.
_STUB = "triton_python_b"
_SERVER = "tritonserver"


@dataclass(frozen=True)
class Process:
    """A process.

    Attributes:
        pid: its id.
        name: the program, 15 characters at most.
        state: the kernel's letter: R, S and D run or wait, Z has ended and not been collected, T is stopped.
        parent: the id of its parent.
        exit_status: of one that has ended, as `waitpid` gives it; 0 also where the kernel does not tell.
    """

    pid: int
    name: str
    state: str
    parent: int
    exit_status: int

    @property
    def is_stub(self) -> bool:
        """Whether it runs a model of the Python backend."""
        return self.name == _STUB

    def fault(self) -> str | None:
        """What is wrong with it, None if nothing."""
        if self.state in "ZX":
            number = self.exit_status & 0x7F
            if number:
                return f"was killed by signal {number} ({_signal_name(number)})"
            return f"has ended with exit code {self.exit_status >> 8}"
        # Not "t", which a debugger or a profiler causes for a moment.
        return "is stopped" if self.state == "T" else None


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"


def process(pid: int) -> Process | None:
    """The process of an id, None if there is none."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The name stands in parentheses and may itself hold any character.
    name, _, rest = text.partition("(")[2].rpartition(")")
    fields = rest.split()
    return Process(pid, name, fields[0], int(fields[1]), int(fields[49]))


def command_line(pid: int) -> list[str]:
    """The program and arguments of a process.

    Empty for one that has ended.
    """
    try:
        return (_PROC / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except OSError:
        return []


def stubs_of(server: int) -> dict[int, str]:
    """The ids of a tritonserver's model processes, with their models where known."""
    found = {}
    for one in _all():
        if one.parent == server and one.is_stub:
            # The arguments hold the path REPOSITORY/MODEL/VERSION/model.py.
            paths = [Path(text) for text in command_line(one.pid) if text.endswith("model.py")]
            found[one.pid] = paths[0].parent.parent.name if paths else "a model"
    return found


def servers(protocol: str, port: int) -> list[int]:
    """The ids of the tritonserver processes that serve `http` or `grpc` on a port."""
    option, usual = f"--{protocol}-port=", {"http": "8000", "grpc": "8001"}[protocol]
    found = []
    for one in _all():
        if one.name == _SERVER:
            ports = [text.removeprefix(option) for text in command_line(one.pid) if text.startswith(option)]
            if str(port) in (ports or [usual]):
                found.append(one.pid)
    return found


def fault_of(server: int, stubs: dict[int, str]) -> str | None:
    """The fault of a tritonserver or of one of its model processes, None if none."""
    for pid, name in {
        server: "tritonserver",
        **{pid: f"the process of {model}" for pid, model in stubs.items()},
    }.items():
        one = process(pid)
        fault = "is gone" if one is None or not (one.is_stub or one.name == _SERVER) else one.fault()
        if fault:
            return f"{name} (pid {pid}) {fault}"
    return None


def _all() -> list[Process]:
    found = (process(int(path.name)) for path in _PROC.iterdir() if path.name.isdigit())
    return [one for one in found if one is not None]
