"""`mssts convert`: a checkpoint of the released code → ours."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "convert a checkpoint of the released MS-STS or SeqFormer code"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument("released", type=Path, help="released.pth; read as data, never run")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="checkpoint to write (.safetensors)")
    parser.add_argument("--preset", metavar="NAME", help="the preset it must fit (default: chosen by its backbone)")
    parser.add_argument(
        "--classes", choices=("youtube_vis_2019", "youtube_vis_2021"), default="youtube_vis_2019",
        help="what it was trained on, for the names of its classes, which it does not tell (default %(default)s)",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> None:
    """Converts, and says what became of every tensor."""
    from mssts.data.youtube_vis_classes import YOUTUBE_VIS_2019, YOUTUBE_VIS_2021
    from mssts.model.checkpoint import save_checkpoint
    from mssts.model.released import read_released, released_categories
    from mssts.model.state_dict import grouped

    released = read_released(arguments.released, arguments.preset)
    model = released.preset.model
    names = {"youtube_vis_2019": YOUTUBE_VIS_2019, "youtube_vis_2021": YOUTUBE_VIS_2021}[arguments.classes]
    categories = released_categories(model.classes, names)
    save_checkpoint(arguments.out, released.weights, released.preset, categories)
    print(
        f"wrote {arguments.out}: {released.preset.name} with all switches off, {model.encoder_layers} + "
        f"{model.decoder_layers} layers, {model.queries} queries, {model.classes} classes"
        + ("" if categories[0].name.startswith("unused") else " (names unknown: class_0, class_1, …)")
    )
    print(f"{len(released.weights)} tensors converted, {len(released.unused)} deliberately unused:")
    for name in grouped(released.unused):
        print(f"  {name}")
