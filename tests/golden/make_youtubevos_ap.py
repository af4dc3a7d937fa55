"""Makes `youtubevos_ap.json`: random evaluation problems, with the figures the youtubevos fork of the COCO API gives.

    git clone https://github.com/youtubevos/cocoapi && python tests/golden/make_youtubevos_ap.py cocoapi
    python tests/golden/make_youtubevos_ap.py cocoapi --compare 1000     compares mssts with the fork on more problems

The figures are those of its commit f3f9948, of 2019: what numpy and Python have dropped since is put back for it.
"""

from __future__ import annotations

import argparse
import builtins
import contextlib
import copy
import importlib
import io
import json
import random
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

PROBLEMS = 60
CATEGORY_IDS = range(1, 12)


def load_fork(folder: Path) -> tuple[Any, Any]:
    """The fork's YTVOS and YTVOSeval, on the installed pycocotools.mask (the fork's own needs compiling)."""
    linspace = np.linspace
    np.linspace = lambda start, stop, num, **options: linspace(start, stop, int(num), **options)  # type: ignore[assignment]
    np.float = float  # type: ignore[attr-defined]
    builtins.unicode = str  # type: ignore[attr-defined]
    package = types.ModuleType("youtubevos")
    package.__path__ = [str(folder / "PythonAPI" / "pycocotools")]
    sys.modules["youtubevos"] = package
    sys.modules["youtubevos.mask"] = coco_mask
    package.mask = coco_mask  # type: ignore[attr-defined]
    return importlib.import_module("youtubevos.ytvos").YTVOS, importlib.import_module("youtubevos.ytvoseval").YTVOSeval


def official_figures(fork: tuple[Any, Any], ground_truth: dict[str, Any], results: list[Any]) -> dict[str, list[float]]:
    """The fork's twelve figures and, as they follow from its precision array, AP by category."""
    ytvos, ytvos_eval = fork
    with contextlib.redirect_stdout(io.StringIO()):
        truth = ytvos()
        truth.dataset = copy.deepcopy(ground_truth)
        truth.createIndex()
        evaluator = ytvos_eval(truth, truth.loadRes(copy.deepcopy(results)), "segm")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    by_category = np.moveaxis(evaluator.eval["precision"][:, :, :, 0, -1], 2, 0)
    means = [float(values[values > -1].mean()) if (values > -1).any() else -1.0 for values in by_category]
    return {"stats": evaluator.stats.tolist(), "category_ap": means}


