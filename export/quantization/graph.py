"""Quantisation of a graph: convolutions and linear layers in 8 bits.

They are written as QuantizeLinear and DequantizeLinear.

Weights are scaled per output channel and activations per tensor, both symmetrically: TensorRT takes nothing else, and
OpenVINO needs a further pass over the activations where their zero is not 0. ONNX Runtime on a processor runs such a
graph about as fast as fp32. What is excluded, and every node that is neither a convolution nor a product with constant
weights, is left as it is: our ops and their functions, norms, softmax.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from mssts.errors import MsstsError

FORMATS = ("int8", "fp8")
# cpu is OpenVINO, gpu TensorRT. For processors biases are in int32, which TensorRT's parser refuses.
TARGETS = ("cpu", "gpu")
DEFAULT_EXCLUSIONS = Path(__file__).parent / "exclusions" / "default.txt"
_OPS = ("Conv", "MatMul", "Gemm")
_FP8_OPSET = 19  # QuantizeLinear knows E4M3 from there on
_INT8_MAX = 127.0
_E4M3_MAX = float(ml_dtypes.finfo(ml_dtypes.float8_e4m3fn).max)  # 448


def read_exclusions(path: Path) -> list[str]:
    """The globs of a file, one a line, with comments after `#`.

    Raises:
        MsstsError: the file is absent, is not text, or has a line with spaces inside, which no node name has.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise MsstsError(
            f"{path}: cannot be read as text; expected a file with a glob of node names a line, as {DEFAULT_EXCLUSIONS}"
        ) from None
    globs = []
    for number, line in enumerate(lines, 1):
        glob = line.partition("#")[0].strip()
        if len(glob.split()) > 1:
            raise MsstsError(f"{path}: line {number}: {glob!r}; expected one glob of node names, such as *.linear1/*")
        if glob:
            globs.append(glob)
    return globs


def quantizable(model: ModelProto, exclusions: Sequence[str]) -> tuple[list[NodeProto], list[str]]:
    """The nodes to quantise, and the names of those that the globs exclude."""
    constants = {tensor.name for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT}
    nodes = [node for node in model.graph.node if node.op_type in _OPS and node.input[1] in constants]
    excluded = {node.name for node in nodes if any(fnmatch.fnmatchcase(node.name, glob) for glob in exclusions)}
    return [node for node in nodes if node.name not in excluded], sorted(excluded)


def quantized(
    model: ModelProto, nodes: Sequence[NodeProto], ranges: TensorsData, number_format: str, target: str
) -> ModelProto:
    """A copy of the model with `nodes` in `number_format` for `target`.

    Args:
        model: in fp32.
        nodes: of it.
        ranges: of the first inputs of `nodes`.
        number_format: one of `FORMATS`.
        target: one of `TARGETS`; fp8 is for GPUs, whatever it says.

    Raises:
        MsstsError: an activation took on infinite values or none in the calibration.
    """
    names = {node.name for node in nodes}
    for node in nodes:
        if not _is_finite(ranges, node.input[0]):
            raise MsstsError(f"the input of {node.name} has no finite range over the calibration clips; exclude it")
    result = ModelProto()
    result.CopyFrom(model)
    quantizer = QDQQuantizer(
        result,
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QInt8,
        tensors_range=ranges,
        nodes_to_quantize=sorted(names),
        nodes_to_exclude=[],
        op_types_to_quantize=list(_OPS),
        extra_options={
            "ActivationSymmetric": True,
            "OpTypesToExcludeOutputQuantization": list(_OPS),  # only where the next layer takes 8 bits
            "QDQKeepRemovableActivations": True,
            "QuantizeBias": target != "gpu" and number_format == "int8",
        },
    )
    quantizer.quantize_model()
    _spare_others(quantizer.model.model, names)
    _pool_in_8_bits(quantizer.model.model)
    quantizer.model.topological_sort()
    result = quantizer.model.model
    if number_format == "fp8":
        _to_fp8(result, model)
    for entry in result.metadata_props:
        if entry.key == "precision":
            entry.value = number_format
    result.producer_name, result.producer_version = model.producer_name, model.producer_version
    return result


