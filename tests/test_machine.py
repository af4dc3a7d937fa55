"""What this process may use of its machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mssts import machine
from mssts.machine import cpu_count

FREE = {"cpu.max": "max 100000\n"}


# The lines of /proc/self/cgroup, the files under /sys/fs/cgroup, and the cores of 8.
@pytest.mark.parametrize(
    ("groups", "files", "cores"),
    [
        pytest.param("0::/", {"cpu.max": "300000 100000\n"}, 3, id="docker run --cpus 3"),
        pytest.param("0::/", {"cpu.max": "150000 100000\n"}, 2, id="a part of a core is a core"),
        pytest.param("0::/", {"cpu.max": "20000 100000\n"}, 1, id="less than one"),
        pytest.param("0::/", {"cpu.max": "1600000 100000\n"}, 8, id="more than there are"),
        pytest.param("0::/", FREE, 8, id="no limit"),
        pytest.param("0::/", {}, 8, id="the root of a host, which has no such file"),
        pytest.param(
            "0::/a.slice/b.service",
            {"a.slice/cpu.max": "200000 100000\n", "a.slice/b.service/cpu.max": "max 100000\n"},
            2,
            id="the limit of a group above",
        ),
        pytest.param(
            "5:memory:/docker/1f\n4:cpu,cpuacct:/docker/1f\n0::/",
            {"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "50000\n"},
            4,
            id="version 1, whose path is the host's",
        ),
        pytest.param(
            "1:cpu:/",
            {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"},
            8,
            id="version 1, no limit",
        ),
        pytest.param(None, {}, 8, id="no control groups"),
        pytest.param("nonsense", {"cpu.max": "nonsense"}, 8, id="a file that is not understood"),
    ],
)
def test_cores_are_no_more_than_the_limit_of_time_is_worth(tmp_path: Path, monkeypatch, groups, files, cores):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    if groups is not None:
        (tmp_path / "own").write_text(f"{groups}\n")
    monkeypatch.setattr(machine, "_GROUPS_OF_THIS_PROCESS", tmp_path / "own")
    monkeypatch.setattr(machine, "_CONTROL_GROUPS", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    assert cpu_count() == cores
