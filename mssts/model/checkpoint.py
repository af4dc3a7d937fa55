"""Trained models on disk: one safetensors file with the preset and class names.

The file holds data, never code.

The header has the fields `format`, `preset`, `categories` (JSON, [[id, name], …] in the order of the labels) and
`model` (JSON: what of the preset's architecture is otherwise in this checkpoint, such as its switches).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mssts.categories import rows_by_name
from mssts.errors import MsstsError
from mssts.files import atomic_path, sha256
from mssts.manifest import Category, Manifest
from mssts.model.config import ModelConfig, Preset, Switches, preset
from mssts.model.mssts_vis import MSSTSVIS, parameter_shapes
from mssts.model.released import read_released, released_categories
from mssts.model.state_dict import is_safetensors

_FORMAT = "mssts-checkpoint-1"
# Fields of a model that its checkpoint always names, and what those did that are older than the field.
_BEFORE = {"split_position": False}


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint: fp32 weights, their preset and the classes they know."""

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

    def manifest(
        self,
        artefact: Path,
        top_k: int | None = None,
        checks: dict[str, Any] | None = None,
        provenance: dict[str, Any] | None = None,
    ) -> Manifest:
        """The manifest of an fp32 engine of this model, or of the checkpoint itself.

        The engine or checkpoint is the file `artefact`.

        `top_k` is the preset's if None; the other arguments are the manifest's fields.
        """
        return Manifest(
            preset=self.preset.name,
            precision="fp32",
            categories=self.categories,
            input=self.preset.input,
            clip_frames=self.preset.clip_frames,
            clip_overlap=self.preset.clip_overlap,
            top_k=self.preset.top_k if top_k is None else top_k,
            artefact=artefact.name,
            artefact_sha256=sha256(artefact),
            checks=checks or {},
            provenance=provenance or {},
        )


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


class Initialised(NamedTuple):
    """Result of loading a checkpoint into a model.

    Attributes:
        new: names of the parameters that stay as initialised.
        kept_classes: names of the classes whose classifier rows were taken.
        new_classes: names of those whose rows stay as initialised.
    """

    new: list[str]
    kept_classes: list[str]
    new_classes: list[str]


def initialise(model: MSSTSVIS, checkpoint: Checkpoint, categories: Sequence[Category]) -> Initialised:
    """Loads a checkpoint to train from.

    Parameters of switches that are off in the checkpoint and on in the model stay as initialised, where they have no
    effect. Classifier rows are taken by the names of classes. Everything else is loaded strictly.

    Args:
        model: loaded in place.
        checkpoint: ours or a released one.
        categories: the classes of the model, by label.

    Raises:
        MsstsError: the weights do not fit. The message names the first that does not.
    """
    own = model.state_dict()
    trained = checkpoint.preset.model
    common = replace(model.config, switches=trained.switches, split_own_linear=trained.split_own_linear)
    new = own.keys() - parameter_shapes(common).keys()
    rows = rows_by_name(categories, checkpoint.categories)
    kept = [label for label, row in enumerate(rows) if row is not None]
    weights = {**checkpoint.weights, **{name: own[name] for name in new}}
    for name in own:
        if name.startswith("class_embed.") and name in weights:
            mixed = own[name].clone()
            mixed[kept] = weights[name][[row for row in rows if row is not None]].to(mixed)
            weights[name] = mixed
    load_weights(model, weights, checkpoint.path)
    names = [category.name for category in categories]
    fresh = [name for label, name in enumerate(names) if rows[label] is None]
    return Initialised(sorted(new), [names[label] for label in kept], fresh)


def save_checkpoint(
    path: Path | str,
    weights: dict[str, Tensor],
    trained: Preset,
    categories: Sequence[Category],
    dtype: torch.dtype = torch.float32,
) -> None:
    """Writes weights atomically.

    Floating-point tensors are stored as `dtype`.
    """
    header = {
        "format": _FORMAT,
        "preset": trained.name,
        "categories": json.dumps([[category.id, category.name] for category in categories]),
        "model": json.dumps(_changes(trained)),
    }
    stored = {k: (v.to(dtype) if v.is_floating_point() else v).contiguous().cpu() for k, v in weights.items()}
    with atomic_path(path) as temporary:
        save_file(stored, temporary, metadata=header)


def _changes(trained: Preset) -> dict[str, Any]:
    """The model's fields to store: those that differ from the preset of its name.

    The fields of `_BEFORE` are always among them, the number of classes never: it is that of the categories.
    """
    own, usual = asdict(trained.model), asdict(preset(trained.name).model)
    differing = {name for name, value in own.items() if value != usual[name]} - {"classes"}
    return {name: value for name, value in own.items() if name in differing | _BEFORE.keys()}


def _changed(model: ModelConfig, changes: dict[str, Any]) -> ModelConfig:
    switches = Switches(**changes["switches"]) if "switches" in changes else model.switches
    return replace(model, **{**changes, "switches": switches})


def load_checkpoint(path: Path | str, expected_preset: str | None = None) -> Checkpoint:
    """Reads a checkpoint of `save_checkpoint` or of the released code.

    A released checkpoint becomes a model with all switches off.

    Released checkpoints name no classes; theirs are taken to be those of YouTube-VIS 2019 (`released_categories`).

    Raises:
        MsstsError: there is no such file, it is not a checkpoint, or it holds another preset than `expected_preset`.
    """
    path = Path(path)
    if not path.is_file():
        raise MsstsError(f"{path}: no such file; expected a checkpoint of `mssts train` or of the released code")
    if not is_safetensors(path):
        released = read_released(path, expected_preset)
        categories = released_categories(released.preset.model.classes)
        return Checkpoint(released.preset, categories, released.weights, path)
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
    try:
        found = replace(found, model=_changed(found.model, _BEFORE | json.loads(header.get("model", "{}"))))
    except TypeError as error:
        raise MsstsError(f"{path}: written by another version of mssts, whose models differ ({error})") from None
    weights = {k: v.float() if v.is_floating_point() else v for k, v in weights.items()}
    return Checkpoint(found.with_classes(len(categories)), categories, weights, path)
