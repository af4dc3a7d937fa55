"""Reads weights of other code as data, so that nothing in the file is executed."""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mssts.errors import MsstsError


def is_safetensors(path: Path) -> bool:
    """Whether a file looks like safetensors, whatever its name ends in.

    Such a file begins with eight bytes of length, then JSON.
    """
    with open(path, "rb") as file:
        return file.read(9)[8:] == b"{"


def read_state_dict(path: Path | str) -> dict[str, Tensor]:
    """The state dict of a safetensors or PyTorch file.

    It is the file itself, or what the file holds under `model`.

    Raises:
        MsstsError: the file is absent, damaged, holds anything that is not data, or holds no state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise MsstsError(f"{path}: no such file; expected weights as .pth or .safetensors")
    if is_safetensors(path):
        try:
            return load_file(path)
        except SafetensorError as error:
            raise MsstsError(f"{path}: damaged: {error}; get the file again") from None
    contents = _read_torch(path)
    weights = contents.get("model", contents) if isinstance(contents, dict) else contents
    if not isinstance(weights, dict) or not weights:
        raise MsstsError(f"{path}: holds no weights; expected a state dict, or one under 'model'")
    for name, tensor in weights.items():
        if not isinstance(tensor, Tensor):
            raise MsstsError(f"{path}: {name!r} is a {type(tensor).__name__}, expected a tensor: not a state dict")
    return dict(weights)


def _read_torch(path: Path) -> object:
    try:
        # Released checkpoints keep their training's arguments, an object that holds values and can do nothing.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise whatever the unpickler stumbles over
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        if code:
            raise MsstsError(
                f"{path}: refused, because it would run {code[1]} when read; a checkpoint must be data, not code; "
                "save its state dict alone"
            ) from None
        raise MsstsError(
            f"{path}: not a PyTorch or safetensors file, or damaged ({type(error).__name__}); get the file again"
        ) from None


def grouped(names: Iterable[str]) -> list[str]:
    """Readable names, equal layers joined: `encoder.layers.*.norm1.bias ×6`."""
    counts = Counter(re.sub(r"\b\d+\b", "*", name) for name in names)
    return [name if count == 1 else f"{name} ×{count}" for name, count in sorted(counts.items())]
