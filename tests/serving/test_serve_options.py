"""Options of `mssts serve` that no other test passes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from support.toy_engine import write_toy_engine

from mssts.cli import main


@pytest.mark.server
@pytest.mark.skipif(sys.version_info >= (3, 13), reason="Triton's wheel needs numpy < 2")
def test_the_time_to_start_is_an_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine = write_toy_engine(tmp_path).parent
    assert main(["serve", "--model", str(engine), "--startup-timeout", "0.1"]) == 2
    error = capsys.readouterr().err
    assert "not ready after 0.1 s" in error
    assert error.count("\n") == 1