def _is_finite(ranges: TensorsData, name: str) -> bool:
    return name in ranges and bool(np.isfinite(ranges[name].range_value).all())


def _spare_others(model: ModelProto, names: set[str]) -> None:
    """Gives nodes that are not quantised the tensor itself instead of its 8 bits.

    But the shortcut of a residual block of convolutions stays in 8 bits: so it is fused with the convolution.
    """
    producers = {output: node for node in model.graph.node for output in node.output}

    def original(name: str) -> str:
        dequantize = producers.get(name)
        if dequantize is None or dequantize.op_type != "DequantizeLinear":
            return name
        quantize = producers.get(dequantize.input[0])
        return name if quantize is None else quantize.input[0]

    for node in model.graph.node:
        if node.name in names or node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            continue
        sources = [producers.get(name) for name in node.input]
        if node.op_type == "Add" and any(s and s.op_type == "Conv" and s.name in names for s in sources):
            continue
        for index, name in enumerate(node.input):
            node.input[index] = original(name)


def _pool_in_8_bits(model: ModelProto) -> None:
    """Quantises before maximum pooling what is quantised after it, to the same values.

    The convolution before then writes 8 bits, and OpenVINO pools them without a change of layout.
    """
    readers: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    for pool in [node for node in model.graph.node if node.op_type == "MaxPool"]:
        after = readers[pool.output[0]]
        if [node.op_type for node in after] != ["QuantizeLinear"]:
            continue
        quantize, source = after[0], pool.input[0]
        pair = []
        for op_type, value in (("QuantizeLinear", source), ("DequantizeLinear", f"{source}_QuantizeLinear")):
            output = f"{source}_{op_type}"
            pair.append(helper.make_node(op_type, [value, *quantize.input[1:]], [output], name=output))
        pool.input[0] = pair[1].output[0]
        model.graph.node.extend(pair)


def _to_fp8(model: ModelProto, original: ModelProto) -> None:
    """Turns an int8 graph into one in E4M3, scaled to the greatest value."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    weights = {tensor.name: tensor for tensor in original.graph.initializer}
    done: set[str] = set()
    for node in model.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        value, scale_name, zero_name = node.input
        if scale_name not in done:
            scale = numpy_helper.to_array(tensors[scale_name]) * np.float32(_INT8_MAX / _E4M3_MAX)
            _replace(tensors[scale_name], scale)
            zero = numpy_helper.to_array(tensors[zero_name])
            if zero_name not in done:
                _replace(tensors[zero_name], zero.astype(ml_dtypes.float8_e4m3fn))
            done |= {scale_name, zero_name}
        if value in tensors:
            weight = numpy_helper.to_array(weights[value.removesuffix("_quantized")])
            axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
            scale = numpy_helper.to_array(tensors[scale_name])
            shape = [-1 if i == axis else 1 for i in range(weight.ndim)] if scale.ndim else []
            scaled = np.clip(weight / scale.reshape(shape), -_E4M3_MAX, _E4M3_MAX)
            _replace(tensors[value], scaled.astype(ml_dtypes.float8_e4m3fn))
    for opsets in (model.opset_import, *(function.opset_import for function in model.functions)):
        for entry in opsets:
            if entry.domain in ("", "ai.onnx"):
                entry.version = max(entry.version, _FP8_OPSET)


def _replace(tensor: TensorProto, values: np.ndarray) -> None:
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def check(model: ModelProto) -> None:
    """onnx's own check of a graph that fits in memory."""
    if model.ByteSize() < onnx.checker.MAXIMUM_PROTOBUF:
        onnx.checker.check_model(model, full_check=False)
