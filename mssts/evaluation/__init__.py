"""Offline YouTube-VIS average precision, and the benchmark server's checks."""

from mssts.evaluation.average_precision import evaluate
from mssts.evaluation.metrics import CategoryMetrics, Metrics, format_table
from mssts.evaluation.submission import SubmissionReport, check_submission

__all__ = ["CategoryMetrics", "Metrics", "SubmissionReport", "check_submission", "evaluate", "format_table"]
