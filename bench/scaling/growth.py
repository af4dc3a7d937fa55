"""How a figure grows: the exponent of a power law, with its error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Growth:
    """The fit of y = a · x^exponent.

    Attributes:
        exponent: 1 is linear, 2 quadratic; −1 is what twice the cores in half the time would be.
        error: its standard error, by the scatter of the points around the fit; None of two points.
        points: how many were fitted.
    """

    exponent: float
    error: float | None
    points: int


def fit_growth(x: Sequence[float], y: Sequence[float]) -> Growth:
    """Fits a power law by least squares of the logarithms.

    Args:
        x: what was varied, above 0, at least two different values.
        y: what was measured, above 0.

    Raises:
        ValueError: there is nothing to fit.
    """
    log_x, log_y = np.log(np.asarray(x, float)), np.log(np.asarray(y, float))
    n = len(log_x)
    centred = log_x - log_x.mean()
    spread = float((centred**2).sum())
    if n != len(log_y) or spread == 0 or not np.isfinite([log_x, log_y]).all():
        raise ValueError("a power law needs two different values above 0")
    slope = float((centred * log_y).sum() / spread)
    residual = log_y - log_y.mean() - slope * centred
    error = None if n < 3 else float(np.sqrt((residual**2).sum() / (n - 2) / spread))
    return Growth(slope, error, n)
