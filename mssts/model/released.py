"""The state-dict names of the released code (OmkarThawakar/MSSTS-VIS, SeqFormer) and ours."""

from __future__ import annotations

import re

from torch import Tensor

# Released name (a regular expression) → ours. The first match counts; an empty name means deliberately unused.
_RULES: tuple[tuple[str, str], ...] = (
    # Never read by the released forward pass: the temporal attention is built and not called, the encoder has a second
    # output projection, and `decoder.bbox_embed` is the same module as `detr.bbox_embed`.
    (r"detr\.transformer\.decoder\.layers\.\d+\.temp_attn_box\..*", ""),
    (r"detr\.transformer\.encoder\.layers\.\d+\.self_attn\.output_proj_box\..*", ""),
    (r"detr\.transformer\.decoder\.bbox_embed\..*", ""),
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
    """Our name of a released parameter; None if it is deliberately unused.

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
