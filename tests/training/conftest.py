"""Fixtures of the tests of training."""

from __future__ import annotations

from pathlib import Path

import pytest

from mssts.data.moving_shapes import MovingShapesConfig, write_dataset


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shapes"
    write_dataset(folder, 4, 0, MovingShapesConfig(width=64, height=48, length=4), progress=False)
    return folder
