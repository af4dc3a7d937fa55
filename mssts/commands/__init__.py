"""The commands of `mssts`, a module each, and how one command runs another."""

from __future__ import annotations

import subprocess
import sys


def run_command(*words: object, capture: bool = False) -> subprocess.CompletedProcess[str]:
    """Runs an `mssts` command in a process of its own.

    `capture` keeps what it prints."""
    program = [sys.executable, "-m", "mssts.cli", *map(str, words)]
    return subprocess.run(program, capture_output=capture, text=True, check=False)
