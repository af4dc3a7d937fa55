"""`mssts build-engine --target tensorrt`, with a stand-in for TensorRT.

Its registries, and what a runtime needs to load a plan, are those of the real one.
"""

from __future__ import annotations

import pytest

pytest.importorskip("onnx")

from support.contract_graph import CONVOLUTION, OUR_NODE, write_export
from support.tensorrt_stand_in import Machine

from mssts import kernels
from mssts.errors import CheckFailed
from mssts.export.tensorrt import builder as tensorrt_builder
from mssts.export.tensorrt import command as build_command
from mssts.export.tensorrt.builder import build_engine
from mssts.export.tensorrt.options import BuildOptions
from mssts.runners.tensorrt_runner import TensorRtRunner


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with a GPU, TensorRT and the plugins.

    Parity is not compared, as the stand-in computes nothing.
    """
    library = tmp_path / "libmssts_tensorrt.so"
    library.write_bytes(b"library")
    monkeypatch.setattr(kernels, "library", lambda name: kernels.Library(name, library, ""))
    parity = {"holds": None, "reason": "not compared"}
    monkeypatch.setattr(tensorrt_builder, "check_parity", lambda *_: parity)
    return Machine().install(monkeypatch)


def test_a_plan_with_plugins_is_built_checked_and_loaded(machine, tmp_path):
    out = tmp_path / "out"
    manifest = build_engine(write_export(tmp_path / "export"), out, BuildOptions("tensorrt"))
    assert manifest.checks["network"]["plugins"] == [OUR_NODE]
    assert manifest.checks["layers"] == {"layers": 2, "holds": True, "in_another_precision": []}
    assert sorted(path.name for path in out.iterdir()) == ["layers.json", "manifest.json", "model.plan"]
    # The next process: nothing is registered there yet.
    machine.global_registry.creators.clear()
    runner = TensorRtRunner(out)
    assert runner.describe()["kernels"] == ["MSDeformAttn"]
    runner.close()


def test_building_takes_no_plugin_from_others(machine, tmp_path):
    """Those that Triton or the user registered are there for the next runtime."""
    machine.open_library("before")
    build_engine(write_export(tmp_path / "export"), tmp_path / "out", BuildOptions("tensorrt"))
    assert machine.global_registry.get_creator("MSDeformAttn", "1") is not None


def test_a_version_compatible_plan_is_loaded_again(machine, tmp_path):
    machine.needs_host_code = True
    options = BuildOptions("tensorrt", version_compatible=True)
    build_engine(write_export(tmp_path / "export"), tmp_path / "out", options)
    TensorRtRunner(tmp_path / "out").close()


def test_a_plan_that_cannot_be_loaded_again_is_not_written(machine, tmp_path):
    machine.loads = False
    with pytest.raises(CheckFailed, match="cannot be loaded again: Serialization assertion failed; nothing was"):
        build_engine(write_export(tmp_path / "export"), tmp_path / "out", BuildOptions("tensorrt"))
    assert not (tmp_path / "out").exists()


def test_a_convolution_fused_with_the_normalisation_is_named_and_kept(machine, tmp_path, capsys):
    """It reads uint8 frames, and computes in the precision of the network."""
    machine.convolution_type = "Row major linear UInt8"
    manifest = build_engine(write_export(tmp_path / "export"), tmp_path / "out", BuildOptions("tensorrt"))
    expected = [{"name": CONVOLUTION, "input": "Row major linear UInt8"}]
    assert manifest.checks["layers"]["in_another_precision"] == expected
    build_command._print(manifest, tmp_path / "out", "wrote")
    assert f"warning: {CONVOLUTION} reads Row major linear UInt8, not fp32" in capsys.readouterr().out
