"""Options of an export."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from mssts.errors import MsstsError
from mssts.manifest import FixedShape
from mssts.model.deployment import PRECISIONS

# ONNX opsets. 18 is understood by every runtime we name (ONNX Runtime 1.14, TensorRT 8.6, OpenVINO 2023 and later); a
# convolution in bf16 exists from 22 on.
OPSET = 18
BF16_OPSET = 22


@dataclass(frozen=True)
class ExportOptions:
    """Options of an export.

    Attributes:
        precision: how weights and activations are stored, a key of `mssts.model.deployment.PRECISIONS`.
        shape: the one input shape the graph takes; None: any.
        functions: whether our ops carry their definition, which every runtime without our kernels needs.
        top_k: instances kept; None: the preset's number.
        resize: whether the engine resizes the frames itself, which may be of any size.
    """

    precision: str = "fp32"
    shape: FixedShape | None = None
    functions: bool = True
    top_k: int | None = None
    resize: bool = False

    def __post_init__(self) -> None:
        if self.resize and self.shape is not None:
            raise MsstsError("--resize-inside takes frames of any size, and --shape is one size; leave one of them out")
        if self.precision not in PRECISIONS:
            raise MsstsError(f"--precision is {self.precision!r}; expected one of: {', '.join(PRECISIONS)}")

    @property
    def opset(self) -> int:
        """The lowest ONNX opset that can say it."""
        return BF16_OPSET if self.precision == "bf16" else OPSET

    def to_json(self) -> dict[str, Any]:
        """For the manifest, and to tell whether two exports are of the same options."""
        return {**asdict(self), "opset": self.opset}
