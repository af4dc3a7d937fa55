"""The tensors at every boundary, written once: ONNX file, Triton models, requests.

The exporter, the runners, the `config.pbtxt` files (a test compares them), the models in `triton_repo/` and the client
all read these tables. Letters: B clips in a batch, T frames, H and W of the (padded) frames, K instances kept, N
instances returned, h and w = ⌈H/8⌉·2 and ⌈W/8⌉·2 (masks have stride 4).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class TensorSpec:
    """A named tensor: a number for each fixed size, a letter for each free one.

    `dtype` is a numpy name, or `bytes` for byte strings (Triton's BYTES).
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    meaning: str
    optional: bool = False

    @property
    def triton_dtype(self) -> str:
        """Triton's name of the type, without the `TYPE_` prefix of config.pbtxt."""
        return {"uint8": "UINT8", "int32": "INT32", "float32": "FP32", "bytes": "BYTES"}[self.dtype]

    @property
    def triton_dims(self) -> tuple[int, ...]:
        """The shape as config.pbtxt writes it: −1 for every free size."""
        return tuple(size if isinstance(size, int) else -1 for size in self.shape)

    @property
    def numpy_dtype(self) -> np.dtype:
        """The numpy type (objects for byte strings)."""
        return np.dtype(object if self.dtype == "bytes" else self.dtype)


# --- the engine: model.onnx, a TensorRT plan, a PyTorch module ----------------------------------------------------

FRAMES = TensorSpec("frames", "uint8", ("B", "T", "H", "W", 3), "RGB frames; normalisation is inside the engine")
SIZES = TensorSpec(
    "sizes", "int32", ("B", 2), "valid height and width of each clip; the rest, below and right, is padding"
)
ENGINE_INPUTS = (FRAMES, SIZES)

SCORES = TensorSpec("scores", "float32", ("B", "K"), "class probability, highest first")
LABELS = TensorSpec("labels", "int32", ("B", "K"), "index into the manifest's classes")
BOXES = TensorSpec(
    "boxes", "float32", ("B", "K", "T", 4), "centre x, centre y, width, height, as fractions of the valid size"
)
MASK_LOGITS = TensorSpec(
    "mask_logits", "float32", ("B", "K", "T", "h", "w"), "positive inside; pixel i is centred at 4i+2"
)
ENGINE_OUTPUTS = (SCORES, LABELS, BOXES, MASK_LOGITS)

# --- the ensemble `mssts_vis`: what a client sends and gets --------------------------------------------------------

FRAMES_JPEG = TensorSpec(
    "frames_jpeg", "bytes", ("T",), "one encoded JPEG (or PNG) a frame, all of one size", optional=True
)
FRAMES_RAW = TensorSpec("frames_raw", "uint8", ("T", "H", "W", 3), "RGB frames", optional=True)
SCORE_THRESHOLD = TensorSpec(
    "score_threshold", "float32", (1,), "instances below it are not returned; 0 if absent", optional=True
)
FRAME_SIZE = TensorSpec(
    "frame_size",
    "int32",
    (2,),
    "height and width of the frames before the client resized them to the engine's; the frames' own if absent",
    optional=True,
)
REQUEST_INPUTS = (FRAMES_JPEG, FRAMES_RAW, SCORE_THRESHOLD, FRAME_SIZE)

ORIGINAL_SIZE = TensorSpec("original_size", "int32", (2,), "height and width of the client's frames")
# Inside the ensemble alone, so that the engine skips what has waited for it too long.
ARRIVED = TensorSpec(
    "arrived_ms", "int32", (1,), "when the frames were decoded; see mssts.serving.admission", optional=True
)

RESULT_SCORES = TensorSpec("scores", "float32", ("N",), "class probability, highest first")
RESULT_LABELS = TensorSpec("labels", "int32", ("N",), "index into the manifest's classes")
RESULT_BOXES = TensorSpec("boxes", "float32", ("N", "T", 4), "x1, y1, x2, y2 in pixels of the client's frames")
RESULT_RLES = TensorSpec(
    "mask_rles", "bytes", ("N", "T"), "COCO compressed run lengths of the frames' size; empty where no mask"
)
RESULT_SIZE = TensorSpec("mask_size", "int32", (2,), "height and width of the masks: those of the client's frames")
RESULT_OUTPUTS = (RESULT_SCORES, RESULT_LABELS, RESULT_BOXES, RESULT_RLES, RESULT_SIZE)

ENSEMBLE = "mssts_vis"


@dataclass(frozen=True)
class Limits:
    """The most that one request may hold."""

    frames: int = 64
    pixels: int = 3840 * 2160  # of one frame
    total_pixels: int = 64 * 1280 * 720  # of all frames together
    encoded_bytes: int = 64 << 20  # of all encoded frames together
    decode_seconds: float = 5.0  # of one core for all encoded frames, eight times what the largest good JPEGs take


LIMITS = Limits()
