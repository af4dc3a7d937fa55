"""MovingShapes on disk, in YouTube-VIS format."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from mssts import masks
from mssts.data.moving_shapes import version0, version1
from mssts.data.moving_shapes.video import MovingShapesVideo
from mssts.errors import MsstsError
from mssts.files import atomic_folder, read_json, reason, write_text
from mssts.manifest import Category

JPEG_QUALITY = 92

Config = version0.MovingShapesConfig | version1.MovingShapes1Config


@dataclass(frozen=True)
class Split:
    """A frozen part of version 1.

    `sha256` is the checksum of what its videos show (`Digest`).
    """

    seed: int
    videos: int
    sha256: str


SPLITS = {
    "train": Split(11, 1500, "798922995587e8e3a90f5cc862a9e10004dbf7fb5f3cf26dd671bce976b8cc08"),
    "val": Split(12, 120, "1098ce4e31e084522cf000ba4aeaa4e9feaf48cf059caf0bd3bbd722faab9e65"),
    "test": Split(13, 120, "705510886718b0dd76fc6393b8de54d225dae72de28be4070ebdfbc8f206cb1d"),
}


def render_video(config: Config, seed: int, index: int) -> MovingShapesVideo:
    """Renders video `index` of the set `seed`.

    The version is that of the configuration.

    Raises:
        MsstsError: `seed` is negative.
    """
    if seed < 0:
        raise MsstsError(f"the MovingShapes seed must not be negative, not {seed}")
    if isinstance(config, version1.MovingShapes1Config):
        return version1.render(config, np.random.default_rng(np.random.SeedSequence([1, seed, index])))
    return version0.render(config, np.random.default_rng(np.random.SeedSequence([seed, index])))


class Digest:
    """The SHA-256 of videos: their classes, pixels and masks, before JPEG."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, video: MovingShapesVideo) -> None:
        """Adds the next video."""
        for part in (video.labels.astype("<i8"), video.frames_THWC, np.packbits(video.masks_NTHW)):
            self._hash.update(np.ascontiguousarray(part).tobytes())

    def hexdigest(self) -> str:
        """The checksum of the videos so far."""
        return self._hash.hexdigest()


def _annotation(mask_THW: np.ndarray, category: Category, identity: int, video_id: int) -> dict[str, Any]:
    """The YouTube-VIS annotation of one object."""
    height, width = mask_THW.shape[1:]
    size = (height, width)
    rles = [masks.encode(mask_HW) for mask_HW in mask_THW]
    areas = masks.areas(rles, size).tolist()
    return {
        "id": identity,
        "video_id": video_id,
        "category_id": category.id,
        "iscrowd": 0,
        "height": height,
        "width": width,
        "segmentations": [masks.to_json(rle, size) if area else None for rle, area in zip(rles, areas, strict=True)],
        "bboxes": [masks.box(rle, size) if area else None for rle, area in zip(rles, areas, strict=True)],
        "areas": [area or None for area in areas],
    }


def write_dataset(out: Path | str, videos: int, seed: int, config: Config, progress: bool = True) -> Path:
    """Writes the videos of the set `seed` into the folder `out`, whole or not at all.

    `JPEGImages/<video>/<frame>.jpg` and `instances.json` are laid out as in YouTube-VIS 2019 and 2021.

    Returns:
        The path of `instances.json`.

    Raises:
        MsstsError: `out` exists and is not an empty folder, cannot be written, or `videos` is less than 1.
    """
    out = Path(out)
    if videos < 1:
        raise MsstsError(f"the number of videos must be at least 1, not {videos}")
    try:
        with atomic_folder(out) as folder:
            _write_files(folder, videos, seed, config, progress)
    except OSError as error:
        raise MsstsError(f"{out} cannot be made ({reason(error)}); expected a folder that does not exist yet") from None
    return out / "instances.json"


def write_split(out: Path | str, name: str, progress: bool = True) -> tuple[Path, bool]:
    """Writes a frozen split of version 1.

    Returns:
        The path of its `instances.json`, and whether it has the frozen checksum. Another one means that the libraries
        of this machine round otherwise.

    Raises:
        MsstsError: as of `write_dataset`.
    """
    split = SPLITS[name]
    path = write_dataset(out, split.videos, split.seed, version1.MovingShapes1Config(), progress)
    return path, read_json(path)["info"]["sha256"] == split.sha256


def _write_files(folder: Path, videos: int, seed: int, config: Config, progress: bool) -> None:
    first = isinstance(config, version1.MovingShapes1Config)
    classes = version1.CATEGORIES if first else version0.CATEGORIES
    digest = Digest()
    records: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in tqdm(range(videos), desc="MovingShapes", unit="video", disable=None if progress else True):
        video = render_video(config, seed, index)
        names = [f"{index:05d}/{t:05d}.jpg" for t in range(config.length)]
        (folder / "JPEGImages" / f"{index:05d}").mkdir(parents=True)
        for name, frame in zip(names, video.frames_THWC, strict=True):
            encoded = cv2.imencode(".jpg", frame[:, :, ::-1], (cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY))[1]
            (folder / "JPEGImages" / name).write_bytes(encoded.tobytes())
        size = {"width": config.width, "height": config.height, "length": config.length}
        records.append({"id": index + 1, **size, "file_names": names})
        if first:
            digest.add(video)
            records[-1]["scenario"] = video.scenario
        for label, mask_THW in zip(video.labels, video.masks_NTHW, strict=True):
            annotations.append(_annotation(mask_THW, classes[int(label)], len(annotations) + 1, index + 1))
    # Version 0 calls itself "1" in its files, which do not change any more.
    info: dict[str, Any] = {"description": "MovingShapes", "version": "1", "seed": seed, "config": asdict(config)}
    if first:
        info |= {"description": "MovingShapes v1", "sha256": digest.hexdigest()}
    content = {
        "info": info,
        "licenses": [],
        "videos": records,
        "categories": [{**asdict(category), "supercategory": "shape"} for category in classes],
        "annotations": annotations,
    }
    write_text(folder / "instances.json", json.dumps(content) + "\n")  # not indented: half of it would be spaces
