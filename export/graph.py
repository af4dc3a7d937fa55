"""ONNX graph of the PyTorch engine, with our ops as nodes that carry a definition."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings

import onnx
import torch
from onnx import helper

from mssts import contract
from mssts.export.names import name_nodes
from mssts.export.options import ExportOptions
from mssts.model.engine import Engine
from mssts.ops import exporting
from mssts.ops.exporting import DOMAIN
from mssts.ops.function_bodies import DOMAIN_VERSION, function_bodies

# Traced at sizes of which no two are equal, so that none can pass for another; and so large that no map has a side of
# one token or, in Swin, of one window of 12 tokens: the exporter takes what is 1 for a constant.
TRACED = {"B": 2, "T": 3, "H": 440, "W": 904}


def export_graph(engine: Engine, metadata: dict[str, str], options: ExportOptions | None = None) -> onnx.ModelProto:
    """The engine's graph, for clips of any shape unless `options` set one.

    `engine` is exported as it is: `mssts.model.deployment.deployed` brings it into the precision of `options`.
    """
    options = options or ExportOptions()
    engine = engine.eval()
    fixed = options.shape
    B, T, H, W = (fixed.clips, fixed.frames, fixed.height, fixed.width) if fixed else TRACED.values()
    frames = torch.zeros(B, T, H, W, 3, dtype=torch.uint8)
    sizes = torch.tensor([[H, W]] + [[H - 8, W - 24]] * (B - 1), dtype=torch.int32)
    dim = torch.export.Dim.DYNAMIC
    dynamic = {"frames": {0: dim, 1: dim, 2: dim, 3: dim}, "sizes": {0: dim}}
    with exporting(), _quiet():
        program = torch.onnx.export(
            engine,
            (frames, sizes),
            dynamo=True,
            opset_version=options.opset,
            input_names=[spec.name for spec in contract.ENGINE_INPUTS],
            output_names=[spec.name for spec in contract.ENGINE_OUTPUTS],
            dynamic_shapes=None if fixed else dynamic,
            verbose=False,
        )
    assert program is not None  # only f= returns None
    model = program.model_proto
    if options.functions:
        model.functions.extend(function_bodies(options.opset))
    if DOMAIN not in {entry.domain for entry in model.opset_import}:
        model.opset_import.append(helper.make_opsetid(DOMAIN, DOMAIN_VERSION))
    _name_dimensions(model)
    name_nodes(model.graph)
    del model.metadata_props[:]
    helper.set_model_props(model, metadata)
    model.producer_name, model.producer_version = "mssts", metadata["version"]
    if model.ByteSize() < onnx.checker.MAXIMUM_PROTOBUF:  # larger ones are checked once they are files
        onnx.checker.check_model(model, full_check=False)
    return model


def _name_dimensions(model: onnx.ModelProto) -> None:
    """Gives the free dimensions of inputs and outputs the letters of `mssts.contract`."""
    specs = {spec.name: spec for spec in (*contract.ENGINE_INPUTS, *contract.ENGINE_OUTPUTS)}
    for value in (*model.graph.input, *model.graph.output):
        shape = specs[value.name].shape
        dims = value.type.tensor_type.shape.dim
        for dim, size in zip(dims, shape, strict=True):
            if isinstance(size, str) and not dim.HasField("dim_value"):
                dim.dim_param = size


@contextlib.contextmanager
def _quiet():  # type: ignore[no-untyped-def]
    """Silences the exporter's progress lines and its warnings about itself."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
