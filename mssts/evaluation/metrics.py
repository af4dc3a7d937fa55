"""The figures of an evaluation, as JSON for programs and as a table for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class CategoryMetrics:
    """Average precision of one category, −1 where it has no ground truth.

    `objects` counts its annotated tracks.
    """

    id: int
    name: str
    ap: float
    ap50: float
    objects: int


@dataclass(frozen=True)
class Metrics:
    """YouTube-VIS average precision (AP) and average recall (AR), from 0 to 1.

    Values that no ground truth defines are −1.

    `ap` is the mean over the IoU thresholds 0.50, 0.55 … 0.95, of spatio-temporal IoU, and over the categories; `ap50`
    and `ap75` are at one threshold. `ap_small`, `ap_medium` and `ap_large` count objects whose mean area is below 128²,
    between, and above 256² pixels. `ar1` and `ar10` allow 1 and 10 predictions of each category a video. `notes` are
    for people: what was left out, and why.
    """

    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    ar1: float
    ar10: float
    per_category: tuple[CategoryMetrics, ...]
    videos: int
    objects: int
    predictions: int
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """A JSON value with these fields."""
        return asdict(self)


def format_table(metrics: Metrics) -> str:
    """A plain, aligned table of figures.

    The whole set comes first, then a line for each category. Undefined is `-`.
    """
    headings = ("AP", "AP50", "AP75", "APsmall", "APmedium", "APlarge", "AR1", "AR10")
    values = (metrics.ap, metrics.ap50, metrics.ap75, metrics.ap_small, metrics.ap_medium, metrics.ap_large)
    overall = [headings, tuple(map(_cell, (*values, metrics.ar1, metrics.ar10)))]
    categories = [("category", "AP", "AP50", "objects")]
    for category in metrics.per_category:
        categories.append((category.name, _cell(category.ap), _cell(category.ap50), str(category.objects)))
    counts = f"{metrics.videos} videos, {metrics.objects} objects, {metrics.predictions} predictions"
    notes = [f"note: {note}" for note in metrics.notes]
    return "\n".join([*_aligned(overall), "", *_aligned(categories, left=1), "", counts, *notes])


def _cell(value: float) -> str:
    return "-" if value < 0 else f"{value:.3f}"


def _aligned(rows: Sequence[tuple[str, ...]], left: int = 0) -> list[str]:
    """Rows with columns of equal width, flush right but for the `left` first."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
