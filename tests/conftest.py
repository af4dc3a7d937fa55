"""Options of the whole test suite, and fixtures that take long to make."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.tools import check_marks

from mssts.kernels import library


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--require-gpu", action="store_true", help="fail, instead of skipping, where there is no GPU")


def pytest_sessionstart(session: pytest.Session) -> None:
    if session.config.getoption("--require-gpu") and (reason := library("cuda").reason):
        raise pytest.UsageError(f"--require-gpu: the CUDA kernels cannot run here: {reason}")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    check_marks(item)  # before fixtures that take long


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory):
    """(checkpoint, folder of its export, the model), read-only.

    They are those of tests/support/small_model.py.
    """
    from support.small_model import awake_model, small

    from mssts.data.moving_shapes import CATEGORIES
    from mssts.export.exporter import export_checkpoint
    from mssts.model.checkpoint import save_checkpoint

    folder: Path = tmp_path_factory.mktemp("export")
    model = awake_model()
    weights = {k: v for k, v in model.state_dict().items() if "num_batches_tracked" not in k}
    save_checkpoint(folder / "model.safetensors", weights, small(), CATEGORIES)
    export_checkpoint(folder / "model.safetensors", folder / "engine")
    assert {path.name for path in (folder / "engine").iterdir()} == {"model.onnx", "manifest.json"}
    return folder / "model.safetensors", folder / "engine", model
