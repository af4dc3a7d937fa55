"""ONNX Runtime's binding: our ops in every dtype, against float64.

They are compared with the function bodies too.
"""

from __future__ import annotations

import ctypes
import json
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from support.deformable import deformable_by_loops, deformable_inputs
from support.small_model import small

from mssts import contract, kernels
from mssts.errors import MsstsError
from mssts.export.options import OPSET
from mssts.export.parity import Case, measure
from mssts.model.engine import Engine
from mssts.ops.exporting import DOMAIN, PLUGIN_ATTRIBUTES
from mssts.ops.function_bodies import DOMAIN_VERSION, function_bodies
from mssts.runners.onnx_runtime import OnnxRuntimeRunner

FLOATS = {
    torch.float32: TensorProto.FLOAT,
    torch.float16: TensorProto.FLOAT16,
    torch.bfloat16: TensorProto.BFLOAT16,
    torch.float64: TensorProto.DOUBLE,
}
each_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=[str(dtype).removeprefix("torch.") for dtype in FLOATS])


@pytest.fixture(scope="session")
def library() -> Path:
    """The custom-op library."""
    found = kernels.library("onnxruntime")
    if found.path is None or found.reason:
        pytest.skip(f"no kernels for ONNX Runtime: {found.reason}")
    return found.path


def deform_attn_model(dtype=torch.float32, shapes_dtype=TensorProto.INT64, reference=None) -> bytes:
    """A model of one node between casts.

    Feeds and output are float32 (float64 for that), which numpy has, and all sizes are free. `reference` is the type of
    that input of the node, if not the right one.
    """
    outer = TensorProto.DOUBLE if dtype == torch.float64 else TensorProto.FLOAT
    stored = {
        "value": FLOATS[dtype],
        "reference": reference or outer,
        "offsets": FLOATS[dtype],
        "logits": FLOATS[dtype],
    }
    infos = {"value": (outer, "NSMD"), "shapes": (shapes_dtype, ("L", 2)), "reference": (outer, "NQLR"),
             "offsets": (outer, ("N", "Q", "M", "L", "P", 2)), "logits": (outer, "NQMLP")}  # fmt: skip
    return one_node("MSDeformAttn", infos, stored, outer, 3, {})


def temporal_attn_model(dtype=torch.float32, heads: int | None = 2) -> bytes:
    """A model of one SplitTemporalAttn node between casts."""
    outer = TensorProto.DOUBLE if dtype == torch.float64 else TensorProto.FLOAT
    infos = {"query": (outer, "BTSC"), "key": (outer, "BUSC"), "value": (outer, "BUSC")}
    attributes = {} if heads is None else {"heads": heads}
    return one_node("SplitTemporalAttn", infos, dict.fromkeys(infos, FLOATS[dtype]), outer, 4, attributes)


def one_node(op_type, infos, stored, outer, rank, attributes) -> bytes:
    casts = [helper.make_node("Cast", [name], [f"{name}_stored"], to=to) for name, to in stored.items()]
    names = [f"{name}_stored" if name in stored else name for name in infos]
    node = helper.make_node(op_type, names, ["out_stored"], "ours", domain=DOMAIN, **attributes, **PLUGIN_ATTRIBUTES)
    last = helper.make_node("Cast", ["out_stored"], ["out"], to=outer)
    graph = helper.make_graph(
        [*casts, node, last],
        "test",
        [helper.make_tensor_value_info(name, dtype, shape) for name, (dtype, shape) in infos.items()],
        [helper.make_tensor_value_info("out", outer, [None] * rank)],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, DOMAIN_VERSION)]
    functions = function_bodies(OPSET)
    return helper.make_model(graph, functions=functions, opset_imports=opsets, ir_version=10).SerializeToString()


