"""Full disks: every command says so in one line and leaves nothing half-written."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from support.toy_engine import write_toy_engine

from mssts.errors import MsstsError
from mssts.files import DISK_FULL, atomic_path, is_disk_full


def run_on_small_disk(disk: Path, kibibytes: int, *arguments: object) -> tuple[int, list[str], list[str]]:
    """Exit code, lines of stderr, and what is left on `disk`.

    `disk` is a file system of so many KiB for this command.
    """
    disk.mkdir(exist_ok=True)
    command = shlex.join([sys.executable, "-m", "mssts.cli", *map(str, arguments)])
    script = (
        f"mount -t tmpfs -o size={kibibytes}k none {shlex.quote(str(disk))} || exit 99\n"
        f"{command} >/dev/null 2>{shlex.quote(str(disk))}.err; code=$?\n"
        f"find {shlex.quote(str(disk))} -mindepth 1 -printf '%P\\n'; exit $code\n"
    )
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, timeout=300, check=False
    )
    if done.returncode == 99 or "unshare" in done.stderr:
        pytest.skip(f"no small file system can be mounted here: {done.stderr.strip()}")
    # A progress bar is not shown where stderr is a file, and warnings of libraries are not our errors.
    return done.returncode, Path(f"{disk}.err").read_text().splitlines(), done.stdout.split()


def assert_reported(code: int, lines: list[str], left: list[str]) -> None:
    assert code == 2, lines
    assert "Traceback" not in "\n".join(lines)
    assert "error: " in lines[-1] and DISK_FULL in lines[-1]
    assert left == []


def test_data_synth(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    assert_reported(
        *run_on_small_disk(disk, 256, "data", "synth", "--videos", 6, "--seed", 1, "--out", disk / "shapes")
    )


@pytest.mark.parametrize("kibibytes", [4, 64], ids=["results", "overlay"])
def test_predict(tmp_path: Path, kibibytes: int) -> None:
    folder, disk = tmp_path / "scene", tmp_path / "disk"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for t in range(12):  # noise, so that its overlay takes more than the disk has
        cv2.imwrite(str(folder / f"{t}.png"), rng.integers(0, 256, (128, 256, 3), dtype=np.uint8))
    engine = write_toy_engine(tmp_path / "engine").parent
    pictures = ["--pictures", 0] if kibibytes == 4 else []
    assert_reported(
        *run_on_small_disk(disk, kibibytes, "predict", folder, "--model", engine, "--out", disk / "out", *pictures)
    )


@pytest.mark.long
def test_export(exported, tmp_path: Path) -> None:
    checkpoint, _, _ = exported
    disk = tmp_path / "disk"
    assert_reported(*run_on_small_disk(disk, 512, "export", checkpoint, "--out", disk / "engine"))


@pytest.mark.slow
def test_train(tmp_path: Path) -> None:
    data, disk = tmp_path / "data", tmp_path / "disk"
    subprocess.run(
        [sys.executable, "-m", "mssts.cli", "data", "synth", "--videos", "2", "--seed", "1", "--out", str(data)],
        check=True,
    )
    arguments = ("train", "--preset", "tiny", "--data", data, "--out", disk / "run", "--epochs", 1, "--batch", 2)
    code, lines, left = run_on_small_disk(disk, 4096, *arguments)
    assert code == 2 and DISK_FULL in lines[-1] and "Traceback" not in "\n".join(lines)
    assert [name for name in left if name.endswith((".safetensors", ".pt")) or "/." in name] == []


def test_what_torch_says_of_a_full_disk_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.save loses the system's error."""
    monkeypatch.setattr("mssts.files.shutil.disk_usage", lambda _: type("Usage", (), {"free": 0}))
    with pytest.raises(MsstsError, match="the disk is full"), atomic_path(tmp_path / "state.pt") as temporary:
        torch.save({"weight": torch.zeros(3)}, temporary)
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")
    assert list(tmp_path.iterdir()) == []


def test_other_errors_are_not_put_down_to_the_disk(tmp_path: Path) -> None:
    assert not is_disk_full(RuntimeError("shapes do not fit"), tmp_path)
    assert not is_disk_full(PermissionError(13, "Permission denied"), tmp_path)
    assert is_disk_full(OSError(28, "No space left on device"))
    with pytest.raises(RuntimeError, match="shapes"), atomic_path(tmp_path / "x"):
        raise RuntimeError("shapes do not fit")