class ProblemMaker:
    """A random problem, full of what makes evaluators differ: ties, crowds, empty masks, areas at a boundary."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.numpy = np.random.default_rng(seed)
        self.categories = self.random.sample(CATEGORY_IDS, self.random.randint(1, 4))
        self.annotations: list[dict[str, Any]] = []
        self.results: list[dict[str, Any]] = []

    def happens(self, probability: float) -> bool:
        return self.random.random() < probability

    def make(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Ground truth and results."""
        # Noise in small frames gives every IoU; rectangles in large ones reach the size ranges.
        self.is_large = self.happens(0.5)
        videos = []
        for video_id in self.random.sample(range(1, 99), self.random.randint(1, 4)):
            # Tall and narrow: run lengths go down the columns, so the file stays small.
            heights, widths = ((1100, 1300), (64, 70)) if self.is_large else ((4, 9), (4, 9))
            self.size = self.random.randint(*heights), self.random.randint(*widths)
            frames = self.random.randint(1, 4)
            names = [f"{video_id}/{t}.jpg" for t in range(frames)]
            height, width = self.size
            videos.append({"id": video_id, "height": height, "width": width, "length": frames, "file_names": names})
            self._fill_video(video_id, frames)
        for entries in (videos, self.annotations, self.results):
            self.random.shuffle(entries)
        self._break_rules()
        categories = [{"id": category_id, "name": f"class {category_id}"} for category_id in self.categories]
        return {"videos": videos, "categories": categories, "annotations": self.annotations}, self.results

    def _fill_video(self, video_id: int, frames: int) -> None:
        for _ in range(self.random.randint(0, 4)):
            gone = 1.0 if self.happens(0.08) else 0.25
            masks = [None if self.happens(gone) else self._mask() for _ in range(frames)]
            category_id = self.random.choice(self.categories)
            self._annotate(video_id, category_id, masks)
            for _ in range(self.random.choice([0, 1, 1, 2])):
                same = 0.85 if self.happens(0.85) else 0.0
                found = category_id if self.happens(same) else self.random.choice(self.categories)
                self._predict(video_id, found, [self._disturbed(mask) for mask in masks])
        for _ in range(self.random.randint(0, 2)):
            masks = [None if self.happens(0.4) else self._mask() for _ in range(frames)]
            self._predict(video_id, self.random.choice(self.categories), masks)
        if not self.is_large and self.happens(0.05):  # more than the 100 predictions that count
            masks = [self._mask(), *[None] * (frames - 1)]
            for _ in range(103):
                self._predict(video_id, self.categories[0], masks)

    def _mask(self) -> np.ndarray:
        height, width = self.size
        if not self.is_large:
            return self.numpy.random(self.size) < self.random.random()
        mask = np.zeros(self.size, bool)
        boundary = self.random.choice([128, 256, 256, 0])  # of the size ranges, met exactly
        if boundary:
            mask[3 : 3 + boundary**2 // 64, :64] = True
        else:
            top, left = self.random.randint(0, height // 2), self.random.randint(0, width // 2)
            mask[top : top + self.random.randint(1, height), left : left + self.random.randint(1, width)] = True
        return mask

    def _disturbed(self, mask: np.ndarray | None) -> np.ndarray | None:
        if mask is None:
            return self._mask() if self.happens(0.2) else None
        kind = self.random.choice(["same", "same", "same", "other", "other", "absent", "empty"])
        if kind == "absent":
            return None
        if kind == "other":
            shifted = np.roll(mask, self.random.randint(0, 60), axis=0)
            return shifted if self.is_large else mask ^ (self.numpy.random(self.size) < 0.15)
        return mask if kind == "same" else np.zeros(self.size, bool)

    def _annotate(self, video_id: int, category_id: int, masks: list[np.ndarray | None]) -> None:
        encode = _uncompressed if self.happens(0.1 if self.is_large else 0.5) else _compressed
        absent: Any = self.random.choice([None, None, {}, []])
        segmentations = [absent if mask is None else encode(mask) for mask in masks]
        areas = [None if mask is None else int(mask.sum()) for mask in masks]
        height, width = self.size
        if self.happens(0.1) and segmentations[0]:
            segmentations[0] = [[1.0, 1.0, width - 1.0, 1.0, width / 2, height - 2.0], [0, 0, 2.5, 0, 2.5, 3, 1, 2]]
        if self.happens(0.1):
            areas = [None if area is None else area * self.random.choice([0, 1, 2]) for area in areas]
        self.annotations.append(
            {
                "id": len(self.annotations) + 1,
                "video_id": video_id,
                "category_id": category_id,
                "iscrowd": int(self.happens(0.2)),
                "segmentations": segmentations,
                "areas": areas,
            }
        )

    def _predict(self, video_id: int, category_id: int, masks: list[np.ndarray | None]) -> None:
        score = self.random.choice([0.1, 0.5, 0.5, 0.9, 1, round(self.random.random(), 2)])
        segmentations = [None if mask is None else _compressed(mask) for mask in masks]
        self.results.append(
            {"video_id": video_id, "category_id": category_id, "score": score, "segmentations": segmentations}
        )

    def _break_rules(self) -> None:
        """What real files hold and no format allows; the fork gives figures all the same."""
        if self.annotations and self.happens(0.1):
            self.annotations[0]["id"] = 0
        if self.annotations and self.happens(0.1):
            self.annotations[-1][self.random.choice(["category_id", "video_id"])] = 777
        if self.happens(0.15):
            self.results[:1] = [{**entry, "category_id": 88} for entry in self.results[:1]]
        if self.happens(0.15):
            kept = [entry for entry in self.results if entry["category_id"] != self.categories[0]]
            self.results = kept or self.results
        if len(self.categories) > 1 and self.happens(0.1):
            self.categories.pop()


def _compressed(mask: np.ndarray) -> dict[str, Any]:
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(mask.shape), "counts": rle["counts"].decode()}


def _uncompressed(mask: np.ndarray) -> dict[str, Any]:
    pixels = mask.flatten(order="F").astype(np.int8)
    bounds = np.concatenate([[0], np.flatnonzero(np.diff(pixels)) + 1, [pixels.size]])
    counts = np.diff(bounds).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if pixels[0] else counts}


def problems(first_seed: int, count: int) -> list[tuple[int, dict[str, Any], list[Any]]]:
    """`count` problems with at least one prediction (the fork takes no fewer), with their seeds."""
    made: list[tuple[int, dict[str, Any], list[Any]]] = []
    seed = first_seed
    while len(made) < count:
        ground_truth, results = ProblemMaker(seed).make()
        if results:
            made.append((seed, ground_truth, results))
        seed += 1
    return made


def compare(fork: tuple[Any, Any], count: int) -> None:
    """Prints the largest difference between mssts and the fork."""
    from mssts.evaluation import evaluate

    worst = 0.0
    for seed, ground_truth, results in problems(10_000, count):
        official = official_figures(fork, ground_truth, results)
        ours = evaluate(ground_truth, results)
        figures = (ours.ap, ours.ap50, ours.ap75, ours.ap_small, ours.ap_medium, ours.ap_large, ours.ar1, ours.ar10)
        pairs = list(zip(figures, official["stats"][:8], strict=True))
        pairs += zip((category.ap for category in ours.per_category), official["category_ap"], strict=True)
        difference = max(abs(a - b) for a, b in pairs)
        if difference > 1e-9:
            print(f"seed {seed}: {difference}")
        worst = max(worst, difference)
    print(f"{count} problems, largest difference {worst:.3g}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fork", type=Path, help="a clone of github.com/youtubevos/cocoapi")
    parser.add_argument("--compare", type=int, metavar="N", help="compare on N further problems instead of writing")
    arguments = parser.parse_args()
    fork = load_fork(arguments.fork)
    if arguments.compare:
        compare(fork, arguments.compare)
        return
    entries = [
        {"seed": seed, "ground_truth": truth, "results": results, **official_figures(fork, truth, results)}
        for seed, truth, results in problems(0, PROBLEMS)
    ]
    lines = ",\n".join(json.dumps(entry, separators=(",", ":")) for entry in entries)
    path = Path(__file__).with_name("youtubevos_ap.json")
    path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    print(f"{path}: {len(entries)} problems, {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