def session_of(model: bytes, library: Path | None, threads: int = 1, profile: Path | None = None):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    if library is not None:
        options.register_custom_ops_library(str(library))
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def feeds_of(inputs, dtype) -> dict[str, np.ndarray]:
    """Feeds from the inputs in fp64, rounded to what the node will see.

    The rounded values are exact in the feeds' own type.
    """
    outer = torch.float64 if dtype == torch.float64 else torch.float32
    rounded = {name: x.to(dtype).to(outer) for name, x in inputs.items() if name not in ("shapes", "reference")}
    rest = {name: x.to(outer) if name == "reference" else x for name, x in inputs.items() if name not in rounded}
    return {name: {**rounded, **rest}[name].numpy() for name in inputs}


SHAPES = ((9, 12), (5, 6), (3, 3), (2, 2))
NAMES = ("value", "shapes", "reference", "offsets", "logits")


def storage_eps(dtype) -> float:
    """The relative rounding of an output of that dtype: half a unit in the last place."""
    return torch.finfo(dtype).eps / 2


@each_dtype
@pytest.mark.parametrize("R", [2, 4])
@pytest.mark.parametrize("shapes_dtype", [TensorProto.INT64, TensorProto.INT32], ids=["int64", "int32"])
def test_deformable_attention_in_every_type(library, dtype, R, shapes_dtype):
    inputs = dict(zip(NAMES, deformable_inputs(SHAPES, R=R, D=16)[:5], strict=True))
    feeds = feeds_of(inputs, dtype)
    if shapes_dtype == TensorProto.INT32:
        feeds["shapes"] = feeds["shapes"].astype(np.int32)
    exact = deformable_by_loops(*(torch.from_numpy(feeds[name]) for name in NAMES), SHAPES)
    out = session_of(deform_attn_model(dtype, shapes_dtype), library).run(None, feeds)[0]

    # A coordinate in pixels takes four roundings, and a value changes by 2 max|value| a pixel at most.
    size = max(12.0, np.abs(feeds["offsets"]).max()) * np.abs(feeds["value"]).max()

    def bound(arithmetic: torch.dtype) -> float:
        return 8 * torch.finfo(arithmetic).eps * size + storage_eps(dtype) * np.abs(exact).max()

    arithmetic = torch.promote_types(dtype, torch.float32)
    assert np.abs(out - exact).max() <= bound(arithmetic)
    if shapes_dtype == TensorProto.INT64:  # the only type that the body has
        body = session_of(deform_attn_model(dtype), None).run(None, feeds)[0]
        assert np.abs(out - body).max() <= bound(arithmetic) + bound(torch.float32)  # a body computes in fp32


