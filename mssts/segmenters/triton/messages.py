"""Requests and responses of the ensemble, and the manifest in its configuration."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tritonclient.grpc as triton

from mssts import contract
from mssts.errors import MsstsError
from mssts.manifest import Manifest
from mssts.segmenters.base import Instances
from mssts.segmenters.triton.addresses import Address
from mssts.segmenters.triton.options import ClientOptions

if TYPE_CHECKING:
    from mssts.segmenters.triton.shared_memory import Region


def request_inputs(
    frames_THWC: np.ndarray | Sequence[bytes],
    score_threshold: float,
    options: ClientOptions,
    resize_for: Manifest | None = None,
    region_for: Callable[[int], Region] | None = None,
) -> list[triton.InferInput]:
    """The tensors of a request for one clip.

    Args:
        frames_THWC: the clip.
        score_threshold: see `Segmenter.segment`.
        options: the client's.
        resize_for: resize raw frames here as the server would, where the engine's are smaller: the same result from
            fewer bytes. The manifest of the engine; None to send them as they are.
        region_for: gives shared memory of a size, which raw frames are written to; None to send them.

    Raises:
        MsstsError: the frames are of the wrong type.
    """
    threshold = _tensor(contract.SCORE_THRESHOLD, np.array([score_threshold], np.float32))
    if not isinstance(frames_THWC, np.ndarray):
        return [_tensor(contract.FRAMES_JPEG, np.array(frames_THWC, dtype=object)), threshold]
    if frames_THWC.dtype != np.uint8:
        raise MsstsError(f"frames must be uint8, not {frames_THWC.dtype}")
    tensors = [threshold]
    resized_THWC = None if resize_for is None else _resized(frames_THWC, resize_for)
    if resized_THWC is not None:
        tensors.append(_tensor(contract.FRAME_SIZE, np.array(frames_THWC.shape[1:3], np.int32)))
        frames_THWC = resized_THWC
    if options.jpeg_quality is None:
        if region_for is None or not frames_THWC.size:
            return [_tensor(contract.FRAMES_RAW, frames_THWC), *tensors]
        region = region_for(frames_THWC.nbytes)
        region.write(frames_THWC)
        shared = triton.InferInput(contract.FRAMES_RAW.name, list(frames_THWC.shape), contract.FRAMES_RAW.triton_dtype)
        return [shared.set_shared_memory(region.name, frames_THWC.nbytes), *tensors]
    from mssts.media.images import encode_jpeg

    encoded = [encode_jpeg(frame_HWC, options.jpeg_quality) for frame_HWC in frames_THWC]
    return [_tensor(contract.FRAMES_JPEG, np.array(encoded, dtype=object)), *tensors]


def _resized(frames_THWC: np.ndarray, manifest: Manifest) -> np.ndarray | None:
    """The frames at the engine's size, None where that saves nothing.

    None too where the server is to refuse them, or the engine resizes them itself."""
    from mssts.segmenters.preprocessing import engine_input, input_size

    if manifest.input.in_engine or frames_THWC.ndim != 4 or frames_THWC.shape[3] != 3 or 0 in frames_THWC.shape:
        return None
    frames, height, width, _ = frames_THWC.shape
    target = input_size(height, width, manifest.input, manifest.shape)
    limits = contract.LIMITS
    if target[0] * target[1] >= height * width or frames > limits.frames or height * width > limits.pixels:
        return None
    if frames * height * width > limits.total_pixels:
        return None
    frames_BTHWC, _ = engine_input(frames_THWC, manifest.input, shape=manifest.shape)
    return frames_BTHWC[0]


def _tensor(spec: contract.TensorSpec, array: np.ndarray) -> triton.InferInput:
    return triton.InferInput(spec.name, list(array.shape), spec.triton_dtype).set_data_from_numpy(array)


def read_instances(result: triton.InferResult, manifest: Manifest) -> Instances:
    """The instances that a response holds."""
    scores, labels, boxes, rles, size = (result.as_numpy(spec.name) for spec in contract.RESULT_OUTPUTS)
    height, width = size
    return Instances(
        scores=scores,
        labels=labels,
        boxes=boxes,
        rles=tuple(tuple(rle or None for rle in instance) for instance in rles),
        size=(int(height), int(width)),
        categories=manifest.categories,
    )


def read_manifest(answer: Any, address: Address) -> Manifest:
    """The manifest in the ensemble's configuration.

    Raises:
        MsstsError: there is none, or it is broken.
    """
    parameters = answer.config.parameters
    if "manifest" not in parameters:
        raise MsstsError(f"{address}: its model {contract.ENSEMBLE} carries no manifest; start it with `mssts serve`")
    return Manifest.from_json(json.loads(parameters["manifest"].string_value), f"{address}: manifest")


def takes_resized(answer: Any) -> bool:
    """Whether a server takes resized frames, by the ensemble's configuration."""
    return any(tensor.name == contract.FRAME_SIZE.name for tensor in answer.config.input)


def check_same_engine(found: Manifest, expected: Manifest, address: Address) -> None:
    """Checks that a server's engine means the same by its answers.

    Its file may differ: every machine may have built its own plan.

    Raises:
        MsstsError: it does not.
    """
    if _meaning(found) != _meaning(expected):
        raise MsstsError(f"{address}: serves another engine than this client has opened; open the servers again")


def _meaning(manifest: Manifest) -> tuple[Any, ...]:
    return (
        manifest.preset,
        manifest.precision,
        manifest.categories,
        manifest.input,
        manifest.clip_frames,
        manifest.clip_overlap,
        manifest.top_k,
        manifest.shape,
    )
