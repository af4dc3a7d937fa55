"""A small COCO file, and comparisons of clips."""

from __future__ import annotations

import json
from dataclasses import astuple
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mssts.data.clips import Clip
from mssts.manifest import Category

HEIGHT, WIDTH = 120, 160
# Pixels 40…69 × 60…99; its outline as COCO draws it.

SQUARE = [60, 40, 100, 40, 100, 70, 60, 70]
CORNER = [0, 0, 8, 0, 8, 8, 0, 8]

# COCO's own ids of the categories that these tests name.
COCO_IDS = {
    "person": 1, "bicycle": 2, "car": 3, "motorcycle": 4, "airplane": 5, "train": 7, "truck": 8, "boat": 9, "bird": 16,
    "cat": 17, "dog": 18, "horse": 19, "cow": 21, "elephant": 22, "bear": 23, "zebra": 24, "giraffe": 25, "frisbee": 34,
    "snowboard": 36, "skateboard": 41, "surfboard": 42, "tennis racket": 43, "chair": 62, "mouse": 74,
}  # fmt: skip


def annotation(identity: int, image: int, category: str, polygon: list[float], **more: Any) -> dict[str, Any]:
    entry = {"id": identity, "image_id": image, "category_id": COCO_IDS[category], "segmentation": [polygon]}
    return {**entry, **more}


def content() -> dict[str, Any]:
    return {
        "images": [
            {"id": 30, "file_name": "a.png", "height": HEIGHT, "width": WIDTH},
            {"id": 10, "file_name": "b.png", "height": HEIGHT, "width": WIDTH},
            {"id": 20, "file_name": "b.png", "height": HEIGHT, "width": WIDTH},
        ],
        "categories": [{"id": identity, "name": name} for name, identity in COCO_IDS.items()],
        "annotations": [
            annotation(1, 30, "car", SQUARE, bbox=[60, 40, 40, 30], area=1200, iscrowd=0),
            annotation(2, 10, "chair", CORNER),
            annotation(3, 10, "dog", SQUARE),
            annotation(4, 20, "chair", SQUARE),
            annotation(5, 20, "mouse", SQUARE),
        ],
    }


def write(folder: Path, value: Any) -> Path:
    """The file, and images on which a red square is where `SQUARE` says."""
    image = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    image[40:70, 60:100] = (20, 20, 250)  # OpenCV writes BGR
    for name in ("a.png", "b.png"):
        cv2.imwrite(str(folder / name), image)
    path = folder / "instances.json"
    path.write_text(json.dumps(value))
    return path


def youtube_vis(names: tuple[str, ...]) -> list[Category]:
    return [Category(i, name) for i, name in enumerate(names, 1)]


def equal(a: Clip, b: Clip) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(astuple(a), astuple(b), strict=True))


# Reading
