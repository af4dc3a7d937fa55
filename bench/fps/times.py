"""The figures of a row, from times."""

from __future__ import annotations

import statistics
from typing import Any


def summary(seconds: list[float], frames: int) -> dict[str, Any]:
    """The figures of a row, from the seconds of each inference."""
    ordered = sorted(1e3 * second for second in seconds)

    def percentile(share: float) -> float:
        position = share * (len(ordered) - 1)
        low = int(position)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (position - low) * (ordered[high] - ordered[low])

    median = statistics.median(ordered)
    return {
        "ms_median": median,
        "ms_p5": percentile(0.05),
        "ms_p95": percentile(0.95),
        "frames_per_second": 1e3 * frames / median,
        "samples_ms": [1e3 * second for second in seconds],
    }
