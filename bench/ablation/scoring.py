"""The figures of one run, from its predictions and its log."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from mssts.evaluation import evaluate
from mssts.evaluation.association import association
from mssts.files import read_json

_LAST = 100  # steps over which the last losses are averaged
# One frame does not tell these classes of MovingShapes apart.
_BY_MOTION = ("clover", "spinner", "pulser")


def scored(ground_truth: Path, results: Path) -> dict[str, Any]:
    """Average precision as a whole and by difficulty, and the association part."""
    truth, entries = read_json(ground_truth), read_json(results)
    metrics = evaluate(truth, entries)
    linked = association(truth, entries)
    by_motion = [category.ap for category in metrics.per_category if category.name in _BY_MOTION and category.ap >= 0]
    scenarios = sorted({video.get("scenario", "") for video in truth["videos"]} - {""})
    return {
        "ap": metrics.ap,
        "ap50": metrics.ap50,
        "ap75": metrics.ap75,
        "ar10": metrics.ar10,
        "ap_oracle_classes": linked.ap,
        "ap75_oracle_classes": linked.ap75,
        "identity_switches": linked.identity_switches,
        "matched_frames": linked.matched_frames,
        "object_frames": linked.object_frames,
        "ap_interrupted": evaluate(interrupted_alone(truth), entries).ap,
        "ap_motion_classes": sum(by_motion) / len(by_motion) if by_motion else None,
        "ap_scenarios": {name: _of_scenario(truth, entries, name) for name in scenarios},
    }


def interrupted_alone(truth: dict[str, Any]) -> dict[str, Any]:
    """The ground truth of objects that disappear and come back.

    Others are ignored.

    What is ignored is a crowd in COCO's terms: finding it is neither right nor wrong.
    """
    annotations = [
        {**entry, "iscrowd": int(not _is_interrupted(entry["segmentations"]))} for entry in truth["annotations"]
    ]
    return {**truth, "annotations": annotations}


def _is_interrupted(segmentations: list[Any]) -> bool:
    shown = [t for t, mask in enumerate(segmentations) if mask is not None]
    return bool(shown) and shown[-1] - shown[0] + 1 > len(shown)


def _of_scenario(truth: dict[str, Any], entries: list[Any], name: str) -> float:
    videos = [video for video in truth["videos"] if video["scenario"] == name]
    ids = {video["id"] for video in videos}
    annotations = [entry for entry in truth["annotations"] if entry["video_id"] in ids]
    part = {**truth, "videos": videos, "annotations": annotations}
    return evaluate(part, [entry for entry in entries if entry["video_id"] in ids]).ap


def last_losses(metrics: Path) -> dict[str, Any]:
    """Means over the last 100 steps of a run's `metrics.csv`, and its number of steps."""
    with open(metrics, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    chosen = ("loss", "loss_ce", "loss_mask", "loss_dice", "discriminator_accuracy", "adversarial_share")
    means = {}
    for name in chosen:
        values = [float(row[name]) for row in rows[-_LAST:] if row.get(name)]
        if values:
            means[name] = sum(values) / len(values)
    return {"steps": int(rows[-1]["step"]), "last_losses": means}
