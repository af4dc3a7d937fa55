"""The gate on average precision: an engine against the one it is made from."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mssts.artefact import is_checkpoint
from mssts.categories import map_by_name
from mssts.data.videos import read_youtube_vis_value
from mssts.errors import CheckFailed, MsstsError
from mssts.evaluation import evaluate
from mssts.evaluation.tracks import read_ground_truth
from mssts.files import sha256
from mssts.manifest import Category, Manifest
from mssts.media.orientation import Exif
from mssts.media.sources import open_source
from mssts.prediction.predictor import PredictOptions, predict
from mssts.prediction.results import RESULTS
from mssts.runners import AUTO
from mssts.segmenters.base import Segmenter
from mssts.segmenters.local import LocalSegmenter

NOT_MEASURED = "not measured here"
MAX_DROP = 0.005


@dataclass(frozen=True)
class Scored:
    """A model that is scored.

    `name` stands for its AP in reports."""

    name: str
    path: Path
    runner: str = AUTO


@dataclass(frozen=True)
class ApGate:
    """The bound on the AP that an engine may lose.

    Attributes:
        data: the JSON of a data set with ground truth.
        max_drop: in AP, 0…1.
        exif: as `mssts.media.sources.open_source` takes it.
    """

    data: Path
    max_drop: float = MAX_DROP
    exif: Exif | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.max_drop <= 1:
            raise MsstsError(f"--max-ap-drop is {100 * self.max_drop:g}; expected 0 to 100 points of AP")

    def check_data(self, categories: Sequence[Category]) -> None:
        """Fails early if the data cannot score these categories.

        Raises:
            MsstsError: the data or their images are absent or broken, or have no object of these categories.
        """
        open_source(self.data, self.exif)
        truth = read_ground_truth(read_youtube_vis_value(self.data), str(self.data))
        annotated = {track.category_id for track in truth.tracks if not track.is_crowd}
        if not annotated:
            raise MsstsError(
                f"{self.data}: has no annotated objects, so there is no AP; expected a set with ground truth"
            )
        mapped = map_by_name(categories, truth.categories, str(self.data))
        if not annotated & {category.id for category in mapped.by_label if category is not None}:
            raise MsstsError(
                f"{self.data}: annotates no category of the model ({', '.join(c.name for c in categories[:5])}, …), so "
                "its AP tells nothing; expected a set with classes of the model's names"
            )

    def unmeasured(self, reason: str) -> dict[str, Any]:
        """The manifest's checks where AP cannot be measured.

        `reason` begins with `NOT_MEASURED`."""
        return {"ap_reason": reason, **self._data()}

    def measure(self, reference: Scored, candidate: Scored, hint: str) -> tuple[dict[str, Any], list[Any]]:
        """AP of both models for the manifest's checks, and descriptions of what ran.

        Closes the gate if too much is lost.

        The checks are those of `unmeasured` where no runner of this machine takes the precision of one of them.

        Args:
            reference: what the candidate is made from.
            candidate: what is to be written.
            hint: what to do if AP falls by too much, as the beginning of a sentence.

        Raises:
            MsstsError: the data or an engine are broken.
            CheckFailed: AP drops by more than `max_drop`.
        """
        for model in (reference, candidate):
            reason = _why_not_here(model)
            if reason:
                return self.unmeasured(f"{NOT_MEASURED}: {reason}"), []
        ap: dict[str, float] = {}
        ran: list[Any] = []
        for model in (reference, candidate):
            with LocalSegmenter(model.path, runner=model.runner) as segmenter:
                ap[model.name] = average_precision(segmenter, self.data, self.exif)
                ran.append(segmenter.describe())
        before, after = ap[reference.name], ap[candidate.name]
        if not before - after <= self.max_drop:
            raise CheckFailed(
                f"AP on {self.data} drops from {100 * before:.2f} to {100 * after:.2f}, by more than "
                f"{100 * self.max_drop:g}; nothing was written. {hint}, or allow it with --max-ap-drop"
            )
        runners = {name: f"{found['name']} {found['version']}" for name, found in zip(ap, ran, strict=True)}
        return {"ap": ap, "ap_runners": runners, **self._data()}, ran

    def has_measured(self, checks: dict[str, Any]) -> bool:
        """Whether a manifest's checks hold a passing AP on the same data."""
        ap = list(checks.get("ap", {}).values())
        return self.is_of(checks) and len(ap) == 2 and ap[0] - ap[1] <= self.max_drop

    def is_of(self, checks: dict[str, Any]) -> bool:
        """Whether a manifest's checks are of the same data, measured or not."""
        same_frames = checks.get("ap_exif") == self.exif
        return same_frames and self.data.is_file() and checks.get("ap_data_sha256") == sha256(self.data)

    def _data(self) -> dict[str, Any]:
        # Data sets tend to have one name, instances.json: the hash tells them apart.
        found = {"ap_data": self.data.name, "ap_data_sha256": sha256(self.data), "ap_max_drop": self.max_drop}
        return {**found, **({"ap_exif": self.exif} if self.exif else {})}


def average_precision(segmenter: Segmenter, data: Path, exif: Exif | None = None) -> float:
    """YouTube-VIS AP (0…1) of an engine on a data set.

    Raises:
        MsstsError: the data or the engine are broken, or the data have no ground truth.
    """
    with tempfile.TemporaryDirectory(prefix="mssts-ap-") as results:
        predict(open_source(data, exif), segmenter, Path(results), PredictOptions(pictures=0))
        ap = evaluate(data, Path(results) / RESULTS).ap
    if ap < 0:
        raise MsstsError(f"{data}: has no annotated objects, so there is no AP; expected a set with ground truth")
    return ap


def ap_lines(checks: dict[str, Any]) -> list[str]:
    """A manifest's AP as lines for people, none if it was not asked for."""
    if "ap_reason" in checks:
        return [f"AP on {checks['ap_data']}: {checks['ap_reason']}"]
    if "ap" not in checks:
        return []
    scores = ", ".join(f"{100 * ap:.2f} in {name}" for name, ap in checks["ap"].items())
    runners = " and ".join(dict.fromkeys(checks["ap_runners"].values()))
    before, after = checks["ap"].values()
    lines = [
        f"AP on {checks['ap_data']}: {scores}; difference {100 * (after - before):+.2f} "
        f"(≥ {-100 * checks['ap_max_drop']:g}); run by {runners}"
    ]
    if before == 0:
        lines.append("note: an AP of 0 cannot fall, so these data tell nothing of this model")
    return lines


def _why_not_here(model: Scored) -> str:
    """The reason why no runner here takes a file's precision, empty if one does."""
    if is_checkpoint(model.path):
        return ""
    manifest = Manifest.read(model.path)
    if manifest.precision == "fp32" or not manifest.artefact.endswith(".onnx"):
        return ""  # whatever fails then is an error
    try:
        with LocalSegmenter(model.path, runner=model.runner) as segmenter:
            segmenter.segment(np.zeros((1, 64, 64, 3), np.uint8))  # some compile only now
    except MsstsError as error:
        reason = str(error).replace(f"{model.path}/", "")  # a temporary folder's name tells nothing
        return f"no runner here takes {manifest.precision} ({reason})"
    return ""
