"""Results of a stream: a frame with the tracks that are visible in it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mssts import masks
from mssts.manifest import Category
from mssts.media.video import Frame
from mssts.prediction.tracking import TrackedInstance


@dataclass(frozen=True)
class FrameInstance:
    """An object in one frame.

    Attributes:
        track: its identity, from 1 on in the order of appearance, never used again for another object.
        category_id: of the engine's categories.
        name: of that category.
        score: of the track so far, 0 to 1.
        bbox: x and y of the upper left corner, width and height, in pixels.
        segmentation: the mask as COCO run lengths: `size` (height, width) and `counts`.
    """

    track: int
    category_id: int
    name: str
    score: float
    bbox: tuple[float, float, float, float]
    segmentation: dict[str, Any]

    @property
    def mask(self) -> np.ndarray:
        """The mask, bool [H, W]."""
        height, width = self.segmentation["size"]
        return masks.decode(self.segmentation["counts"].encode("ascii"), (height, width))


@dataclass(frozen=True)
class FrameResult:
    """The final result of one frame.

    Attributes:
        frame: its number in the source, from 0 on. Frames that were dropped are counted, and have no result.
        time: seconds since the first frame by the source's clock, None where the source has none.
        instances: visible ones, best first.
        picture: the frame itself, if the stream was asked for it.
    """

    frame: int
    time: float | None
    instances: tuple[FrameInstance, ...]
    picture: Frame | None = field(default=None, repr=False, compare=False)

    @property
    def image(self) -> np.ndarray | None:
        """The frame's pixels, RGB uint8 [H, W, 3].

        None unless the stream was asked for them.
        """
        return None if self.picture is None else self.picture.rgb_HWC

    def to_json(self) -> dict[str, Any]:
        """The fields of a JSONL line, see docs/streams.md."""
        return {
            "frame": self.frame,
            "time": self.time,
            "instances": [
                {
                    "track": item.track,
                    "category_id": item.category_id,
                    "name": item.name,
                    "score": item.score,
                    "bbox": list(item.bbox),
                    "segmentation": item.segmentation,
                }
                for item in self.instances
            ],
        }

    def to_line(self) -> str:
        """The JSONL line, with its end."""
        return json.dumps(self.to_json(), ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n"


@dataclass(frozen=True)
class StreamFigures:
    """Figures of a running stream at one moment.

    Attributes:
        frames: that have a result.
        dropped: that have none, as the engine was slower than the source.
        windows: that the engine got.
        reconnections: to a source that was lost.
        frames_per_second: results over the last seconds, 0 before there are two.
        latency: median seconds from a frame's arrival to its result over the last frames, None before the first.
    """

    frames: int = 0
    dropped: int = 0
    windows: int = 0
    reconnections: int = 0
    frames_per_second: float = 0.0
    latency: float | None = None


def frame_instances(
    tracked: Sequence[TrackedInstance], size: tuple[int, int], categories: Sequence[Category], score_threshold: float
) -> tuple[FrameInstance, ...]:
    """The tracks of a frame whose score is not below the threshold."""
    return tuple(_instance(item, size, categories[item.label]) for item in tracked if item.score >= score_threshold)


def _instance(item: TrackedInstance, size: tuple[int, int], category: Category) -> FrameInstance:
    x1, y1, x2, y2 = item.box.tolist()
    segmentation = masks.to_json(item.rle, size)
    assert segmentation is not None
    return FrameInstance(
        track=item.track_id,
        category_id=category.id,
        name=category.name,
        score=round(item.score, 4),
        bbox=(round(x1, 2), round(y1, 2), round(x2 - x1, 2), round(y2 - y1, 2)),
        segmentation=segmentation,
    )
