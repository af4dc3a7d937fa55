"""The clips that a training asks for: videos, images, or both."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from mssts.data.clips import ClipDataset, ClipSource
from mssts.data.coco import keep_for, read_coco
from mssts.data.joint_clips import JointClips
from mssts.data.pseudo_clips import PseudoClipDataset
from mssts.data.videos import read_videos
from mssts.data.youtube_vis import VideoDataset
from mssts.errors import MsstsError
from mssts.manifest import Category
from mssts.media.orientation import Exif
from mssts.training.config import TrainConfig


@dataclass(frozen=True)
class TrainingData:
    """Training clips, their categories, and a line that says where they come from."""

    clips: ClipSource
    categories: tuple[Category, ...]
    summary: str


def training_data(
    config: TrainConfig,
    seed: int,
    data: Path | None,
    coco: Path | None = None,
    coco_images: Path | None = None,
    exif: Exif | None = None,
) -> TrainingData:
    """Reads what is to be trained on and looks whether its images are there.

    With videos and COCO, the classes are those of the videos, and only what of COCO shows one of them is used. COCO
    alone is pre-training on its own classes.

    Args:
        config: how clips are drawn.
        seed: of everything that is drawn.
        data: a YouTube-VIS or COCO-video file, or the folder of its `instances.json`.
        coco: a COCO instance segmentation file.
        coco_images: the folder of its images (default: as `read_coco` finds it).
        exif: whether masks are those of the images with their EXIF orientation applied or ignored; an image that has
            one is refused if None.

    Raises:
        MsstsError: there is nothing to train on, a file is broken, or an image is missing.
    """
    if coco is None and coco_images is not None:
        raise MsstsError("--coco-images belongs to --coco; pass that as well, or leave it out")
    if data is None and coco is None:
        raise MsstsError("nothing to train on; pass --data, --coco or both")
    sources: list[ClipSource] = []
    summary = []
    videos: VideoDataset | None = None
    if data is not None:
        videos = replace(read_videos(data / "instances.json" if data.is_dir() else data), exif=exif)
        videos.check_images()
        sources.append(
            ClipDataset(videos, config.transform, config.clip_frames, seed, config.sampling, config.every_frame)
        )
        summary.append(f"{len(sources[0])} clips an epoch of {len(videos.videos)} videos ({videos.source})")
    categories = videos.categories if videos is not None else ()
    if coco is not None:
        images = replace(read_coco(coco, coco_images), exif=exif)
        left_out = ""
        if videos is None:
            categories = images.categories
        else:
            images, dropped = keep_for(images, categories)
            left_out = f", without {dropped.total()} of {len(dropped)} categories that the videos lack"
        images.check_images()
        sources.append(PseudoClipDataset(images, config.transform, config.clip_frames, seed))
        counts = f"{len(images.videos)} images with {len(images.tracks)} annotations{left_out}"
        summary.append(f"{len(sources[-1])} pseudo clips an epoch of {counts} ({images.source})")
    clips = sources[0] if len(sources) == 1 else JointClips(sources)
    return TrainingData(clips, categories, "; ".join(summary))
