"""Matplotlib, for the plots of several benchmarks."""

from __future__ import annotations

from typing import Any

from mssts.errors import MsstsError


def pyplot() -> Any:
    """`matplotlib.pyplot`, which draws into files alone.

    Raises:
        MsstsError: matplotlib is not installed.
    """
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        raise MsstsError("--plot needs matplotlib: `pip install matplotlib`") from None
    return pyplot
