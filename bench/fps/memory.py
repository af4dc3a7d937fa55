"""Peak memory of a process that loads one engine and runs two clips."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from dataclasses import asdict

from mssts.bench.fps.engines import Candidate, Setting, load
from mssts.machine import STATUS, resident_bytes


def peak_memory_mb(candidate: Candidate, setting: Setting) -> float | None:
    """Peak resident memory in MB (10⁶ bytes), None if the process failed.

    Libraries and loading are included.

    Memory of a GPU is not counted.
    """
    request = json.dumps({"candidate": asdict(candidate), "setting": asdict(setting)})
    program = [sys.executable, "-m", "mssts.bench.fps.memory", request]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    return float(json.loads(done.stdout.splitlines()[-1])) if done.returncode == 0 else None


def _main(request: str) -> None:
    wanted = json.loads(request)
    setting = Setting(**wanted["setting"])
    runner = load(Candidate(**wanted["candidate"]), setting.threads)
    frames, sizes = setting.clip()
    for _ in range(2):
        runner.infer(frames, sizes)
    print(_peak_bytes() / 1e6)


def _peak_bytes() -> int:
    """Peak resident memory of this program.

    On Linux `ru_maxrss` would count what the process was before it became this program."""
    if STATUS.exists():
        return resident_bytes("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS, in bytes


if __name__ == "__main__":
    _main(sys.argv[1])
