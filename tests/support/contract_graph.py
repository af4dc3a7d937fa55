"""A small graph with the engine's inputs and outputs that builds in a second.

It has one convolution and one of our nodes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from mssts.files import sha256
from mssts.manifest import Category, FixedShape, InputRule, Manifest
from mssts.ops.exporting import DOMAIN, PLUGIN_ATTRIBUTES

SHAPE = FixedShape(1, 2, 64, 64)
OUR_NODE = "model.encoder.layers.0.deformable/MSDeformAttn"
CONVOLUTION = "model.backbone.conv1/Conv"
OUTPUTS = {"scores": [1, 4], "labels": [1, 4], "boxes": [1, 4, 2, 4], "mask_logits": [1, 4, 2, 16, 16]}


def parity_report() -> dict[str, object]:
    """A parity report as in an export's manifest.

    Its errors are 1e-3, and its bounds twice that.
    """
    outputs = [
        {"case": "shapes", "output": name, "max_abs": 1e-3, "rms": 1e-3, "max_bound": 2e-3, "rms_bound": 2e-3}
        for name in ("scores", "boxes", "mask_logits")
    ]
    return {"holds": True, "reference": "PyTorch in fp64", "mask_iou": 1.0, "mask_iou_bound": 0.99, "compared": 4,
            "outputs": outputs}  # fmt: skip


def contract_graph(unsupported: bool = False) -> onnx.ModelProto:
    """The graph, for the input shape `SHAPE`.

    `unsupported` adds an op that no TensorRT has.
    """
    rng = np.random.default_rng(0)
    constants = {
        "weight": rng.normal(size=(4, 3, 4, 4)).astype(np.float32),
        "to_images": np.array([2, 64, 64, 3]),
        "to_masks": np.array([1, 4, 2, 16, 16]),
        "axis_4": np.array([4]),
        "axes_234": np.array([2, 3, 4]),
        "zero": np.array([0]),
        "four": np.array([4]),
        "axis_3": np.array([3]),
    }
    node = helper.make_node
    nodes = [
        node("Cast", ["frames"], ["frames_f"], to=1),
        node("Reshape", ["frames_f", "to_images"], ["images"]),
        node("Transpose", ["images"], ["images_n3hw"], perm=[0, 3, 1, 2]),
        node("Conv", ["images_n3hw", "weight"], ["features"], name=CONVOLUTION, strides=[4, 4]),
        node("MSDeformAttn", ["features"], ["sampled"], name=OUR_NODE, domain=DOMAIN, **PLUGIN_ATTRIBUTES),
        node("Reshape", ["sampled", "to_masks"], ["mask_logits"]),
        node("ReduceMean", ["mask_logits", "axes_234"], ["means"], keepdims=0),
        node("Cast", ["sizes"], ["sizes_f"], to=1),
        node("ReduceMean", ["sizes_f"], ["size"], keepdims=0),
        node("Div", ["means", "size"], ["scores"]),
        node("Cast", ["scores"], ["labels"], to=6),
        node("Slice", ["mask_logits", "zero", "four", "axis_4"], ["columns"]),
        node("ReduceMean", ["columns", "axis_3"], ["boxes"], keepdims=0),
    ]
    if unsupported:
        nodes.append(node("Det", ["mask_logits"], ["determinants"], name="model.mask_head/Det"))
    types = {"labels": onnx.TensorProto.INT32}
    graph = helper.make_graph(
        nodes,
        "engine",
        [
            helper.make_tensor_value_info("frames", onnx.TensorProto.UINT8, [1, 2, 64, 64, 3]),
            helper.make_tensor_value_info("sizes", onnx.TensorProto.INT32, [1, 2]),
        ],
        [helper.make_tensor_value_info(name, types.get(name, 1), shape) for name, shape in OUTPUTS.items()]
        + ([helper.make_tensor_value_info("determinants", 1, [1, 4, 2])] if unsupported else []),
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 1)]
    body = helper.make_function(
        DOMAIN, "MSDeformAttn", ["value"], ["out"], [node("Identity", ["value"], ["out"])],
        [helper.make_opsetid("", 18)], list(PLUGIN_ATTRIBUTES),
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=opsets, functions=[body], ir_version=9)


def write_export(folder: Path, model: onnx.ModelProto | None = None) -> Path:
    """Writes the graph and a manifest as `mssts export` would, and returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.onnx"
    onnx.save(model or contract_graph(), path)
    Manifest(
        preset="tiny", precision="fp32", categories=(Category(1, "disc"),), input=InputRule(64, 64), clip_frames=2,
        clip_overlap=0, top_k=4, artefact=path.name, artefact_sha256=sha256(path), shape=SHAPE,
        checks={"parity": parity_report()}, provenance={"weights": "model.safetensors"},
    ).write(folder)  # fmt: skip
    return folder
