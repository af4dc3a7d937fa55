"""YouTube-VIS average precision of results, offline."""

from mssts.evaluation.average_precision import evaluate
from mssts.evaluation.metrics import CategoryMetrics, Metrics, format_table

__all__ = ["CategoryMetrics", "Metrics", "evaluate", "format_table"]
