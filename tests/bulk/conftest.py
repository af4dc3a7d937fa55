"""An engine, and what one process makes of a folder of videos."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.toy_engine import write_toy_engine

from mssts.prediction.predictor import PredictOptions, predict
from mssts.segmenters import load


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_engine(tmp_path_factory.mktemp("engine")).parent


@pytest.fixture(scope="session")
def by_one_process(engine: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], bytes]:
    """The `results.json` of one process with one thread."""

    def results(source: Path) -> bytes:
        out = tmp_path_factory.mktemp("one")
        with load(engine, threads=1) as segmenter:
            predict(source, segmenter, out, PredictOptions(pictures=0), progress=False)
        return (out / "results.json").read_bytes()

    return results
