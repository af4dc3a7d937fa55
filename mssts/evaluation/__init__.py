"""Offline YouTube-VIS average precision, HOTA, and the benchmark server's checks."""

from mssts.evaluation.average_precision import evaluate
from mssts.evaluation.metrics import CategoryMetrics, Metrics, format_table
from mssts.evaluation.submission import SubmissionReport, check_submission
from mssts.evaluation.tracking import TrackingMetrics, evaluate_tracking, format_tracking

__all__ = [
    "CategoryMetrics",
    "Metrics",
    "SubmissionReport",
    "TrackingMetrics",
    "check_submission",
    "evaluate",
    "evaluate_tracking",
    "format_table",
    "format_tracking",
]
