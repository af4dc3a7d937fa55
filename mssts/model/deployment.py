"""Prepares the engine for deployment: folds batch norms, stores 16-bit weights.

Weights are stored in 16 bits only where that is safe.

What stays in fp32 in every precision, because 16 bits are too few for it: reference points and boxes (a location in
fp16 moves a sample by a good part of a pixel), softmax, layer and group norms, class scores, and the dynamic mask
convolutions with the MLP that makes their weights.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from mssts.errors import MsstsError
from mssts.model.engine import Engine
from mssts.model.resnet import FrozenBatchNorm2d

# The name of a precision → how weights and activations are stored.
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_NORMS = (nn.LayerNorm, nn.GroupNorm)


def deployed(engine: Engine, precision: str = "fp32") -> Engine:
    """Copies the engine in evaluation mode, folded and stored in `precision`.

    `precision` is a key of `PRECISIONS`.

    The weights of convolutions and linear layers, and what flows between modules, are of that type; inputs and outputs
    are those of `mssts.contract` in every precision.

    Raises:
        MsstsError: there is no such precision.
    """
    if precision not in PRECISIONS:
        raise MsstsError(f"unknown precision {precision!r}; expected one of: {', '.join(PRECISIONS)}")
    engine = copy.deepcopy(engine).eval()
    fold_batch_norms(engine)
    dtype = PRECISIONS[precision]
    if dtype == torch.float32:
        return engine
    model = engine.model
    wide = {
        *(module for module in model.modules() if isinstance(module, _NORMS)),
        *model.decoder.bbox_embed,
        model.decoder.reference_points,
        *model.class_embed,
        model.mask_head.controller,
    }
    for module in model.modules():
        if not any(module in part.modules() for part in wide) and module is not model.decoder.query_embed:
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(dtype)
    for module in wide:
        module.register_forward_pre_hook(_to_fp32)
        if isinstance(module, _NORMS):
            module.register_forward_hook(_to_dtype(dtype))
    return engine


def fold_batch_norms(module: nn.Module) -> None:
    """Folds every batch norm that directly follows a convolution, in place, in fp64."""
    for parent in list(module.modules()):
        for conv_name, norm_name in _followed_by_norm(parent):
            convolution, norm = getattr(parent, conv_name), getattr(parent, norm_name)
            scale = norm.weight.double() * (norm.running_var.double() + norm.eps).rsqrt()
            shift = norm.bias.double() - norm.running_mean.double() * scale
            weight = convolution.weight
            if convolution.bias is not None:
                shift = shift + convolution.bias.double() * scale
            dtype = weight.dtype
            convolution.weight = nn.Parameter((weight.double() * scale[:, None, None, None]).to(dtype))
            convolution.bias = nn.Parameter(shift.to(dtype))
            setattr(parent, norm_name, nn.Identity())


def _followed_by_norm(parent: nn.Module) -> Iterator[tuple[str, str]]:
    """Names of the children that are a convolution and its norm.

    They are `convN` with `bnN`, or neighbours in a sequence.
    """
    children = dict(parent.named_children())
    names = list(children)
    pairs = [(name, name.replace("conv", "bn")) for name in names if name.startswith("conv")]
    if isinstance(parent, nn.Sequential):
        pairs += list(itertools.pairwise(names))
    for first, second in pairs:
        norm = children.get(second)
        if isinstance(children[first], nn.Conv2d) and isinstance(norm, (FrozenBatchNorm2d, nn.BatchNorm2d)):
            yield first, second


def _to_fp32(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(x.float() for x in inputs)


def _to_dtype(dtype: torch.dtype):  # type: ignore[no-untyped-def]
    def hook(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output.to(dtype)

    return hook
