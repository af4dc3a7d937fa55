"""Options of the whole test suite."""

from __future__ import annotations

import pytest

from mssts.kernels import library


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--require-gpu", action="store_true", help="fail, instead of skipping, where there is no GPU")


def pytest_sessionstart(session: pytest.Session) -> None:
    if session.config.getoption("--require-gpu") and (reason := library("cuda").reason):
        raise pytest.UsageError(f"--require-gpu: the CUDA kernels cannot run here: {reason}")
