"""Batches from worker processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mssts.data.clips import Clip
from mssts.training.batches import batches


class Clips:
    """Clips of 1.5 MB."""

    def __len__(self) -> int:
        return 8

    def sample(self, index: int, epoch: int) -> Clip:
        rng = np.random.default_rng((index, epoch))
        frames_THWC = rng.integers(0, 256, (2, 512, 512, 3), dtype=np.uint8)
        masks_NTHW = np.zeros((1, 2, 512, 512), bool)
        masks_NTHW[:, :, : 64 * (index + 1)] = True
        boxes_NT4 = np.full((1, 2, 4), 0.5, np.float32)
        labels_N, present_NT = np.array([index]), np.ones((1, 2), bool)
        return Clip(index, (0, 1), frames_THWC, labels_N, boxes_NT4, masks_NTHW, present_NT)


def checksums(workers: int) -> list[tuple[int, int, list[int]]]:
    """Sums of pixels and masks, and the labels, of each batch."""
    return [
        (
            int(batch.frames_BTHWC.sum()),
            sum(int(target.masks_nTHW.sum()) for target in batch.targets),
            [int(target.labels_n) for target in batch.targets],
        )
        for batch in batches(Clips(), 2, 0, 0, 0, workers)
    ]


def test_workers_give_the_batches_of_one_process() -> None:
    found = checksums(2)
    assert len(found) == 4 and found == checksums(0)


def test_workers_need_no_shared_memory() -> None:
    """With the /dev/shm of a container, smaller still: 256 KiB."""
    program = "from training.test_batches import checksums; print(checksums(2) == checksums(0))"
    script = f"mount -t tmpfs -o size=256k none /dev/shm || exit 99; {sys.executable} -c '{program}'"
    try:
        done = subprocess.run(
            ["unshare", "-m", "sh", "-c", script],
            cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
    except FileNotFoundError:
        pytest.skip("no small /dev/shm can be mounted here: unshare is not installed")
    if done.returncode == 99 or "unshare" in done.stderr:
        pytest.skip(f"no small /dev/shm can be mounted here: {done.stderr.strip()}")
    assert done.stdout.strip() == "True", done.stderr[-2000:]
