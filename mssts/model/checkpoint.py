"""A trained model on disk: one safetensors file with the preset and the class names in its header. Data, never code."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mssts.errors import MsstsError
from mssts.files import atomic_path
from mssts.manifest import Category
from mssts.model.config import Preset, preset
from mssts.model.mssts_vis import MSSTSVIS

_FORMAT = "mssts-checkpoint-1"


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint: fp32 weights, the preset they fit and the classes they know."""

    preset: Preset
    categories: tuple[Category, ...]
    weights: dict[str, Tensor]
    path: Path

    def build(self) -> MSSTSVIS:
        """The model with these weights, in evaluation mode.

        Raises:
            MsstsError: a weight is missing, superfluous or of another shape; the message names the first.
        """
        model = MSSTSVIS(self.preset.model)
        load_weights(model, self.weights, self.path)
        return model.eval()


def load_weights(model: MSSTSVIS, weights: dict[str, Tensor], source: Path | str) -> None:
    """Loads `weights` into `model`, strictly.

    Raises:
        MsstsError: they do not fit; the message names `source` and the first parameter that does not.
    """
    # How many batches a norm has seen is the training's business; checkpoints do not hold it.
    counters = {name: tensor for name, tensor in model.state_dict().items() if name.endswith("num_batches_tracked")}
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name not in counters}
    for name in sorted(expected.keys() | weights.keys()):
        found = tuple(weights[name].shape) if name in weights else None
        if found != expected.get(name):
            raise MsstsError(
                f"{source}: does not fit this model: {name} is {found or 'missing'} in the file, expected "
                f"{expected.get(name) or 'not to be there'}; was it made with another preset or another version?"
            )
    model.load_state_dict({**weights, **counters})


def save_checkpoint(
    path: Path | str,
    weights: dict[str, Tensor],
    preset_name: str,
    categories: Sequence[Category],
    dtype: torch.dtype = torch.float32,
) -> None:
    """Writes weights atomically; floating-point tensors are stored as `dtype`."""
    header = {
        "format": _FORMAT,
        "preset": preset_name,
        "categories": json.dumps([[category.id, category.name] for category in categories]),
    }
    stored = {k: (v.to(dtype) if v.is_floating_point() else v).contiguous().cpu() for k, v in weights.items()}
    with atomic_path(path) as temporary:
        save_file(stored, temporary, metadata=header)


def load_checkpoint(path: Path | str, expected_preset: str | None = None) -> Checkpoint:
    """Reads a checkpoint that `save_checkpoint` wrote.

    Raises:
        MsstsError: there is no such file, it is not a checkpoint, or it holds another preset than `expected_preset`.
    """
    path = Path(path)
    if not path.is_file():
        raise MsstsError(f"{path}: no such file; expected a checkpoint written by `mssts train`")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise MsstsError(f"{path}: not a checkpoint (a safetensors file was expected): {error}") from None
    if header.get("format") != _FORMAT:
        raise MsstsError(f"{path}: a safetensors file, but not a checkpoint of `mssts train`")
    found = preset(header["preset"])
    if expected_preset is not None and found.name != expected_preset:
        raise MsstsError(
            f"{path}: a checkpoint of the preset {found.name!r}, not of {expected_preset!r}; "
            f"leave --preset out or pass --preset {found.name}"
        )
    categories = tuple(Category(int(i), str(name)) for i, name in json.loads(header["categories"]))
    weights = {k: v.float() if v.is_floating_point() else v for k, v in weights.items()}
    return Checkpoint(found.with_classes(len(categories)), categories, weights, path)
