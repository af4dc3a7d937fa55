"""One of our nodes in ONNX Runtime, by function body or by custom-op library."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mssts.errors import first_line
from mssts.ops.exporting import DOMAIN, PLUGIN_ATTRIBUTES

if TYPE_CHECKING:
    import onnx
    import torch

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_INPUTS = {
    "MSDeformAttn": ("value", "shapes", "reference", "offsets", "logits"),
    "SplitTemporalAttn": ("query", "key", "value"),
}
_OPSET = 18


def one_node_model(op: str, dtype: torch.dtype, attributes: dict[str, int], with_body: bool) -> onnx.ModelProto:
    """A graph of one node, all sizes free. Without its body only a kernel can run it."""
    import torch
    from onnx import TensorProto, helper

    from mssts.ops.function_bodies import DOMAIN_VERSION, function_bodies

    names = {torch.float32: "FLOAT", torch.float16: "FLOAT16", torch.bfloat16: "BFLOAT16"}
    stored = TensorProto.DataType.Value(names[dtype])
    types = {"shapes": TensorProto.INT64, "reference": TensorProto.FLOAT}
    ranks = {"shapes": 2, "offsets": 6, "logits": 5}
    everything: dict[str, Any] = {**attributes, **PLUGIN_ATTRIBUTES}
    node = helper.make_node(op, _INPUTS[op], ["out"], domain=DOMAIN, **everything)
    inputs = [
        helper.make_tensor_value_info(name, types.get(name, stored), [None] * ranks.get(name, 4))
        for name in _INPUTS[op]
    ]
    out = helper.make_tensor_value_info("out", stored, [None] * (3 if op == "MSDeformAttn" else 4))
    opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid(DOMAIN, DOMAIN_VERSION)]
    return helper.make_model(
        helper.make_graph([node], op, inputs, [out]),
        functions=function_bodies(_OPSET) if with_body else [],
        opset_imports=opsets,
        ir_version=10,
    )


def why_no_provider(device: str) -> str:
    """The reason why ONNX Runtime cannot run on `device`, empty if it can."""
    import onnxruntime

    if _PROVIDERS[device] in onnxruntime.get_available_providers():
        return ""
    return f"this ONNX Runtime ({onnxruntime.__version__}) has no {_PROVIDERS[device]}"


def session(model: onnx.ModelProto, device: str, threads: int, library: str | None, arena: bool) -> Any:
    """A session on `device`, on PyTorch's current stream if that is a GPU.

    With a custom-op `library`, a node that would run elsewhere than on the device is an error.

    Raises:
        RuntimeError: ONNX Runtime cannot load the model or the library; in one line.
    """
    import onnxruntime

    from mssts.runners.onnx_runtime import session_options

    settings = {}
    if device == "cuda":
        import torch

        settings = {"user_compute_stream": str(torch.cuda.current_stream().cuda_stream)}
    options = session_options(threads)
    options.enable_cpu_mem_arena = arena
    options.enable_mem_pattern = arena
    try:
        if library is not None:
            options.register_custom_ops_library(library)
            if device != "cpu":
                options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        providers = [(_PROVIDERS[device], settings)]
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=providers)
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        raise RuntimeError(first_line(error)) from None


def bound_call(session: Any, op: str, tensors: tuple[torch.Tensor, ...], out: torch.Tensor) -> Callable[[], None]:
    """A call that reads PyTorch's contiguous tensors and writes `out`, without copies."""
    import numpy as np
    import onnxruntime
    import torch
    from onnx import TensorProto

    element_types: dict[torch.dtype, Any] = {
        torch.float32: np.float32, torch.float16: np.float16, torch.int64: np.int64,
        torch.bfloat16: int(TensorProto.BFLOAT16),
    }  # fmt: skip

    def where(tensor: torch.Tensor) -> tuple[Any, ...]:
        index = tensor.device.index or 0
        return tensor.device.type, index, element_types[tensor.dtype], list(tensor.shape), tensor.data_ptr()

    binding = session.io_binding()
    for name, tensor in zip(_INPUTS[op], tensors, strict=True):
        binding.bind_input(name, *where(tensor))
    binding.bind_output("out", *where(out))
    options = onnxruntime.RunOptions()
    if out.is_cuda:  # as PyTorch's own calls, it only enqueues
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def call() -> None:
        session.run_with_iobinding(binding, options)

    return call
