"""Options of a TensorRT build, and the profile that follows from a manifest."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mssts.errors import MsstsError
from mssts.manifest import FixedShape, Manifest
from mssts.runners.tensorrt_library import TARGETS

HARDWARE_COMPATIBILITY = {"none": "NONE", "ampere+": "AMPERE_PLUS", "same": "SAME_COMPUTE_CAPABILITY"}
_SMALLEST_EDGE = 64
# Frames as videos have them, for engines that resize them: what a plan is tuned for, and the longest side.
_VIDEO, _LONGEST_VIDEO = (720, 1280), 1920


@dataclass(frozen=True)
class Profile:
    """The input shapes an engine takes, and the one that it is tuned for."""

    least: FixedShape
    best: FixedShape
    most: FixedShape

    def __post_init__(self) -> None:
        for low, high in ((self.least, self.best), (self.best, self.most)):
            if any(a > b for a, b in zip(_sizes(low), _sizes(high), strict=True)):
                raise MsstsError(
                    f"--min {self.least}, --opt {self.best}, --max {self.most}: expected each size of --min to be at "
                    "most that of --opt, and that at most the one of --max"
                )

    def holds(self, shape: FixedShape) -> bool:
        """Whether a shape is within the profile."""
        sizes = zip(_sizes(self.least), _sizes(shape), _sizes(self.most), strict=True)
        return all(low <= size <= high for low, size, high in sizes)

    def to_json(self) -> dict[str, str]:
        """Shapes as CLIPSxFRAMESxHEIGHTxWIDTH."""
        return {"min": str(self.least), "opt": str(self.best), "max": str(self.most)}


@dataclass(frozen=True)
class BuildOptions:
    """Options of a build.

    Attributes:
        target: `tensorrt` or `tensorrt-rtx`.
        least, best, most: the profile's shapes; None: what the manifest implies.
        plugins: whether our ops run as plugins; TensorRT-RTX takes none.
        timing_cache: a file of measured kernels, read and added to.
        version_compatible: whether later TensorRT releases of the same major may run it.
        hardware_compatible: a key of `HARDWARE_COMPATIBILITY`.
        workspace_gib: scratch memory a layer may use; None: TensorRT's own limit.
        compute_capabilities: GPUs to build for, as "8.9" (TensorRT-RTX); none: all that it knows.
        optimization_level: 0 to 5; None: TensorRT's own.
    """

    target: str
    least: FixedShape | None = None
    best: FixedShape | None = None
    most: FixedShape | None = None
    plugins: bool = True
    timing_cache: Path | None = None
    version_compatible: bool = False
    hardware_compatible: str = "none"
    workspace_gib: float | None = None
    compute_capabilities: tuple[str, ...] = ()
    optimization_level: int | None = None

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise MsstsError(f"--target is {self.target!r}; expected one of: {', '.join(TARGETS)}")
        if self.hardware_compatible not in HARDWARE_COMPATIBILITY:
            expected = ", ".join(HARDWARE_COMPATIBILITY)
            raise MsstsError(f"--hardware-compatible is {self.hardware_compatible!r}; expected one of: {expected}")
        if self.target == "tensorrt-rtx":
            # Its builder fails at the first, for want of a lean runtime, and ignores the second.
            if self.version_compatible or self.hardware_compatible != "none":
                raise MsstsError(
                    "--version-compatible and --hardware-compatible are for tensorrt; tensorrt-rtx takes "
                    "--compute-capability"
                )
            if self.timing_cache is not None:
                raise MsstsError("--timing-cache is for tensorrt; tensorrt-rtx measures nothing while it builds")
        elif self.compute_capabilities:
            raise MsstsError("--compute-capability is for tensorrt-rtx; tensorrt builds for the GPU of this machine")
        if self.workspace_gib is not None and not self.workspace_gib > 0:
            raise MsstsError(f"--workspace-gib is {self.workspace_gib}; expected more than 0")
        if self.optimization_level is not None and not 0 <= self.optimization_level <= 5:
            raise MsstsError(f"--optimization-level is {self.optimization_level}; expected 0 to 5")

    @property
    def uses_plugins(self) -> bool:
        """Whether nodes of our ops are to become plugins."""
        return self.plugins and self.target == "tensorrt"

    def profile(self, manifest: Manifest) -> Profile:
        """The profile of an export, completed from its manifest.

        Raises:
            MsstsError: a shape was given and the export takes one other shape only, or the three do not fit together.
        """
        given = [shape for shape in (self.least, self.best, self.most) if shape is not None]
        if manifest.shape is not None:
            if any(shape != manifest.shape for shape in given):
                raise MsstsError(
                    f"the export takes the shape {manifest.shape} alone; leave --min, --opt and --max out, or export "
                    "it without --shape"
                )
            return Profile(manifest.shape, manifest.shape, manifest.shape)
        rule, T = manifest.input, manifest.clip_frames
        if rule.in_engine:
            best = self.best or FixedShape(1, T, *_VIDEO)
            longest = max(best.height, best.width, _LONGEST_VIDEO)
            return Profile(
                self.least or FixedShape(1, 1, min(_SMALLEST_EDGE, best.height), min(_SMALLEST_EDGE, best.width)),
                best,
                self.most or FixedShape(best.clips, max(T, best.frames), longest, longest),
            )
        smallest = min(_SMALLEST_EDGE, rule.short_edge)
        width = min(rule.long_edge, rule.short_edge * 16 // 9) // rule.multiple * rule.multiple
        best = self.best or FixedShape(1, T, rule.short_edge, max(width, rule.short_edge))
        # For landscape and portrait formats, and one clip unless more are asked for.
        longest = max(rule.long_edge, best.height, best.width)
        return Profile(
            self.least or FixedShape(1, 1, min(smallest, best.height), min(smallest, best.width)),
            best,
            self.most or FixedShape(best.clips, max(T, best.frames), longest, longest),
        )

    def to_json(self) -> dict[str, Any]:
        """The options that decide the plan's bytes: all but the timing cache."""
        values = {name: value for name, value in asdict(self).items() if name != "timing_cache"}
        for name in ("least", "best", "most"):
            shape = getattr(self, name)
            values[name] = None if shape is None else str(shape)
        return values


def _sizes(shape: FixedShape) -> tuple[int, int, int, int]:
    return shape.clips, shape.frames, shape.height, shape.width
