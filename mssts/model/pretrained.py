"""Loads ImageNet backbones of torchvision (ResNet, ResNeXt) and Microsoft (Swin)."""

from __future__ import annotations

import re
from pathlib import Path

from mssts.errors import MsstsError
from mssts.model.mssts_vis import MSSTSVIS
from mssts.model.state_dict import read_state_dict

# The classifier with its norm, and what is a function of the window's or the image's size.
_UNUSED = re.compile(r"fc\..*|head\..*|norm\..*|.*\.(relative_position_index|attn_mask|num_batches_tracked)")
# A classifier has one norm at its end; ours has one for each scale that it gives.
_NEW = re.compile(r"norm[123]\.(weight|bias)")


def load_backbone_weights(model: MSSTSVIS, path: Path | str) -> tuple[list[str], list[str]]:
    """Loads ImageNet weights, .pth or .safetensors, into the model's backbone.

    Returns:
        The names of the file that are deliberately unused, and the parameters that it lacks and that stay as they were
        initialised: those of Swin's norms of its outputs.

    Raises:
        MsstsError: the file is absent, damaged or not data, or it fits another backbone; nothing is loaded then.
    """
    weights = read_state_dict(path)
    unused = sorted(name for name in weights if _UNUSED.fullmatch(name))
    backbone = model.config.backbone
    own = model.backbone.state_dict()
    merged = {name: tensor for name, tensor in weights.items() if name not in unused}
    kept = [name for name in own if name not in merged and (_NEW.fullmatch(name) or _UNUSED.fullmatch(name))]
    merged |= {name: own[name] for name in kept}
    for name in sorted(own.keys() | merged.keys()):
        found, expected = (tuple(tensors[name].shape) if name in tensors else None for tensors in (merged, own))
        if found != expected:
            raise MsstsError(
                f"{path}: does not fit the backbone {backbone}: {name} is {found or 'missing'} in the file, expected "
                f"{expected or 'not to be there'}; pass ImageNet weights of {backbone}"
            )
    model.backbone.load_state_dict(merged)
    return unused, [name for name in kept if _NEW.fullmatch(name)]
