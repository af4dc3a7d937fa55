"""MS-STS VIS: video instance segmentation, from training to serving.

    import mssts

    with mssts.load("runs/engine") as segmenter:
        found = segmenter.segment(frames)  # uint8 [T, H, W, 3], or encoded JPEGs
        found.names, found.scores, found.boxes, found.masks()

Importing this package loads neither torch, onnxruntime, openvino nor cv2: each name below is imported when it is first
used. The Triton Python backend imports the package too.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mssts.errors import MsstsError
    from mssts.evaluation import evaluate
    from mssts.prediction.predictor import predict
    from mssts.segmenters import load
    from mssts.segmenters.base import Instances, Segmenter
    from mssts.segmenters.triton import AsyncTritonSegmenter, ClientOptions
    from mssts.streaming.options import StreamOptions
    from mssts.streaming.stream import stream

__version__ = "0.2.0"

__all__ = [
    "AsyncTritonSegmenter",
    "ClientOptions",
    "Instances",
    "MsstsError",
    "Segmenter",
    "StreamOptions",
    "__version__",
    "evaluate",
    "load",
    "predict",
    "stream",
]

_MODULES = {
    "AsyncTritonSegmenter": "mssts.segmenters.triton",
    "ClientOptions": "mssts.segmenters.triton",
    "Instances": "mssts.segmenters.base",
    "MsstsError": "mssts.errors",
    "Segmenter": "mssts.segmenters.base",
    "StreamOptions": "mssts.streaming.options",
    "evaluate": "mssts.evaluation",
    "load": "mssts.segmenters",
    "predict": "mssts.prediction.predictor",
    "stream": "mssts.streaming.stream",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
