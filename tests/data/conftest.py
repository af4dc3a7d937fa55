"""Fixtures of the tests of data sets."""

from __future__ import annotations

import pytest
from support.coco_files import content, write

from mssts.data.coco import read_coco
from mssts.data.youtube_vis import VideoDataset

HEIGHT, WIDTH = 120, 160
# Pixels 40…69 × 60…99; its outline as COCO draws it.


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> VideoDataset:
    return read_coco(write(tmp_path_factory.mktemp("coco"), content()))
