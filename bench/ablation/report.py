"""The table of the ablation, for programs, for people, and as a plot."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mssts.bench.ablation.configurations import CONFIGURATIONS
from mssts.bench.plotting import pyplot

# The figures of the summary.
FIGURES = (
    "ap", "ap50", "ap75", "ap_oracle_classes", "identity_switches", "ap_interrupted", "ap_motion_classes",
    "train_cpu_seconds_per_step", "predict_cpu_seconds_per_frame",
)  # fmt: skip


def costs(preset_name: str, classes: int) -> dict[str, dict[str, float]]:
    """Parameters of each configuration, and the FLOPs of a clip.

    FLOPs are those of convolutions and matrix products with weights, two for a multiply-add; attention is left out.
    """
    from dataclasses import fields, replace

    from mssts.bench.operations import count_operations
    from mssts.model.config import Switches, preset
    from mssts.model.mssts_vis import MSSTSVIS

    chosen = preset(preset_name).with_classes(classes)
    height, width = chosen.input.short_edge, chosen.input.long_edge
    found = {}
    for name, switches in CONFIGURATIONS.items():
        on = {field.name: field.name.replace("_", "-") in switches for field in fields(Switches)}
        configured = replace(chosen, model=replace(chosen.model, switches=Switches(**on)))
        parameters = sum(parameter.numel() for parameter in MSSTSVIS(configured.model).parameters())
        operations = count_operations(configured, (1, chosen.clip_frames, height, width))
        flops = sum(operation.flops for operation in operations if operation.kind in ("gemm", "convolution"))
        found[name] = {"parameters": parameters, "gflops_per_clip": flops / 1e9}
    return found


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and standard deviation over seeds, a row a configuration.

    `ap_over_baseline` compares runs of one seed, which saw the same clips in the same order.
    """
    baseline = {row["seed"]: row["ap"] for row in rows if row["configuration"] == "baseline"}
    found = []
    for name in CONFIGURATIONS:
        own = [row for row in rows if row["configuration"] == name]
        if not own:
            continue
        figures = {}
        for figure in FIGURES:
            values = [row[figure] for row in own if row[figure] is not None]
            if values:
                figures[figure] = _spread(values)
        gains = [row["ap"] - baseline[row["seed"]] for row in own if row["seed"] in baseline]
        if gains and name != "baseline":
            figures["ap_over_baseline"] = _spread(gains)
        found.append({"configuration": name, "seeds": [row["seed"] for row in own], **figures})
    return found


def _spread(values: Sequence[float]) -> dict[str, float | None]:
    """Mean and standard deviation, None for the deviation of one value."""
    return {"mean": statistics.mean(values), "deviation": statistics.stdev(values) if len(values) > 1 else None}


def lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The summary for people."""
    shown = (
        "ap", "ap_over_baseline", "ap75", "ap_oracle_classes", "ap_interrupted", "ap_motion_classes",
        "identity_switches",
    )  # fmt: skip
    headings = ("AP", "over baseline", "AP75", "oracle", "interrupted", "motion", "switches")
    found = [f"{'configuration':18}{'seeds':>6}" + "".join(f"{heading:>16}" for heading in headings)]
    for row in summary(rows):
        cells = []
        for figure in shown:
            value = row.get(figure)
            digits = 0 if figure == "identity_switches" else 3
            spread = value and value["deviation"]
            sign = "+" if figure == "ap_over_baseline" else ""
            text = "-" if value is None else f"{value['mean']:{sign}.{digits}f}"
            cells.append(f"{text} ± {spread:.{digits}f}" if spread is not None and value is not None else text)
        found.append(f"{row['configuration']:18}{len(row['seeds']):6}" + "".join(f"{cell:>16}" for cell in cells))
    return found


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draws the figures of each configuration, a dot a seed and a line at the mean.

    Raises:
        MsstsError: matplotlib is not installed.
    """
    plt = pyplot()
    names = [row["configuration"] for row in summary(rows)]
    panels = (("ap", "AP"), ("ap_oracle_classes", "AP, oracle classes"), ("ap_interrupted", "AP, interrupted objects"))
    figure, axes = plt.subplots(1, len(panels), figsize=(11, 0.6 + 0.35 * len(names)), sharey=True)
    for axis, (key, title) in zip(axes, panels, strict=True):
        for y, name in enumerate(names):
            values = [row[key] for row in rows if row["configuration"] == name]
            axis.plot(values, [y] * len(values), "o", color="tab:blue", alpha=0.6)
            axis.plot([statistics.mean(values)] * 2, [y - 0.3, y + 0.3], color="black")
        axis.set_title(title, fontsize=10)
        axis.grid(alpha=0.3)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)
