"""Calibration: the ranges of a graph's activations on real clips."""

from __future__ import annotations

import itertools
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization.calibrate import CalibrationDataReader, MinMaxCalibrater, TensorsData
from tqdm import tqdm

from mssts import contract
from mssts.errors import MsstsError
from mssts.kernels import library
from mssts.machine import cpu_count
from mssts.manifest import Manifest
from mssts.media.orientation import Exif
from mssts.media.sources import open_source
from mssts.media.video import Video
from mssts.prediction.windowing import windows
from mssts.runners.fixed_shape import pad_to_shape
from mssts.runners.onnx_runtime import session_options
from mssts.segmenters.preprocessing import engine_input

Clip = tuple[np.ndarray, np.ndarray]  # uint8 frames [1, T, H, W, 3], int32 valid sizes [1, 2]


def read_clips(path: Path, manifest: Manifest, count: int, exif: Exif | None = None) -> list[Clip]:
    """Up to `count` clips as engine input, spread evenly over videos and time.

    Args:
        path: as `mssts.media.sources.open_source` takes it.
        manifest: of the engine, for its window and input size.
        count: at least 1.
        exif: as `open_source` takes it.

    Raises:
        MsstsError: the source is absent or broken.
    """
    if count < 1:
        raise MsstsError(f"--clips is {count}; expected at least 1")
    videos = open_source(path, exif).videos
    if len(videos) > count:
        videos = tuple(videos[i] for i in np.linspace(0, len(videos) - 1, count).round().astype(int))
    clips: list[Clip] = []
    progress = tqdm(total=count, desc="reading clips", unit="clip", disable=None, leave=False)
    for index, video in enumerate(videos):
        wanted = count * (index + 1) // len(videos) - count * index // len(videos)
        for frames_THWC in _spread(video, manifest, wanted):
            clip = engine_input(frames_THWC, manifest.input, shape=manifest.shape)
            clips.append(clip if manifest.shape is None else pad_to_shape(*clip, manifest.shape))
            progress.update()
    progress.close()
    for video in videos:
        for note in video.notes:
            print(f"warning: {video.name}: {note}", file=sys.stderr)
    return clips


def _spread(video: Video, manifest: Manifest, wanted: int) -> Iterator[np.ndarray]:
    """So many windows of a video, evenly over its length."""

    def cut() -> Iterator[list]:
        return (frames for _, frames in windows(video.frames(), manifest.clip_frames, manifest.clip_overlap))

    # Counted, as a container's claim of its length may be wrong. Images are not decoded by that.
    there = wanted if wanted == 1 else sum(1 for _ in cut())
    chosen = {0} if wanted == 1 else set(np.linspace(0, there - 1, min(wanted, there)).round().astype(int).tolist())
    for index, frames in enumerate(itertools.islice(cut(), max(chosen) + 1)):
        if index in chosen:
            yield np.stack([frame.rgb_HWC for frame in frames])


def calibrate(model: Path, tensors: Iterable[str], clips: Iterable[Clip]) -> TensorsData:
    """The range of each tensor over the clips, by ONNX Runtime's calibrater.

    Our ops run on our kernels where they are built, else as their function bodies, which takes several times as long.
    """
    with tempfile.TemporaryDirectory(prefix="mssts-calibration-") as folder:
        calibrater = _Calibrater(model, set(tensors), Path(folder) / "augmented.onnx")
        calibrater.augment_graph()
        calibrater.create_inference_session()
        calibrater.collect_data(_Reader(clips))
        return calibrater.compute_data()


class _Calibrater(MinMaxCalibrater):
    """ONNX Runtime's, of chosen tensors, in a session that has our kernels."""

    def __init__(self, model: Path, tensors: set[str], augmented: Path) -> None:
        large = onnx.load(model, load_external_data=False).ByteSize() < _on_disk(model)
        super().__init__(model, augmented_model_path=str(augmented), use_external_data_format=large)
        self._tensors = tensors

    def select_tensors_to_calibrate(self, model: onnx.ModelProto):  # type: ignore[no-untyped-def]
        tensors, value_infos = super().select_tensors_to_calibrate(model)
        return sorted(tensors & self._tensors), value_infos

    def create_inference_session(self) -> None:
        options = session_options(cpu_count())
        kernels = library("onnxruntime")
        if kernels.path is not None and not kernels.reason:
            options.register_custom_ops_library(str(kernels.path))
        self.infer_session = onnxruntime.InferenceSession(
            self.augmented_model_path, options, providers=["CPUExecutionProvider"]
        )


def _on_disk(model: Path) -> int:
    return sum(path.stat().st_size for path in (model, model.with_name(model.name + ".data")) if path.is_file())


class _Reader(CalibrationDataReader):
    def __init__(self, clips: Iterable[Clip]) -> None:
        self._clips = iter(tqdm(clips, desc="calibrating", unit="clip", disable=None, leave=False))

    def get_next(self) -> dict[str, np.ndarray] | None:
        clip = next(self._clips, None)
        return None if clip is None else dict(zip((contract.FRAMES.name, contract.SIZES.name), clip, strict=True))
