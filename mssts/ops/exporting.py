"""Export of the ops: each becomes one node of the ONNX domain `mssts`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

DOMAIN = "mssts"
# TensorRT looks a plugin up by these two attributes; from 10.15 on it prefers a node's function body to the plugin
# unless `plugin_namespace` is present, even if empty.
PLUGIN_ATTRIBUTES = {"plugin_version": "1", "plugin_namespace": ""}

_active = False


@contextmanager
def exporting() -> Iterator[None]:
    """Exports the ops as ONNX nodes (torch.onnx.export with dynamo=True only)."""
    global _active
    before, _active = _active, True
    try:
        yield
    finally:
        _active = before


def is_exporting() -> bool:
    """Whether ops write nodes at present."""
    return _active


def onnx_node(
    op_type: str,
    inputs: Sequence[Tensor],
    attributes: Mapping[str, int | str | list[int]],
    shape: Sequence[int],
    dtype: torch.dtype,
) -> Tensor:
    """A symbolic result of the node `mssts::op_type`."""
    everything: dict[str, Any] = {**attributes, **PLUGIN_ATTRIBUTES}
    return torch.onnx.ops.symbolic(f"{DOMAIN}::{op_type}", inputs, everything, dtype=dtype, shape=shape, version=1)
