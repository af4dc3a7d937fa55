"""Average precision on held-out videos in the course of a training."""

from __future__ import annotations

import csv
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from mssts.categories import difference
from mssts.data.videos import read_videos
from mssts.errors import MsstsError
from mssts.evaluation import Metrics, evaluate
from mssts.files import atomic_path, read_json
from mssts.manifest import Category
from mssts.prediction.predictor import PredictOptions, predict
from mssts.prediction.results import RESULTS
from mssts.segmenters.local import LocalSegmenter
from mssts.training.distributed import gather, rank, world_size

BEST_FILE = "best.safetensors"
VALIDATION_FILE = "validation.csv"
_COLUMNS = ("epoch", "step", "ap", "ap50", "ap75", "ar1", "ar10", "seconds")
_FOLDER = "validation"


class Validation:
    """Predicts held-out videos as `mssts predict` does, and scores them.

    Writes `validation.csv`, a row an epoch, and the checkpoint of the best epoch, `best.safetensors`. Each process of a
    group predicts its share of the videos.
    """

    def __init__(self, data: Path, categories: Sequence[Category], out: Path) -> None:
        """Reads the videos' file.

        Args:
            data: a YouTube-VIS or COCO-video file, or the folder of its `instances.json`.
            categories: the classes of the model.
            out: the run folder.

        Raises:
            MsstsError: the file is broken, lacks annotations or an image, or has other classes.
        """
        self._data = data / "instances.json" if data.is_dir() else data
        self._categories, self._out = tuple(categories), out
        self._rows: list[dict[str, str]] = []
        videos = read_videos(self._data)
        videos.check_images()
        if not videos.tracks:
            raise MsstsError(f"--val {self._data}: has no annotations; expected a split with them")
        changed = difference(videos.categories, self._categories)
        if changed:
            raise MsstsError(
                f"--val {self._data}: has other classes than the training data ({changed}); expected the same ids and "
                "names"
            )

    @property
    def best(self) -> tuple[int, float] | None:
        """Epoch (from 1) and AP of the best epoch, the first of equal ones."""
        if not self._rows:
            return None
        best = max(self._rows, key=lambda row: float(row["ap"]))
        return int(best["epoch"]), float(best["ap"])

    def start(self, epochs: int) -> None:
        """Takes over the rows of the first `epochs` epochs, which a resumed run has done."""
        path = self._out / VALIDATION_FILE
        self._rows = []
        if epochs and path.exists():
            with open(path, newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            self._rows = [row for row in rows if int(row["epoch"]) <= epochs]

    def score(self, epoch: int, step: int, write: Callable[[Path], None]) -> Metrics | None:
        """Scores the checkpoint that `write` writes, adds the row, and keeps the best.

        All processes call it. The figures are those of rank 0, None on the others.
        """
        started = time.perf_counter()
        share = rank(), world_size()
        folder = self._out / _FOLDER / f"shard-{share[0]}-of-{share[1]}"
        folder.mkdir(parents=True, exist_ok=True)
        # Each process writes a checkpoint of its own, as machines need not share a folder.
        checkpoint = folder / "model.safetensors"
        write(checkpoint)
        with LocalSegmenter(checkpoint, torch.get_num_threads()) as segmenter:
            predict(self._data, segmenter, folder, PredictOptions(pictures=0, shard=share), progress=False)
        parts = gather(read_json(folder / RESULTS))
        if rank():
            return None
        metrics = evaluate(self._data, [entry for part in parts for entry in part])
        figures = {name: f"{getattr(metrics, name):.6f}" for name in _COLUMNS[2:-1]}
        seconds = f"{time.perf_counter() - started:.1f}"
        best = self.best
        self._rows.append({"epoch": str(epoch), "step": str(step), **figures, "seconds": seconds})
        if best is None or metrics.ap > best[1]:
            with atomic_path(self._out / BEST_FILE) as temporary:
                shutil.copyfile(checkpoint, temporary)
        with (
            atomic_path(self._out / VALIDATION_FILE) as temporary,
            open(temporary, "w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, _COLUMNS)
            writer.writeheader()
            writer.writerows(self._rows)
        return metrics

    def line(self) -> str:
        """The last row for people."""
        row, best = self._rows[-1], self.best
        assert best is not None
        beside = "the best so far" if best[0] == int(row["epoch"]) else f"best {best[1]:.3f} of epoch {best[0]}"
        return f"epoch {row['epoch']}: AP {float(row['ap']):.3f}, AP75 {float(row['ap75']):.3f} ({beside})"
