"""OpenVINO's binding: errors for sizes that disagree, and no reads past the ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from support.packing import PACKINGS, attributes, packed

openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed")
onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper  # noqa: E402

from mssts import kernels  # noqa: E402

DEFORM = {"value": (1, 6, 2, 4), "shapes": (1, 2), "reference": (1, 3, 1, 2), "offsets": (1, 3, 2, 1, 4, 2),
          "logits": (1, 3, 2, 1, 4)}  # fmt: skip
TEMPORAL = {"query": (1, 5, 3, 8), "key": (1, 10, 3, 8), "value": (1, 10, 3, 8)}


def infer(op: str, tensors: dict[str, tuple[int, ...]], threads: int = 1, **attributes: int | list[int]) -> np.ndarray:
    """The output of one node for ones of these sizes."""
    ones = {n: np.array([[2, 3]]) if n == "shapes" else np.ones(x, np.float32) for n, x in tensors.items()}
    return run(op, ones, threads, **attributes)


def run(op: str, feeds: dict[str, np.ndarray], threads: int = 1, **attributes: int | list[int]) -> np.ndarray:
    """The output of one node.

    The model leaves the sizes open.
    """
    core, model = read(op, {n: [f"{n}{i}" for i in range(x.ndim)] for n, x in feeds.items()}, **attributes)
    request = core.compile_model(model, "CPU", {"INFERENCE_NUM_THREADS": threads}).create_infer_request()
    request.start_async(feeds)  # with one thread, `infer` drops errors
    request.wait()
    return request.get_tensor("out").data.copy()


def read(op: str, shapes: Mapping[str, Sequence[int | str]], **attributes: int | list[int]):
    """A model of one node, and the core that read it.

    A size that is a name is left open.
    """
    found = kernels.library("openvino")
    if found.path is None or found.reason:
        pytest.skip(f"the OpenVINO extension: {found.reason}")

    def info(name: str, shape: Sequence[int | str]) -> onnx.ValueInfoProto:
        kind = TensorProto.INT64 if name == "shapes" else TensorProto.FLOAT
        return helper.make_tensor_value_info(name, kind, shape)

    node = helper.make_node(op, list(shapes), ["out"], domain="mssts", **attributes)
    out = [f"out{i}" for i in range(3 if op == "MSDeformAttn" else 4)]
    graph = helper.make_graph([node], "one", [info(n, x) for n, x in shapes.items()], [info("out", out)])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("mssts", 1)]
    core = openvino.Core()
    core.add_extension(str(found.path))
    return core, core.read_model(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())


def test_sizes_that_agree_are_computed():
    assert infer("MSDeformAttn", DEFORM).shape == (1, 3, 8)
    # The mean of ones, whose weights sum to 1 within their rounding.
    np.testing.assert_allclose(infer("SplitTemporalAttn", TEMPORAL, heads=2), 1, rtol=1e-6)


@pytest.mark.parametrize("parts", PACKINGS.values(), ids=PACKINGS.keys())
def test_parts_of_one_tensor_are_read_where_they_are(parts):
    gen = torch.Generator().manual_seed(0)
    tokens = [torch.randn(1, 5, 3, 8, generator=gen) for _ in range(3)]
    separate = {n: x.numpy() for n, x in zip(TEMPORAL, tokens, strict=True)}
    together = {n: x.numpy() for n, x in zip(TEMPORAL, packed(parts, *tokens), strict=True)}
    found = run("SplitTemporalAttn", together, heads=2, **attributes(parts, 8))
    np.testing.assert_array_equal(found, run("SplitTemporalAttn", separate, heads=2))


def test_a_part_that_a_tensor_does_not_have_is_an_error():
    with pytest.raises(RuntimeError, match="value has 8 channels, but attributes starts and ends are 16 to 24"):
        infer("SplitTemporalAttn", TEMPORAL, heads=2, starts=[0, 0, 16], ends=[8, 8, 24])


DISAGREEING = [
    ("MSDeformAttn", DEFORM | {"logits": (1, 3, 2, 1, 2)}, r"logits is \[1,3,2,1,2\], .* P = 4 as in offsets"),
    ("MSDeformAttn", DEFORM | {"reference": (1, 2, 1, 2)}, r"offsets is .* Q = 2 as in reference"),
    ("SplitTemporalAttn", TEMPORAL | {"value": (1, 4, 3, 8)}, r"value is \[1,4,3,8\], .* U = 10 as in key"),
    ("SplitTemporalAttn", {n: (*x[:3], 7) for n, x in TEMPORAL.items()}, "C = 7 channels, .* heads = 2"),
]
# Only the values of the shapes tell.
TOKENS = ("MSDeformAttn", DEFORM | {"value": (1, 5, 2, 4)}, "the shapes have 6 tokens in all, expected 5")


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("op", "tensors", "message"), [*DISAGREEING, TOKENS])
def test_sizes_that_disagree_are_an_error_that_names_them(op, tensors, message, threads):
    attributes = {"heads": 2} if op == "SplitTemporalAttn" else {}
    with pytest.raises(RuntimeError, match=message):
        infer(op, tensors, threads, **attributes)


@pytest.mark.parametrize(("op", "tensors", "message"), DISAGREEING)
def test_sizes_that_a_model_fixes_are_checked_when_it_is_read(op, tensors, message):
    """On one thread, a program that calls OpenVINO's `infer` gets no error later."""
    attributes = {"heads": 2} if op == "SplitTemporalAttn" else {}
    with pytest.raises(RuntimeError, match=message):
        read(op, tensors, **attributes)
    some_open = {n: [f"{n}0", *x[1:]] for n, x in tensors.items()}
    with pytest.raises(RuntimeError, match=message.replace(r"\[1,", r"\[\?,")):
        read(op, some_open, **attributes)
