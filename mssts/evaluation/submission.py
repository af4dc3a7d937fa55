"""Checks a submission for what the benchmark's server would reject or not count.

The server runs the youtubevos fork of the COCO API (github.com/youtubevos/cocoapi, `ytvos.py`): it fails on the whole
submission where an entry is broken, reads only compressed run lengths, and looks at the first entry of the list. It
silently leaves out categories that are not in the set. That is never meant, and so a problem here.
"""

from __future__ import annotations

import codecs
import json
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mssts.data.fields import Field
from mssts.data.videos import read_youtube_vis_value
from mssts.errors import MsstsError
from mssts.evaluation.average_precision import check_categories
from mssts.evaluation.tracks import (
    VideoSet,
    read_entries,
    read_optional_mask,
    read_segmentations,
    read_video_id,
    read_video_set,
)
from mssts.prediction.results import RESULTS, results_categories

_MAX_SHOWN = 50
_LARGE = 200 << 20  # bytes; servers and browsers differ, so this gives a note and not a problem


@dataclass(frozen=True)
class SubmissionReport:
    """Problems found in a submission.

    If `problem_count` is 0, it would be accepted and all of it counted.

    Attributes:
        problems: the first of them, a line each, that names entry and field.
        problem_count: of all.
        entries: the predictions in it, broken or not.
        videos_predicted: of the set's `videos`, how many a prediction names.
        uploaded_bytes: the size of the file.
        unpacked_bytes: the size of its `results.json`.
        notes: for people: what is no reason to reject it.
    """

    problems: tuple[str, ...]
    problem_count: int
    entries: int
    videos: int
    videos_predicted: int
    uploaded_bytes: int
    unpacked_bytes: int
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """A JSON value with these fields."""
        return asdict(self)

    def lines(self) -> list[str]:
        """For people: a line each problem, how many there are, and a summary."""
        more = self.problem_count - len(self.problems)
        count = "1 problem" if self.problem_count == 1 else f"{self.problem_count} problems"
        verdict = f"{count}: would be rejected, or not counted" if self.problem_count else "no problem found"
        sizes = f"{_shown_size(self.uploaded_bytes)}, {_shown_size(self.unpacked_bytes)} unpacked"
        counts = f"{self.entries} predictions for {self.videos_predicted} of {self.videos} videos, {sizes}"
        notes = [f"note: {note}" for note in self.notes]
        return [*self.problems, *([f"… and {more} more"] if more else []), f"{verdict}; {counts}", *notes]


def check_submission(results: Path | str, videos: Path | str) -> SubmissionReport:
    """Checks a `results.json` against the set of videos it is for.

    The results may be in a zip archive.

    Args:
        results: the file to upload.
        videos: the set's file, YouTube-VIS or COCO-video, with annotations or without.

    Raises:
        MsstsError: there is no such file as `results`, or `videos` is wrong.
    """
    results = Path(results)
    if not results.is_file():
        raise MsstsError(f"{results}: no such file; expected a results.json or results.zip")
    known = read_video_set(read_youtube_vis_value(videos), Path(videos))
    problems = _Problems()
    notes: list[str] = []
    predicted: set[int] = set()
    entries: list[Field] = []
    text = b""
    with problems.collected():
        check_categories(results, results_categories(results), known)
    with problems.collected():
        text = _read(results)
        entries = read_entries(_parse(text, results.name), Path(results.name))
        if not entries:
            raise MsstsError(f"{results.name}: an empty list; the server fails on a submission without a prediction")
    for entry in tqdm(entries, desc="checking", unit="", leave=False, disable=None):
        _check_entry(entry, known, problems, predicted)
    if len(predicted) < len(known.videos):
        notes.append(
            f"{len(known.videos) - len(predicted)} videos have no prediction, which counts as nothing found there"
        )
    if results.suffix.lower() != ".zip":
        notes.append(f"servers take it zipped, with {RESULTS} at the root of the archive (`mssts predict --zip`)")
    if len(text) > _LARGE:
        notes.append(f"{_shown_size(len(text))} is large for an upload; the released code keeps 10 predictions a video")
    return SubmissionReport(
        problems=tuple(problems.shown),
        problem_count=problems.count,
        entries=len(entries),
        videos=len(known.videos),
        videos_predicted=len(predicted),
        uploaded_bytes=results.stat().st_size,
        unpacked_bytes=len(text),
        notes=tuple(notes),
    )


class _Problems:
    """The first problems, and the number of all."""

    def __init__(self) -> None:
        self.shown: list[str] = []
        self.count = 0

    @contextmanager
    def collected(self) -> Iterator[None]:
        """The error that ends the block, if one does, is a problem."""
        try:
            yield
        except MsstsError as error:
            self.count += 1
            if len(self.shown) < _MAX_SHOWN:
                self.shown.append(str(error))


def _check_entry(entry: Field, known: VideoSet, problems: _Problems, predicted: set[int]) -> None:
    """Every field on its own, so that one that is wrong does not hide the next."""
    if not isinstance(entry.value, dict):
        with problems.collected():
            entry.fail(f"must be an object, not {entry.shown()}")
        return
    video_id = None
    with problems.collected():
        video_id = read_video_id(entry, known)
        predicted.add(video_id)
    with problems.collected():
        category_id = entry.get("category_id")
        if category_id.whole() not in known.names:
            category_id.fail(f"is {category_id.value}, which is not among the {len(known.names)} categories of the set")
    with problems.collected():
        score = entry.get("score")
        if not 0 <= score.number() <= 1:
            score.fail(f"must be a probability from 0 to 1, not {score.value}")
    segmentations: list[Field] = []
    if video_id is not None:
        video = known.videos[video_id]
        with problems.collected():
            segmentations = read_segmentations(entry, video)
        for segmentation in segmentations:
            with problems.collected():
                _refuse_what_the_server_cannot_read(segmentation)
                read_optional_mask(segmentation, video_id, video)


def _refuse_what_the_server_cannot_read(segmentation: Field) -> None:
    value = segmentation.value
    polygons = bool(value) and isinstance(value, list)
    if polygons or (isinstance(value, dict) and isinstance(value.get("counts"), list)):
        kind = "polygons" if polygons else "uncompressed run lengths"
        segmentation.fail(f"is {kind}, but the server reads compressed run lengths alone (pycocotools.mask.encode)")


def _read(path: Path) -> bytes:
    """The bytes of the submission's `results.json`."""
    if path.suffix.lower() != ".zip":
        return path.read_bytes()
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if names != [RESULTS]:
                held = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
                raise MsstsError(f"{path.name}: holds {held or 'nothing'}; expected {RESULTS} at its root, and no more")
            return archive.read(RESULTS)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:  # damaged, encrypted, …
        raise MsstsError(f"{path.name}: not a zip archive that can be read ({error})") from None


def _parse(text: bytes, source: str) -> Any:
    """The JSON value, read as strictly as the server does.

    `json.load` refuses encodings other than UTF-8, and its byte order mark.
    """
    try:
        return json.loads(text.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise MsstsError(f"{source}: not UTF-8 text, which the server expects ({error.reason})") from None
    except (ValueError, RecursionError) as error:
        problem = "begins with a byte-order mark, at which the server fails; save it as UTF-8 without one"
        if not text.startswith(codecs.BOM_UTF8):
            problem = f"not valid JSON ({error})"
        raise MsstsError(f"{source}: {problem}") from None


def _shown_size(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"
