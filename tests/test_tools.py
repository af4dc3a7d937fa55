"""Tests whose programs are missing: skipped, or an error where they are required."""

from __future__ import annotations

import pytest
from support import tools


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a program that is not there."""
    monkeypatch.setitem(tools.TOOLS, "absent", tools._Tool("apt-get install absent", lambda: None))
    return "absent"


def test_a_missing_program_skips_a_test(absent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(tools.REQUIRE_VARIABLE, raising=False)
    with pytest.raises(pytest.skip.Exception, match="absent is missing: apt-get install absent"):
        tools.tool(absent)


def test_a_missing_program_fails_a_test_where_it_is_required(absent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(tools.REQUIRE_VARIABLE, "1")
    with pytest.raises(pytest.fail.Exception, match="absent is missing: apt-get install absent; MSSTS_REQUIRE_TOOLS"):
        tools.tool(absent)


def test_marks_are_looked_at(absent: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(tools.REQUIRE_VARIABLE, "1")
    tools.check_marks(request.node)
    request.node.add_marker(tools.needs_package("json", "no_such_package"))
    with pytest.raises(pytest.fail.Exception, match="the Python package no_such_package is missing"):
        tools.check_marks(request.node)
    request.node.own_markers = [tools.needs_tool(absent).mark]
    with pytest.raises(pytest.fail.Exception, match="absent is missing"):
        tools.check_marks(request.node)
