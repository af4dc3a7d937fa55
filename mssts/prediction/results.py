"""Results in the format of a YouTube-VIS submission."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mssts import masks
from mssts.categories import difference, read_categories
from mssts.errors import MsstsError
from mssts.files import atomic_path, read_json
from mssts.manifest import Category
from mssts.prediction.tracking import Track

REPORT = "report.json"  # beside the results
RESULTS = "results.json"  # the name that the benchmark's server looks for in an archive


def submission_entries(
    video_id: int, size: tuple[int, int], tracks: Iterable[Track], categories: Sequence[Category | None]
) -> list[dict[str, Any]]:
    """The entries of one video, best first.

    A track has one for each category that it may be of. Masks are COCO run lengths of `size` (height, width) or null.
    `categories` are by label.
    """
    entries: list[dict[str, Any]] = [
        {
            "video_id": video_id,
            "category_id": category.id,
            "score": score * track.certainty,
            "segmentations": [masks.to_json(rle, size) for rle in track.rles],
        }
        for track in tracks
        for category, score in track.in_categories(categories)
    ]
    return sorted(entries, key=lambda entry: -entry["score"])


def results_categories(results: Path) -> tuple[Category, ...]:
    """The categories that results were written in, by the report beside them."""
    report = results.parent / REPORT
    return read_categories(read_json(report)) if report.is_file() else ()


def write_submission(path: Path | str, entries: Iterable[dict[str, Any]]) -> None:
    """Writes the entries of all videos to a JSON file, atomically, one entry a line."""
    write_submission_lines(path, map(entry_line, entries))


def entry_line(entry: dict[str, Any]) -> str:
    """The line of an entry in a submission, without what comes between lines."""
    return json.dumps(entry, allow_nan=False, separators=(",", ":"))


def write_submission_lines(path: Path | str, lines: Iterable[str]) -> None:
    """Writes a submission of what `entry_line` returned, holding one line at a time."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        separator = "[\n"
        for line in lines:
            file.write(separator + line)
            separator = ",\n"
        file.write("[]\n" if separator == "[\n" else "\n]\n")


def merge_shards(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """The entries of results that several `mssts predict --shard` have written.

    The report beside each file tells which shard it is, so that one that is missing does not pass for a low score.

    Raises:
        MsstsError: a file or its report cannot be read, the files are not each shard of one whole once, or their
            category ids are those of different tables.
    """
    entries: list[dict[str, Any]] = []
    shards = []
    for path in paths:
        part = read_json(path)
        report = read_json(path.parent / REPORT)
        if not isinstance(part, list) or not isinstance(report, dict) or "shard" not in report:
            raise MsstsError(
                f"{path}: not a shard's results; expected a list, beside the report of its `mssts predict`"
            )
        changed = difference(read_categories(report), results_categories(paths[0]))
        if changed:
            raise MsstsError(f"{path}: has the category ids of another table than {paths[0]}, {changed}")
        entries += part
        shards.append(tuple(report["shard"]))
    parts = shards[0][1]
    if sorted(shards) != [(k, parts) for k in range(parts)]:
        found = ", ".join(f"{k}/{n}" for k, n in sorted(shards))
        raise MsstsError(f"the results are of the shards {found}; expected each of the {parts} shards once")
    return entries


def write_archive(path: Path | str, results: Path) -> None:
    """Zips a results file for the benchmark's server, atomically."""
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(results, RESULTS)
