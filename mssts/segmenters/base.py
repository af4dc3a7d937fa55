"""Instances of one clip, and the interface of what finds them.

Letters: N instances, T frames, H and W of a frame.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from pycocotools import mask as coco_mask

from mssts.contract import LIMITS, Limits
from mssts.errors import MsstsError
from mssts.manifest import Category, Manifest

if TYPE_CHECKING:
    import supervision
    from typing_extensions import Self


@dataclass(frozen=True)
class Instances:
    """N instances found in a clip of T frames, best first.

    Attributes:
        scores: float32 [N], probabilities.
        labels: int32 [N], indices into `categories`.
        boxes: float32 [N, T, 4], x1 y1 x2 y2 in pixels of the frames that were given.
        rles: `rles[n][t]` is instance n's mask in frame t as a COCO compressed run-length string, None where it is
            not visible.
        size: height and width of the frames.
        categories: the classes that the model knows.
    """

    scores: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray
    rles: tuple[tuple[bytes | None, ...], ...]
    size: tuple[int, int]
    categories: tuple[Category, ...] = ()

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def names(self) -> list[str]:
        """The class name of each instance."""
        return [self.categories[label].name for label in self.labels.tolist()]

    def masks(self) -> np.ndarray:
        """The masks, bool [N, T, H, W], where N is 0 if nothing was found.

        A frame of 1280×720 takes 0.9 MB an instance. `rles` holds the same in a few hundred bytes.
        """
        masks_NTHW = np.zeros((*self.boxes.shape[:2], *self.size), bool)
        for n, rles in enumerate(self.rles):
            for t, rle in enumerate(rles):
                if rle is not None:
                    masks_NTHW[n, t] = _decode(rle, self.size)
        return masks_NTHW

    def to_supervision(self, frame: int) -> supervision.Detections:
        """The instances visible in one frame, for the package `supervision`.

        Boxes, masks, scores, class ids (the categories'), class names (`data["class_name"]`) and tracker ids. A tracker
        id is the instance's position in this clip, counted from 1, and so is the same in all frames of the clip.

        Args:
            frame: from 0 to T − 1, or negative from the end, as an index of a list.

        Raises:
            MsstsError: the package is not installed, or there is no such frame.
        """
        try:
            import supervision
        except ImportError:
            raise MsstsError("supervision is not installed: `pip install 'mssts[supervision]'`") from None
        frames = self.boxes.shape[1]
        if not -frames <= frame < frames:
            raise MsstsError(f"frame {frame} of a clip of {frames}; expected 0 to {frames - 1}")
        visible = [n for n, rles in enumerate(self.rles) if rles[frame] is not None]
        if not visible:
            return supervision.Detections.empty()
        kept = [self.categories[label] for label in self.labels[visible].tolist()]
        return supervision.Detections(
            xyxy=self.boxes[visible, frame],
            mask=np.stack([_decode(self.rles[n][frame], self.size) for n in visible]),
            confidence=self.scores[visible],
            class_id=np.array([category.id for category in kept]),
            tracker_id=np.array(visible) + 1,
            data={"class_name": np.array([category.name for category in kept])},
        )


@dataclass(frozen=True)
class ServerHealth:
    """Whether a server can take clips.

    Attributes:
        name: its host and port.
        is_ready: it answers, and its models are loaded.
    """

    name: str
    is_ready: bool


def _decode(rle: bytes | None, size: tuple[int, int]) -> np.ndarray:
    """The mask, bool [H, W], of a run-length string."""
    return coco_mask.decode({"size": list(size), "counts": rle}).astype(bool)


class Segmenter(ABC):
    """Finds the instances of one clip. A context manager, which closes it at the end."""

    @property
    @abstractmethod
    def manifest(self) -> Manifest:
        """The manifest of the engine behind it: classes, window, input sizes, parity."""

    @abstractmethod
    def segment(self, frames_THWC: np.ndarray | Sequence[bytes], score_threshold: float = 0.0) -> Instances:
        """Finds the instances of a clip.

        Args:
            frames_THWC: RGB uint8 [T, H, W, 3], or T encoded JPEGs or PNGs.
            score_threshold: instances whose score is below are left out.

        Raises:
            MsstsError: the clip was refused (corrupt, over `limits`) or the engine failed.
        """

    def segment_many(
        self, clips: Iterable[np.ndarray | Sequence[bytes]], score_threshold: float = 0.0
    ) -> Iterator[Instances]:
        """Finds the instances of each clip, in order, maybe of several clips at once.

        Raises:
            MsstsError: as `segment`, in the place of the clip that failed; no later clip has a result then.
        """
        for clip in clips:
            yield self.segment(clip, score_threshold)

    @property
    def limits(self) -> Limits:
        """The most that one clip may hold."""
        return LIMITS

    @property
    def in_flight(self) -> int:
        """Clips that it works on at once if several threads call `segment`."""
        return 1

    def describe(self) -> dict[str, Any]:
        """Name, version and precision of what runs the engine, as a JSON value."""
        return {"name": type(self).__name__, "precision": self.manifest.precision}

    def stage_seconds(self) -> dict[str, float]:
        """Seconds spent so far in each stage of `segment`.

        The time between two calls is their difference.

        Empty for a segmenter that has no stages.
        """
        return {}

    def health(self) -> tuple[ServerHealth, ...]:
        """The state of each server that it uses, asked now.

        Empty for a segmenter without servers.
        """
        return ()

    def close(self) -> None:  # noqa: B027  (a segmenter may hold nothing)
        """Frees what it holds."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
