"""Exports of tracks frame by frame: MOTS text and COCO JSON.

`predict` and `stream` write through what is here. Frames come one by one and go to the disk, so that memory does not
grow with their number.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from mssts import masks
from mssts.errors import MsstsError
from mssts.files import atomic_path
from mssts.manifest import Category
from mssts.media.video import Video
from mssts.prediction.tracking import Track

if TYPE_CHECKING:
    from typing_extensions import Self

FORMATS = ("ytvis", "mots", "coco")
COCO_FILE = "coco.json"

_MOTS_CLASS = 1000  # a MOTS id is class × 1000 + number of the object


@dataclass(frozen=True)
class VisibleTrack:
    """A track in one frame, in a data set's categories.

    Attributes:
        track: its id in its video, from 1.
        category_id: of its class.
        score: of the track.
        rle: its mask as COCO compressed run lengths.
    """

    track: int
    category_id: int
    score: float
    rle: bytes


def visible_tracks(
    tracks: Iterable[Track], frames: int, categories: Sequence[Category | None], score_threshold: float = 0.0
) -> list[list[VisibleTrack]]:
    """The tracks of one video by frame, each in its best category, best first.

    Args:
        tracks: as `Linker.tracks` returns them.
        frames: of the video.
        categories: by label. Tracks without one are left out.
        score_threshold: tracks whose score is below are left out.
    """
    named = [(track, found[0]) for track in tracks if (found := track.in_categories(categories))]
    visible: list[list[VisibleTrack]] = [[] for _ in range(frames)]
    for track, (category, score) in sorted(named, key=lambda item: -item[1][1]):
        for instances, rle in zip(visible, track.rles, strict=True):
            if rle is not None and score >= score_threshold:
                instances.append(VisibleTrack(track.id, category.id, score, rle))
    return visible


class MotsWriter:
    """Context manager that writes one video as MOTS text, a line an object and frame.

    A line is `frame id class height width rle`, as MOTSChallenge has it and TrackEval reads it: frames count from 1, an
    id is class × 1000 + the object's number within its class, from 1. Masks of one frame may not overlap there, so a
    pixel that several claim goes to the one with the best score. MOTS knows no scores: give it what is to count.

    The file appears when the block ends well.
    """

    def __init__(self, path: Path | str) -> None:
        self._path = Path(path)
        self._ids: dict[int, int] = {}
        self._numbers: dict[int, int] = {}  # objects so far, by class
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        temporary = self._stack.enter_context(atomic_path(self._path))
        self._file: IO[str] = self._stack.enter_context(temporary.open("w", encoding="ascii"))
        return self

    def add(self, frame: int, size: masks.Size, instances: Sequence[VisibleTrack]) -> None:
        """Writes a frame.

        Args:
            frame: its index, from 0.
            size: its height and width.
            instances: what is visible in it.

        Raises:
            MsstsError: it is the 1000th object of its class, which MOTS has no number for.
        """
        ordered = sorted(instances, key=lambda instance: -instance.score)
        disjoint = masks.without_overlap([instance.rle for instance in ordered], size)
        for instance, rle in zip(ordered, disjoint, strict=True):
            if rle is not None:
                identity = self._identity(instance)
                self._file.write(
                    f"{frame + 1} {identity} {instance.category_id} {size[0]} {size[1]} {rle.decode('ascii')}\n"
                )

    def _identity(self, instance: VisibleTrack) -> int:
        if instance.track not in self._ids:
            number = self._numbers.get(instance.category_id, 0) + 1
            if number >= _MOTS_CLASS:
                raise MsstsError(
                    f"{self._path}: class {instance.category_id} has more than {_MOTS_CLASS - 1} objects, which MOTS "
                    "has no ids for; export shorter videos, raise the score threshold, or take the format coco"
                )
            self._numbers[instance.category_id] = number
            self._ids[instance.track] = instance.category_id * _MOTS_CLASS + number
        return self._ids[instance.track]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, traceback)


class CocoWriter:
    """Context manager that writes videos as one COCO JSON.

    An image is a frame, an annotation an object in it. pycocotools reads it. Beside COCO's own fields an image has
    `video_id` and `frame_id` (from 0), an annotation `track_id` and `score`, so it is a COCO-video file too.
    `file_name` is `VIDEO/000000.jpg`, which need not exist.

    The file appears when the block ends well. Until then annotations lie in a temporary file, not in memory.
    """

    def __init__(self, path: Path | str, categories: Sequence[Category]) -> None:
        self._path = Path(path)
        self._categories = [asdict(category) for category in categories]
        self._videos: list[dict[str, Any]] = []
        self._images = self._annotations = 0
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        temporary = self._stack.enter_context(atomic_path(self._path))
        self._file: IO[str] = self._stack.enter_context(temporary.open("w", encoding="ascii"))
        # Images come in the file's first list and annotations in its second, but both grow at once.
        self._spool: IO[str] = self._stack.enter_context(
            tempfile.TemporaryFile("w+", encoding="ascii", dir=self._path.parent)
        )
        self._file.write('{\n"images": [')
        return self

    def start(self, video_id: int, name: str) -> None:
        """Begins a video, whose frames follow."""
        self._videos.append({"id": video_id, "name": name})

    def add(self, frame: int, size: masks.Size, instances: Sequence[VisibleTrack]) -> None:
        """Writes a frame of the video that was started last, see `MotsWriter.add`."""
        video = self._videos[-1]
        self._images += 1
        image = {"id": self._images, "video_id": video["id"], "frame_id": frame, "height": size[0], "width": size[1]}
        _write_item(self._file, self._images, {**image, "file_name": f"{video['name']}/{frame:06d}.jpg"})
        areas = masks.areas([instance.rle for instance in instances], size).tolist()
        for instance, area in zip(instances, areas, strict=True):
            self._annotations += 1
            annotation = {
                "id": self._annotations,
                "image_id": self._images,
                "category_id": instance.category_id,
                "track_id": instance.track,
                "score": instance.score,
                "segmentation": masks.to_json(instance.rle, size),
                "bbox": masks.box(instance.rle, size),
                "area": area,
                "iscrowd": 0,
            }
            _write_item(self._spool, self._annotations, annotation)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._stack:
            if kind is None:
                self._file.write('\n],\n"annotations": [')
                self._spool.seek(0)
                shutil.copyfileobj(self._spool, self._file)
                tables = {"videos": self._videos, "categories": self._categories}
                self._file.write("\n],\n" + json.dumps(tables, allow_nan=False)[1:] + "\n")
            self._stack.pop_all().__exit__(kind, error, traceback)


class FormatWriters:
    """Context manager that writes the videos of a prediction in some of `FORMATS`.

    `mots` is a text file a video, `NAME.txt`, and `coco` one file for all, `coco.json`. `ytvis` is `results.json`,
    which `predict` writes in any case.

    Args:
        folder: where to.
        categories: of the results, by label. Tracks of a label without one are left out.
        formats: which.
        score_threshold: of the tracks in `mots`, which has no scores.
    """

    def __init__(
        self, folder: Path, categories: Sequence[Category | None], formats: Sequence[str], score_threshold: float
    ) -> None:
        self._folder = folder
        self._categories = categories
        self._score_threshold = score_threshold
        self._writes_mots = "mots" in formats
        self._coco: CocoWriter | None = None
        if "coco" in formats:
            self._coco = CocoWriter(folder / COCO_FILE, [category for category in categories if category is not None])

    def __enter__(self) -> Self:
        if self._coco is not None:
            self._coco.__enter__()
        return self

    def add(self, video: Video, frames: int, tracks: Sequence[Track]) -> None:
        """Writes a video of so many frames."""
        if self._coco is not None:
            self._coco.start(video.id, video.name)
            for t, instances in enumerate(visible_tracks(tracks, frames, self._categories)):
                self._coco.add(t, video.size, instances)
        if self._writes_mots:
            drawn = visible_tracks(tracks, frames, self._categories, self._score_threshold)
            with MotsWriter(self._folder / f"{video.name}.txt") as mots:
                for t, instances in enumerate(drawn):
                    mots.add(t, video.size, instances)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._coco is not None:
            self._coco.__exit__(kind, error, traceback)


def _write_item(file: IO[str], number: int, item: dict[str, Any]) -> None:
    """Writes an item of a list, one a line."""
    file.write(("\n" if number == 1 else ",\n") + json.dumps(item, allow_nan=False, separators=(",", ":")))
