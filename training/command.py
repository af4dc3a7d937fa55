"""`mssts train`: data → checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mssts.model.config import Preset
    from mssts.training.config import TrainConfig

from mssts.commands.options import add_exif

# The fields of `mssts.model.config.Switches`, which is not imported here because that takes long.
_SWITCHES = ("intra-scale", "inter-scale", "temporal-decoder", "discriminator")

HELP = "train a preset on YouTube-VIS videos, on COCO images, or on both"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("--preset", default="tiny", help="which model (default: tiny)")
    parser.add_argument(
        "--data", type=Path, metavar="FILE", help="YouTube-VIS or COCO-video file, or the folder of its instances.json"
    )
    parser.add_argument(
        "--coco", type=Path, metavar="FILE", help="COCO instances, alone or in addition, as pseudo clips"
    )
    parser.add_argument("--coco-images", type=Path, metavar="DIR", help="their images (default: as COCO lays them out)")
    add_exif(parser)
    parser.add_argument("--out", type=Path, required=True, help="run folder")
    parser.add_argument("--resume", action="store_true", help="go on where the run in --out stopped")
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--init", type=Path, metavar="FILE", help="checkpoint to start from, ours or a released .pth")
    start.add_argument(
        "--backbone-weights", type=Path, metavar="FILE", help="ImageNet weights, as torchvision or Microsoft name them"
    )
    parser.add_argument(
        "--stage", choices=("pretrain", "main"), default="main",
        help="pretrain: single COCO images, before the main training starts from its checkpoint (default: main)",
    )  # fmt: skip
    parser.add_argument("--epochs", type=int, help="instead of the recipe's; the drops of the rate move along")
    parser.add_argument(
        "--lr-drops", type=float, nargs="*", metavar="EPOCH",
        help="epochs after which the learning rate falls to a tenth, instead of the recipe's",
    )  # fmt: skip
    parser.add_argument("--batch", type=int, help="clips a step, instead of the recipe's")
    parser.add_argument("--clip-frames", type=int, metavar="T", help="frames a clip, instead of the recipe's")
    parser.add_argument(
        "--augmentation", choices=("released", "steady"),
        help="released: colours change from frame to frame; steady: constant in a clip, and time may run backwards "
        "(default: the recipe's)",
    )  # fmt: skip
    parser.add_argument("--accumulate", type=int, metavar="N", help="compute a step in N parts, for less memory")
    parser.add_argument(
        "--checkpoint-activations", action="store_true", help="compute activations twice instead of keeping them"
    )
    parser.add_argument("--learning-rate", type=float, help="instead of the recipe's")
    parser.add_argument(
        "--absent-boxes", action="store_true",
        help="train an empty box where an instance is absent, as the released code does (default: no box there)",
    )  # fmt: skip
    parser.add_argument(
        "--switches", nargs="*", metavar="NAME", choices=_SWITCHES,
        help=f"which of the paper's parts the model has, none of them for the baseline (default: the preset's; "
        f"{', '.join(_SWITCHES)})",
    )  # fmt: skip
    parser.add_argument(
        "--val", type=Path, metavar="FILE",
        help="held-out videos, in either format: AP after each epoch, and the best checkpoint as best.safetensors",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, metavar="N", help="cores that a process computes on (default: torch's)")
    parser.add_argument("--workers", type=int, default=0, help="processes that load data (default: none of their own)")
    parser.add_argument("--device", default="auto", help="cpu, cuda or cuda:N (default: a GPU if there is one)")
    parser.add_argument("--no-amp", action="store_true", help="no bfloat16 arithmetic")


def run(arguments: argparse.Namespace) -> int:
    """Trains, and says where the checkpoint lies."""
    from mssts.training.distributed import process_group

    with process_group(_device(arguments.device)) as device:
        return _train(arguments, device)


def _train(arguments: argparse.Namespace, device) -> int:  # type: ignore[no-untyped-def]
    import torch

    from mssts.errors import MsstsError
    from mssts.model.checkpoint import initialise, load_checkpoint
    from mssts.model.config import preset
    from mssts.model.pretrained import load_backbone_weights
    from mssts.training.config import recipe
    from mssts.training.distributed import rank, restarted
    from mssts.training.sources import training_data
    from mssts.training.trainer import MODEL_FILE, STATE_FILE, Trainer
    from mssts.training.validation import BEST_FILE, Validation

    def say(line: str) -> None:
        if rank() == 0:
            print(line)

    chosen = _switched(preset(arguments.preset), arguments.switches)
    if arguments.threads is not None:
        if arguments.threads < 1:
            raise MsstsError(f"--threads is {arguments.threads}; expected at least 1")
        torch.set_num_threads(arguments.threads)
    config = _configured(arguments, recipe(chosen.name, arguments.stage))
    # A job that `torchrun --max-restarts` has started again goes on from what it saved, if it came to that.
    resume = arguments.resume or (restarted() and (arguments.out / STATE_FILE).exists())
    if not resume and (arguments.out / STATE_FILE).exists():
        raise MsstsError(f"{arguments.out}: holds a run already; pass --resume to go on with it, or another --out")
    try:
        str(arguments.out).encode()
    except UnicodeEncodeError:
        raise MsstsError(f"{arguments.out}: not UTF-8, which TensorBoard needs; pass another --out") from None
    data = training_data(config, arguments.seed, arguments.data, arguments.coco, arguments.coco_images, arguments.exif)
    say(data.summary)
    chosen = chosen.with_classes(len(data.categories))
    validation = Validation(arguments.val, data.categories, arguments.out) if arguments.val is not None else None
    trainer = Trainer(
        chosen,
        config,
        data.clips,
        data.categories,
        arguments.out,
        device,
        arguments.seed,
        arguments.workers,
        amp=not arguments.no_amp and _has_fast_bfloat16(device),
        validation=validation,
    )
    if resume:
        trainer.resume()
        say(f"resumed at step {trainer.step}")
    elif arguments.init is not None:
        loaded = initialise(trainer.model, load_checkpoint(arguments.init, chosen.name), data.categories)
        say(f"started from {arguments.init}{_listed('not in it and new', loaded.new)}")
        if loaded.new_classes:
            kept = ", ".join(loaded.kept_classes) or "none"
            say(f"classifiers kept, by name: {kept}; new: {', '.join(loaded.new_classes)}")
    elif arguments.backbone_weights is not None:
        unused, new = load_backbone_weights(trainer.model, arguments.backbone_weights)
        listed = _listed("unused", unused) + _listed("not in it and new", new)
        say(f"backbone from {arguments.backbone_weights}{listed}")
    if not resume and trainer.averaged is not None:
        trainer.averaged.load_state_dict(trainer.model.state_dict())
    trainer.train()
    say(f"wrote {arguments.out / MODEL_FILE} after {trainer.step} steps")
    if validation is not None and validation.best is not None:
        epoch, ap = validation.best
        say(f"best AP {ap:.3f} after epoch {epoch}: {arguments.out / BEST_FILE}")
    return 0


def _switched(chosen: Preset, switches: list[str] | None) -> Preset:
    """The preset with these parts of the paper on and the others off, itself if None."""
    from dataclasses import replace

    from mssts.model.config import BASELINE

    if switches is None:
        return chosen
    on = replace(BASELINE, **{name.replace("-", "_"): True for name in switches})
    return replace(chosen, model=replace(chosen.model, switches=on))


def _configured(arguments: argparse.Namespace, config: TrainConfig) -> TrainConfig:
    """The recipe with what the command line changes of it."""
    from dataclasses import replace

    from mssts.errors import MsstsError

    for name in ("epochs", "batch", "accumulate", "learning_rate", "clip_frames"):
        value = getattr(arguments, name)
        if value is not None:
            if value <= 0:
                raise MsstsError(f"--{name.replace('_', '-')} is {value}; expected a number above 0")
            config = config.with_epochs(value) if name == "epochs" else replace(config, **{name: value})
    if arguments.lr_drops is not None:
        drops = tuple(arguments.lr_drops)
        if list(drops) != sorted(drops) or any(not 0 < drop < config.epochs for drop in drops):
            raise MsstsError(
                f"--lr-drops {' '.join(f'{drop:g}' for drop in drops)}: expected ascending epochs between 0 and "
                f"{config.epochs}, the number of epochs"
            )
        config = replace(config, lr_drops=drops)
    if arguments.augmentation is not None:
        config = config.with_augmentation(arguments.augmentation)
    config = replace(
        config, checkpoint_activations=arguments.checkpoint_activations, absent_boxes=arguments.absent_boxes
    )
    if arguments.stage == "pretrain" and arguments.data is not None:
        raise MsstsError("--stage pretrain is on images alone; leave --data out, or leave --stage out")
    return config


def _listed(what: str, names: list[str]) -> str:
    from mssts.model.state_dict import grouped

    return f"; {what}: {', '.join(grouped(names))}" if names else ""


def _device(name: str):  # type: ignore[no-untyped-def]
    import torch

    from mssts.errors import MsstsError

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise MsstsError(f"--device {name}: unknown; expected cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise MsstsError(f"--device {name}: torch sees no GPU here; pass --device cpu")
    return device


def _has_fast_bfloat16(device) -> bool:  # type: ignore[no-untyped-def]
    """Whether bfloat16 is native: GPUs since sm_80, AVX-512 BF16 or AMX."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return bool(torch.cpu._is_avx512_bf16_supported())
