"""Checkpoints of the released form with the values of the golden files.

See `parity/golden.py`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from parity.golden import weight

_KEYS = Path(__file__).resolve().parents[1] / "golden" / "resnet50.keys.json"


def golden_keys() -> dict[str, list[int]]:
    """Names and shapes of the released R50 model's parameters."""
    return json.loads(_KEYS.read_text())


def fewer_keys(queries: int) -> dict[str, list[int]]:
    """The keys of a model with one encoder layer, one decoder layer, and `queries`."""
    later = re.compile(r".*(encoder|decoder)\.layers\.[1-5]\..*|.*(class|bbox)_embed\.[1-5]\..*")
    keys = {name: shape for name, shape in golden_keys().items() if not later.fullmatch(name)}
    return {**keys, "detr.query_embed.weight": [queries, *keys["detr.query_embed.weight"][1:]]}


def write_released(path: Path, keys: dict[str, list[int]]) -> Path:
    """Writes a checkpoint as the released `main.py` does."""
    torch.save({"model": {name: weight(name, tuple(shape)) for name, shape in keys.items()}, "epoch": 11}, path)
    return path
