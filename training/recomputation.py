"""Activation checkpointing (arXiv 1604.06174): layers compute again in backward."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from mssts.model.decoder import DecoderLayer
from mssts.model.encoder import EncoderLayer
from mssts.model.resnet import BasicBlock, Bottleneck
from mssts.model.swin import SwinBlock

_RECOMPUTED = (EncoderLayer, DecoderLayer, BasicBlock, Bottleneck, SwinBlock)


def recompute_activations(model: nn.Module) -> None:
    """Makes a model's blocks free their activations until backward.

    Losses and gradients stay the same: dropout draws again what it drew.
    """
    for module in model.modules():
        if isinstance(module, _RECOMPUTED):
            context = partial(_contexts, module)
            module.forward = partial(  # type: ignore[method-assign]
                checkpoint, module.forward, use_reentrant=False, context_fn=context
            )


def _contexts(module: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), frozen_statistics(module)


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Freezes the running statistics of batch norms, for a second pass over images."""
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
