"""Matplotlib, for the plots of several benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mssts.errors import MsstsError
from mssts.files import atomic_path

FORMATS = (".png", ".svg", ".pdf")


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


def save_figure(figure: Any, path: Path) -> None:
    """Writes a figure whole or not at all, closes it and says where it is.

    Raises:
        MsstsError: it cannot be written.
    """
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150, bbox_inches="tight")
    pyplot().close(figure)
    print(f"wrote {path}")
