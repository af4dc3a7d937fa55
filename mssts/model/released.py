"""Checkpoints of the released code: names, and the presets they fit.

The code is OmkarThawakar/MSSTS-VIS, which is built on SeqFormer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from mssts.data.youtube_vis_classes import YOUTUBE_VIS_2019
from mssts.errors import MsstsError
from mssts.manifest import Category
from mssts.model.config import BASELINE, PRESETS, ModelConfig, Preset, preset
from mssts.model.mssts_vis import parameter_shapes
from mssts.model.state_dict import read_state_dict

# Released name (a regular expression) → ours. The first match counts; an empty name means deliberately unused.
_RULES: tuple[tuple[str, str], ...] = (
    # Never read by the released forward pass: the temporal attention is built and not called, the encoder has a second
    # output projection, and `decoder.bbox_embed` is the same module as `detr.bbox_embed`. Of Swin, the features of
    # stride 4 are normalised and dropped, and the index of relative positions is a function of the window's size.
    (r"detr\.transformer\.decoder\.layers\.\d+\.temp_attn_box\..*", ""),
    (r"detr\.transformer\.encoder\.layers\.\d+\.self_attn\.output_proj_box\..*", ""),
    (r"detr\.transformer\.decoder\.bbox_embed\..*", ""),
    (r"detr\.backbone\.0\.body\.norm0\..*", ""),
    (r"detr\.backbone\.0\.body\..*\.relative_position_index", ""),
    (r"detr\.backbone\.0\.body\.(.*)", r"backbone.\1"),
    (r"detr\.input_proj\.(.*)", r"input_proj.\1"),
    (r"detr\.query_embed\.weight", "decoder.query_embed.weight"),
    (r"detr\.class_embed\.(.*)", r"class_embed.\1"),
    (r"detr\.bbox_embed\.(.*)", r"decoder.bbox_embed.\1"),
    (r"detr\.transformer\.level_embed", "encoder.level_embed.weight"),
    (r"detr\.transformer\.reference_points\.(.*)", r"decoder.reference_points.\1"),
    (r"detr\.transformer\.encoder\.(layers\.\d+)\.self_attn\.output_proj\.(.*)", r"encoder.\1.output_proj.\2"),
    (r"detr\.transformer\.encoder\.(layers\.\d+)\.self_attn\.(.*)", r"encoder.\1.deformable.\2"),
    (r"detr\.transformer\.encoder\.(.*)", r"encoder.\1"),
    (r"detr\.transformer\.decoder\.(layers\.\d+)\.cross_attn\.(output_proj(?:_box)?\..*)", r"decoder.\1.\2"),
    (r"detr\.transformer\.decoder\.(layers\.\d+)\.cross_attn\.(.*)", r"decoder.\1.deformable.\2"),
    (r"detr\.transformer\.decoder\.(layers\.\d+)\.norm1(_box)?\.(.*)", r"decoder.\1.cross_norm\2.\3"),
    (r"detr\.transformer\.decoder\.(layers\.\d+)\.norm2(_box)?\.(.*)", r"decoder.\1.self_norm\2.\3"),
    (r"detr\.transformer\.decoder\.(layers\.\d+)\.norm3(_box)?\.(.*)", r"decoder.\1.ffn\2.norm.\3"),
    (r"detr\.transformer\.decoder\.(layers\.\d+)\.linear([12])(_box)?\.(.*)", r"decoder.\1.ffn\3.linear\2.\4"),
    (r"detr\.transformer\.decoder\.(layers\.\d+)\.time_attention_weights\.(.*)", r"decoder.\1.time_weight.\2"),
    (r"detr\.transformer\.decoder\.(layers\.\d+\.self_attn(?:_box)?\..*)", r"decoder.\1"),
    (r"controller\.(.*)", r"mask_head.controller.\1"),
    (r"mask_head\.(.*)", r"mask_features.\1"),
)


def our_name(released: str) -> str | None:
    """Our name of a released parameter, or None if it is deliberately unused.

    Raises:
        KeyError: no rule covers it.
    """
    for pattern, ours in _RULES:
        match = re.fullmatch(pattern, released)
        if match:
            return match.expand(ours) or None
    raise KeyError(released)


def convert_released(state_dict: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """A released state dict → ours, and the names deliberately left out.

    Raises:
        KeyError: a name that no rule covers; nothing is skipped silently.
    """
    converted, unused = {}, []
    for name, tensor in state_dict.items():
        ours = our_name(name)
        if ours is None:
            unused.append(name)
        else:
            converted[ours] = tensor
    return converted, unused


@dataclass(frozen=True)
class Released:
    """A released checkpoint in our names.

    The preset it fits, with all switches off, and the names that were left out.
    """

    preset: Preset
    weights: dict[str, Tensor]
    unused: tuple[str, ...]


def read_released(path: Path | str, preset_name: str | None = None) -> Released:
    """Reads a checkpoint of the released code, strictly.

    If `preset_name` is None, the preset follows from the checkpoint's backbone.

    Raises:
        MsstsError: the file is absent, damaged or not data; a name is unknown or missing, or of the wrong shape.
    """
    state_dict = read_state_dict(path)
    try:
        weights, unused = convert_released(state_dict)
    except KeyError as error:
        raise MsstsError(f"{path}: {error} is no parameter of the released code; expected names like detr.…") from None
    fitting = _preset_of(weights, path) if preset_name is None else preset(preset_name)
    fitting = replace(fitting, model=_sized(fitting.model, weights))
    expected = parameter_shapes(fitting.model)
    for released, tensor in state_dict.items():
        ours = our_name(released)
        if ours is not None and expected.get(ours) != tuple(tensor.shape):
            raise MsstsError(
                f"{path}: does not fit the preset {fitting.name}: {released} is {tuple(tensor.shape)}, expected "
                f"{expected.get(ours, 'not to be there')}; pass another --preset, or leave it out"
            )
    missing = sorted(expected.keys() - weights.keys())
    if missing:
        raise MsstsError(
            f"{path}: does not fit the preset {fitting.name}: nothing in the file is {missing[0]} "
            f"({len(missing)} of {len(expected)} parameters are missing)"
        )
    return Released(fitting, weights, tuple(unused))


def _preset_of(weights: dict[str, Tensor], path: Path | str) -> Preset:
    """The first preset with the same backbone."""
    found = _backbone({name: tuple(tensor.shape) for name, tensor in weights.items()})
    for make in PRESETS.values():
        candidate = make()
        if _backbone(parameter_shapes(candidate.model)) == found:
            return candidate
    raise MsstsError(f"{path}: its backbone is that of no preset; pass the nearest as --preset to see what differs")


def _backbone(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {name: shape for name, shape in shapes.items() if name.startswith("backbone.")}


def _sized(model: ModelConfig, weights: dict[str, Tensor]) -> ModelConfig:
    """The released configuration: switches off, and defaults of its command line."""
    queries, classifier = weights.get("decoder.query_embed.weight"), weights.get("class_embed.0.bias")
    return replace(
        model,
        switches=BASELINE,
        encoder_layers=_layers("encoder", weights) or model.encoder_layers,
        decoder_layers=_layers("decoder", weights) or model.decoder_layers,
        queries=model.queries if queries is None else len(queries),
        classes=model.classes if classifier is None else len(classifier),
    )


def _layers(part: str, weights: dict[str, Tensor]) -> int:
    return len({name.split(".")[2] for name in weights if name.startswith(f"{part}.layers.")})


def released_categories(classes: int, names: tuple[str, ...] = YOUTUBE_VIS_2019) -> tuple[Category, ...]:
    """The classes of a released checkpoint, whose labels *are* category ids.

    The released data sets pass the ids of YouTube-VIS, 1 to 40, on as labels, and `inference.py` writes labels as ids.
    Its models have two classes more, the first and the last, that never occur. Any other number of classes is that of
    another data set, whose names a checkpoint does not tell.
    """
    if classes != len(names) + 2:
        return tuple(Category(label, f"class_{label}") for label in range(classes))
    padded = ("unused_0", *names, f"unused_{classes - 1}")
    return tuple(Category(label, name) for label, name in enumerate(padded))
