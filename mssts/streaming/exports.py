"""Results in the formats of data sets: MOTS, COCO and YouTube-VIS."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from mssts import masks
from mssts.errors import MsstsError
from mssts.files import reason
from mssts.manifest import Category
from mssts.prediction.exports import COCO_FILE, CocoWriter, MotsWriter, VisibleTrack
from mssts.prediction.results import RESULTS, write_submission
from mssts.streaming.results import FrameResult
from mssts.streaming.sinks import Monitored, Sink

MOTS_FILE = "mots.txt"
_VIDEO = 1  # the id of the one video in the files


class Export(Sink):
    """Writes results in one of `mssts.prediction.exports.FORMATS`.

    The file appears when the stream ends. `mots` and `coco` go to the disk frame by frame. `ytvis` lists whole tracks,
    so their run lengths are held until then, as `predict` holds them: it is for sources that end. Frames that were
    dropped have no line in `mots`, no image in `coco`, and null masks in `ytvis`.

    Args:
        folder: of the file.
        format_: which.
        categories: of the engine, for `coco`.
        name: of the video, for `coco`.
    """

    def __init__(self, folder: Path, format_: str, categories: tuple[Category, ...], name: str) -> None:
        self.needs_images = format_ == "coco"  # an image without an object has a size all the same
        self._path = folder / {"mots": MOTS_FILE, "coco": COCO_FILE, "ytvis": RESULTS}[format_]
        self._resources = ExitStack()
        self._mots = MotsWriter(self._path) if format_ == "mots" else None
        self._coco = CocoWriter(self._path, categories) if format_ == "coco" else None
        self._name = name
        self._tracks: dict[int, dict[int, VisibleTrack]] = {}
        self._size: tuple[int, int] | None = None
        self._frames = 0
        self._is_broken = False

    def open(self, stream: Monitored) -> None:
        """Begins the file.

        Raises:
            MsstsError: it cannot be written.
        """
        for writer in (self._mots, self._coco):
            if writer is not None:
                self._resources.enter_context(writer)
        if self._coco is not None:
            self._coco.start(_VIDEO, self._name)

    def write(self, result: FrameResult) -> None:
        """Writes a frame.

        Raises:
            MsstsError: the format cannot hold it; what comes after it is left out too.
        """
        if self._is_broken:
            return
        try:
            self._write(result)
        except (MsstsError, OSError) as error:
            self._is_broken = True
            cause = f"{self._path}: cannot be written: {reason(error)}" if isinstance(error, OSError) else str(error)
            raise MsstsError(f"{cause}; it ends before frame {result.frame}") from None

    def _write(self, result: FrameResult) -> None:
        size = self._size_of(result)
        visible = [
            VisibleTrack(item.track, item.category_id, item.score, item.segmentation["counts"].encode("ascii"))
            for item in result.instances
        ]
        if self._mots is not None:
            self._mots.add(result.frame, size, visible)
        elif self._coco is not None:
            self._coco.add(result.frame, size, visible)
        else:
            for item in visible:
                self._tracks.setdefault(item.track, {})[result.frame] = item
            self._frames = result.frame + 1

    def _size_of(self, result: FrameResult) -> tuple[int, int]:
        """Height and width of a frame, which all frames of a file share.

        Raises:
            MsstsError: it is another than before.
        """
        if result.image is not None:
            height, width = result.image.shape[:2]
        elif result.instances:
            height, width = result.instances[0].segmentation["size"]
        else:
            return self._size or (0, 0)
        size = (height, width)
        if self._size not in (None, size):
            raise MsstsError(f"{self._path}: the frames change their size, which the format cannot say")
        self._size = size
        return size

    def close(self) -> None:
        """Finishes the file.

        Raises:
            MsstsError: it cannot be written.
        """
        self._resources.close()
        if self._mots is None and self._coco is None:
            write_submission(self._path, [self._entry(visible) for visible in self._tracks.values()])

    def _entry(self, visible: dict[int, VisibleTrack]) -> dict[str, object]:
        last = visible[max(visible)]
        size = self._size or (0, 0)
        found = [masks.to_json(visible[t].rle if t in visible else None, size) for t in range(self._frames)]
        return {"video_id": _VIDEO, "category_id": last.category_id, "score": last.score, "segmentations": found}
