"""docs/custom-data.md, taken at its word."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from mssts.cli import parser

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "custom-data.md").read_text(encoding="utf-8")
BLOCKS = PAGE.split("```")[1::2]  # each begins with its language, or an empty line
COMMANDS = [line for block in BLOCKS for line in block.splitlines() if line.startswith("mssts ")]


def test_there_are_commands() -> None:
    assert {command.split()[1] for command in COMMANDS} == {"train", "predict", "evaluate", "export", "serve"}


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_is_one(command: str) -> None:
    parser().parse_args(shlex.split(command, comments=True)[1:])
