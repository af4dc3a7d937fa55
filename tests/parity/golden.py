"""Compares the model, all switches off, with values of the released code.

Usage: tests/parity/golden.py FILE.npz.

A golden file holds no weights: every parameter and every input is a function of its name and shape, given here. Prints
the error of each entry; exits with 1 if one is above its bound. In the clips of the losses every instance is visible
in every frame. Where one is not, ours leaves its box out, and no value of the released code is at hand.
"""

from __future__ import annotations

import argparse
import json
import sys
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mssts.model.config import BASELINE, mssts_r50
from mssts.model.mssts_vis import MSSTSVIS, Prediction
from mssts.model.released import convert_released
from mssts.training.criterion import Criterion
from mssts.training.matcher import Target

_KEYS = Path(__file__).resolve().parent.parent / "golden"  # NAME.keys.json of every released backbone
# For the log alone: counts of argmaxes, which a rounding can change, and no losses.
_LOGGED = ("c_class_error", "c_cardinality_error")
_ABSOLUTE_BOUND = 1e-3  # of outputs, which are of order 1 to 20
_RELATIVE_BOUND = 1e-3  # of losses


@dataclass(frozen=True)
class Entry:
    """One compared value."""

    name: str
    error: float
    bound: float

    @property
    def holds(self) -> bool:
        """Whether the error is within the bound, which NaN never is."""
        return self.error <= self.bound


def tensor(name: str, shape: tuple[int, ...]) -> Tensor:
    """Normal random numbers that depend on the name alone."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.randn(shape, generator=generator)


def weight(name: str, shape: tuple[int, ...]) -> Tensor:
    """A parameter's or buffer's value when the golden file was made."""
    values = tensor(name, shape)
    if name.endswith("running_var"):
        return 1 + 0.1 * values.abs()
    if name.endswith("running_mean"):
        return 0.1 * values
    if name.endswith("sampling_offsets.bias"):
        return 2.0 * values
    if len(shape) <= 1:
        return 1 + 0.1 * values if name.endswith("weight") else 0.1 * values
    return values / values[0].numel() ** 0.5


def golden_model(keys: dict[str, list[int]], backbone: str) -> MSSTSVIS:
    """The released model with the golden weights.

    `keys` are its parameters' names and shapes.
    """
    config = replace(mssts_r50().model, backbone=backbone, switches=BASELINE, dropout=0.0)
    model = MSSTSVIS(config)
    weights, _ = convert_released({name: weight(name, tuple(shape)) for name, shape in keys.items()})
    model.load_state_dict(weights)
    return model.eval()


def _predictions(model: MSSTSVIS, golden: dict[str, np.ndarray]) -> list[Entry]:
    frames_b = tensor("frames_b", (2, 3, 128, 160))
    frames_b[:, :, 100:], frames_b[..., 140:] = 0, 0
    entries = []
    for case, frames, size in (("a", tensor("frames_a", (3, 3, 96, 160)), (96, 160)), ("b", frames_b, (100, 140))):
        prediction = model(frames[None], torch.tensor([size], dtype=torch.int32))
        queries_BK = torch.arange(0, model.config.queries, 10)[None]
        found = {
            "logits": prediction.logits[-1],
            "boxes": prediction.layers[-1].boxes_BTQ4,
            "masks": model.masks(prediction, -1, queries_BK),
        }
        for name, value in found.items():
            error = float(np.abs(value[0].numpy() - golden[f"{case}_{name}"]).max())
            entries.append(Entry(f"{case}_{name}", error, _ABSOLUTE_BOUND))
    return entries


def loss_case(model: MSSTSVIS) -> tuple[Prediction, list[Target]]:
    """The golden outputs of case C, and its instances.

    The case is two clips of two frames.
    """
    T, H, W = 2, 96, 128
    frames = tensor("frames_c", (4, 3, H, W)).unflatten(0, (2, T))
    targets = []
    for clip, labels in enumerate(([3, 7], [3])):
        u = tensor(f"boxes_c{clip}", (len(labels) * T, 4)).sigmoid()
        boxes = torch.stack((0.3 + 0.4 * u[:, 0], 0.3 + 0.4 * u[:, 1], 0.2 + 0.2 * u[:, 2], 0.2 + 0.2 * u[:, 3]), 1)
        boxes_nT4 = boxes.view(len(labels), T, 4)
        masks_nTHW = torch.zeros(len(labels), T, H, W, dtype=torch.bool)
        for n in range(len(labels)):
            for t in range(T):
                cx, cy, w, h = boxes_nT4[n, t].tolist()
                rows = slice(int((cy - h / 2) * H), int((cy + h / 2) * H))
                columns = slice(int((cx - w / 2) * W), int((cx + w / 2) * W))
                masks_nTHW[n, t, rows, columns] = True
        present = torch.ones(len(labels), T, dtype=torch.bool)
        targets.append(Target(torch.tensor(labels), boxes_nT4, present, masks_nTHW))
    return model(frames, torch.tensor([[H, W]] * 2, dtype=torch.int32)), targets


def absent_case(model: MSSTSVIS) -> tuple[Prediction, list[Target]]:
    """Case C with one instance absent from a frame.

    The first instance of the first clip has an empty box and mask in the second frame.
    """
    prediction, targets = loss_case(model)
    first = targets[0]
    first.boxes_nT4[0, 1], first.masks_nTHW[0, 1], first.present_nT[0, 1] = 0, False, False
    return prediction, targets


def _losses(model: MSSTSVIS, golden: dict[str, np.ndarray]) -> list[Entry]:
    prediction, targets = loss_case(model)
    entries = []
    for name, term in Criterion()(model, prediction, targets).terms.items():
        true = float(golden[f"c_{name}"])
        entries.append(Entry(f"c_{name}", abs(float(term) - true) / abs(true), _RELATIVE_BOUND))
    return entries


@torch.no_grad()
def compare(golden: dict[str, np.ndarray], keys: dict[str, list[int]], backbone: str) -> list[Entry]:
    """Every output and loss of the golden file against ours.

    One that we do not compute has an error of NaN.
    """
    model = golden_model(keys, backbone)
    entries = _predictions(model, golden) + _losses(model, golden)
    unknown = sorted(golden.keys() - {entry.name for entry in entries})
    return entries + [Entry(name, float("nan"), _ABSOLUTE_BOUND) for name in unknown if not name.startswith(_LOGGED)]


def read_keys(file: Path, backbone: str) -> dict[str, list[int]]:
    """The released model's names and shapes.

    They are in NAME.keys.json beside the golden file, else in the copy beside the tests.
    """
    name = f"{backbone}.keys.json"
    beside = file.parent / name
    return json.loads((beside if beside.is_file() else _KEYS / name).read_text())


def main() -> int:
    """Prints the comparison of one golden file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("file", type=Path, help="golden values")
    parser.add_argument("--backbone", default="resnet50")
    arguments = parser.parse_args()
    try:
        keys = read_keys(arguments.file, arguments.backbone)
    except FileNotFoundError:
        parser.error(f"no {arguments.backbone}.keys.json beside {arguments.file} nor in {_KEYS}")
    golden = dict(np.load(arguments.file))
    entries = compare(golden, keys, arguments.backbone)
    print("not compared, because not a loss:", ", ".join(sorted(n for n in golden if n.startswith(_LOGGED))) or "none")
    for entry in entries:
        print(f"{entry.name:16} {entry.error:.2e}  (≤ {entry.bound:.0e})  {'ok' if entry.holds else 'ABOVE ITS BOUND'}")
    return 0 if all(entry.holds for entry in entries) else 1


if __name__ == "__main__":
    sys.exit(main())