@each_dtype
@pytest.mark.parametrize(("T", "U", "heads"), [(5, 5, 4), (5, 10, 2), (1, 1, 1), (16, 32, 2)])
def test_temporal_attention_in_every_type(library, dtype, T, U, heads):
    gen = torch.Generator().manual_seed(0)
    inputs = {
        name: torch.randn(2, frames, 37, 32, generator=gen, dtype=torch.float64)
        for name, frames in (("query", T), ("key", U), ("value", U))
    }
    feeds = feeds_of(inputs, dtype)
    q, k, v = (feeds[name].astype(np.float64).reshape(2, -1, 37, heads, 32 // heads) for name in inputs)
    logits = np.einsum("btsmd,busmd->bsmtu", q, k) / np.sqrt(32 // heads)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    exact = np.einsum("bsmtu,busmd->btsmd", weights / weights.sum(-1, keepdims=True), v).reshape(2, T, 37, 32)
    out = session_of(temporal_attn_model(dtype, heads), library).run(None, feeds)[0]

    # A logit is a sum of D products, each rounded; an error of it moves the weights by as much, and twice, in the sum.
    magnitude = np.einsum("btsmd,busmd->bsmtu", np.abs(q), np.abs(k)).max() / np.sqrt(32 // heads)

    def bound(arithmetic: torch.dtype) -> float:
        return 4 * torch.finfo(arithmetic).eps * magnitude * np.abs(v).max() + storage_eps(dtype) * np.abs(exact).max()

    arithmetic = torch.promote_types(dtype, torch.float32)
    assert np.abs(out - exact).max() <= bound(arithmetic)
    body = session_of(temporal_attn_model(dtype, heads), None).run(None, feeds)[0]
    assert np.abs(out - body).max() <= bound(arithmetic) + bound(torch.float32)


def large_feeds() -> dict[str, np.ndarray]:
    """Enough work for several tasks."""
    shapes = ((40, 60), (20, 30), (10, 15), (5, 8))
    inputs = deformable_inputs(shapes, N=3, Q=700, M=4, D=32, R=2, dtype=torch.float32)[:5]
    return feeds_of(dict(zip(NAMES, inputs, strict=True)), torch.float32)


def test_the_number_of_threads_changes_no_bit(library):
    feeds = large_feeds()
    one, two = (session_of(deform_attn_model(), library, threads).run(None, feeds)[0] for threads in (1, 2))
    np.testing.assert_array_equal(one, two)
    gen = np.random.default_rng(0)
    tokens = {name: gen.standard_normal((1, 5, 3000, 64), np.float32) for name in ("query", "key", "value")}
    one, two = (session_of(temporal_attn_model(), library, threads).run(None, tokens)[0] for threads in (1, 2))
    np.testing.assert_array_equal(one, two)


def test_sessions_and_runs_do_not_disturb_each_other(library):
    feeds = large_feeds()
    sessions = [session_of(deform_attn_model(), library, 2) for _ in range(2)]
    expected = sessions[0].run(None, feeds)[0]
    differing = []

    def work(session: onnxruntime.InferenceSession) -> None:
        for _ in range(4):
            if not np.array_equal(session.run(None, feeds)[0], expected):
                differing.append(session)

    threads = [threading.Thread(target=work, args=(session,)) for session in sessions * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert differing == []
    del sessions, threads
    # A library that its sessions have left can be used again.
    np.testing.assert_array_equal(session_of(deform_attn_model(), library).run(None, feeds)[0], expected)


@pytest.mark.parametrize(("N", "Q"), [(0, 7), (2, 0)], ids=["no frames", "no queries"])
def test_nothing_to_do_is_done(library, N, Q):
    inputs = deformable_inputs(SHAPES, N=N, Q=Q, dtype=torch.float32)[:5]
    feeds = feeds_of(dict(zip(NAMES, inputs, strict=True)), torch.float32)
    assert session_of(deform_attn_model(), library).run(None, feeds)[0].shape == (N, Q, 15)


def test_a_nan_stays_in_its_query(library):
    feeds = feeds_of(dict(zip(NAMES, deformable_inputs(SHAPES, dtype=torch.float32)[:5], strict=True)), torch.float32)
    session = session_of(deform_attn_model(), library)
    clean = session.run(None, feeds)[0]
    feeds["logits"][0, 3] = np.nan
    out = session.run(None, feeds)[0]
    assert np.isnan(out[0, 3]).all()
    out[0, 3] = clean[0, 3]
    np.testing.assert_array_equal(out, clean)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shapes": lambda x: x + 1}, "MSDeformAttn: .*197.*151"),
        ({"shapes": lambda x: x * [[-1, 1]]}, "MSDeformAttn: "),
        ({"shapes": lambda x: x[:3]}, r"MSDeformAttn: reference is \[2,7,4,2\], expected .* with L = 3 as in shapes"),
        ({"offsets": lambda x: x[:, :6]}, r"MSDeformAttn: offsets is \[2,6,.*\], expected \[N,Q,M,L,P,2\] with Q = 7 "),
        ({"value": lambda x: x[..., :2, :]}, r"offsets is \[2,7,3,4,4,2\], expected .* with M = 2 as in value"),
        ({"reference": lambda x: x[..., :1]}, "MSDeformAttn: reference has 1 coordinates, expected 2 or 4"),
    ],
    ids=["sum of the shapes", "negative shapes", "levels", "queries", "heads", "coordinates"],
)  # fmt: skip
def test_wrong_sizes_are_an_error_that_names_them(library, change, message):
    feeds = feeds_of(dict(zip(NAMES, deformable_inputs(SHAPES, dtype=torch.float32)[:5], strict=True)), torch.float32)
    for name, changed in change.items():
        feeds[name] = np.ascontiguousarray(changed(feeds[name]))
    model = onnx.load_from_string(deform_attn_model())
    for value in model.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            dim.Clear()  # ONNX Runtime would look at named sizes itself
    with pytest.raises(Exception, match=message):
        session_of(model.SerializeToString(), library).run(None, feeds)


@pytest.mark.parametrize(
    ("heads", "message"), [(3, "C = 64 channels, .* heads = 3"), (0, "heads is 0, expected 1 or more"), (None, "heads")]
)
def test_wrong_heads_are_an_error(library, heads, message):
    tokens = np.zeros((1, 2, 3, 64), np.float32)
    with pytest.raises(Exception, match=message):
        session_of(temporal_attn_model(heads=heads), library).run(
            None, dict.fromkeys(("query", "key", "value"), tokens)
        )


@each_dtype
@pytest.mark.parametrize("op_type", ["MSDeformAttn", "SplitTemporalAttn"])
def test_each_type_has_a_kernel_of_its_own(library, op_type, dtype):
    """Every dtype has its own kernel.

    ONNX Runtime would run float16 on the float32 kernel, between casts, where it finds none.
    """
    handle = ctypes.CDLL(str(library))
    handle.mssts_onnxruntime_created.restype = ctypes.c_char_p
    handle.mssts_onnxruntime_created()
    session_of(deform_attn_model(dtype) if op_type == "MSDeformAttn" else temporal_attn_model(dtype), library)
    name = str(dtype).removeprefix("torch.")
    assert handle.mssts_onnxruntime_created().decode() == f"{op_type} cpu {name}\n"


@pytest.mark.parametrize("op_type", ["MSDeformAttn", "SplitTemporalAttn"])
def test_the_shape_of_the_output_is_known_before_the_run(library, op_type):
    model = onnx.load_from_string(deform_attn_model() if op_type == "MSDeformAttn" else temporal_attn_model())
    for value in model.graph.input:
        if value.name == "value" and op_type == "MSDeformAttn":
            value.type.tensor_type.shape.dim[2].dim_value, value.type.tensor_type.shape.dim[3].dim_value = 3, 5
    # The cast behind our node would carry its shape on; the output itself has only what the graph says of it.
    del model.graph.node[-1], model.graph.output[:]
    rank = 3 if op_type == "MSDeformAttn" else 4
    model.graph.output.append(helper.make_tensor_value_info("out_stored", TensorProto.FLOAT, [None] * rank))
    expected = ["N", "Q", 15] if op_type == "MSDeformAttn" else ["B", "T", "S", "C"]
    assert session_of(model.SerializeToString(), library).get_outputs()[0].shape == expected


@pytest.fixture(scope="module")
def engine(exported):
    """(exported file, model)."""
    _, folder, model = exported
    return folder / "model.onnx", model


def test_an_engine_on_kernels_is_the_model(library, engine):
    path, model = engine
    runner = OnnxRuntimeRunner(path, kernels=True)
    described = runner.describe()
    assert described["kernels"] == ["MSDeformAttn", "SplitTemporalAttn"]
    assert described["kernels_isa"] in ("avx512", "avx2", "portable")
    assert described["kernels_reason"] == ""
    frames = np.random.default_rng(3).integers(0, 256, (2, 4, 50, 70, 3), dtype=np.uint8)
    sizes = np.array([[50, 70], [40, 48]], np.int32)
    report = measure(Engine(model, small().top_k), runner, [Case("padded", frames, sizes)])
    assert report.failures() == []

    # And the same as on the function bodies, within the same bound of the model (tests/export/test_export.py).
    inlined = OnnxRuntimeRunner(path, kernels=False)
    one, other = runner.infer(frames, sizes), inlined.infer(frames, sizes)
    np.testing.assert_array_equal(one.labels, other.labels)
    for spec in contract.ENGINE_OUTPUTS:
        if spec.dtype == "float32":
            bound = 2 * max(error.max_bound for error in report.errors if error.output == spec.name)
            assert np.abs(getattr(one, spec.name) - getattr(other, spec.name)).max() <= bound


def test_every_node_of_ours_runs_on_a_kernel(library, engine, tmp_path):
    path, _ = engine
    expected = Counter(node.op_type for node in onnx.load(path).graph.node if node.domain == DOMAIN)
    feeds = {"frames": np.zeros((1, 2, 40, 48, 3), np.uint8), "sizes": np.array([[40, 48]], np.int32)}

    def executed(library: Path | None) -> Counter:
        session = session_of(path.read_bytes(), library, profile=tmp_path / "profile")
        session.run(None, feeds)
        events = json.loads(Path(session.end_profiling()).read_text())
        return Counter(
            event["args"]["op_name"]
            for event in events
            if event["name"].endswith("_kernel_time") and event["args"]["op_name"] in expected
        )

    assert executed(library) == expected
    assert executed(None) == Counter()


@pytest.fixture
def libraries(monkeypatch):
    """A function that makes `mssts.kernels` look into another folder, for this test."""

    def use(folder: Path | str) -> None:
        monkeypatch.setenv(kernels.FOLDER_VARIABLE, str(folder))
        kernels.library.cache_clear()

    yield use
    monkeypatch.undo()
    kernels.library.cache_clear()


def test_without_the_library_the_bodies_run_and_the_reason_is_told(engine, libraries, tmp_path):
    libraries(tmp_path)
    described = OnnxRuntimeRunner(engine[0]).describe()
    assert described["kernels"] == []
    assert str(tmp_path) in described["kernels_reason"]
    assert "make plugins" in described["kernels_reason"]
    with pytest.raises(MsstsError, match=rf"cannot be loaded with our kernels: .*{tmp_path}"):
        OnnxRuntimeRunner(engine[0], kernels=True)
    libraries("")
    assert "switched off" in OnnxRuntimeRunner(engine[0]).describe()["kernels_reason"]


@pytest.mark.parametrize("content", ["nothing", "text", "another library"])
def test_a_library_that_is_none_of_ours_is_not_used(engine, libraries, tmp_path, content):
    file = tmp_path / "libmssts_onnxruntime.so"
    if content == "another library":
        file.write_bytes(
            next(Path(onnxruntime.__file__).parent.rglob("libonnxruntime_providers_shared.so")).read_bytes()
        )
    else:
        file.write_text("" if content == "nothing" else "no library\n")
    libraries(tmp_path)
    described = OnnxRuntimeRunner(engine[0]).describe()
    assert described["kernels"] == []
    assert described["kernels_reason"].startswith(f"{file}: ")


def test_a_node_of_other_types_leaves_the_whole_file_to_the_bodies(library, engine, tmp_path):
    model = onnx.load(engine[0])
    node = next(node for node in model.graph.node if node.op_type == "MSDeformAttn")
    model.graph.node.insert(
        list(model.graph.node).index(node),
        helper.make_node("Cast", [node.input[2]], ["reference_half"], to=TensorProto.FLOAT16),
    )
    node.input[2] = "reference_half"
    onnx.save(model, tmp_path / "model.onnx")
    described = OnnxRuntimeRunner(tmp_path / "model.onnx").describe()
    assert described["kernels"] == []
    assert "MSDeformAttn" in described["kernels_reason"]
    with pytest.raises(MsstsError, match=r"cannot be loaded with our kernels: .*MSDeformAttn"):
        OnnxRuntimeRunner(tmp_path / "model.onnx", kernels=True)
