"""Readers of video data sets in either format, YouTube-VIS or COCO-video."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mssts.data.coco_video import parse_coco_video
from mssts.data.fields import Field
from mssts.data.youtube_vis import VideoDataset, images_folder, parse_youtube_vis, to_youtube_vis
from mssts.files import read_json


def read_videos(path: Path | str, images: Path | str | None = None) -> VideoDataset:
    """Reads and checks a YouTube-VIS or a COCO-video JSON file, whichever it is.

    Args:
        path: the JSON file. `annotations` may be absent or null, as in the test splits.
        images: the folder that file names are relative to; by default `JPEGImages` beside the file, else its folder.

    Raises:
        MsstsError: the file cannot be read or breaks its format; the message names the file and the field.
    """
    path = Path(path)
    folder = images_folder(path, images)
    root = Field(path, "", read_json(path))
    return parse_coco_video(root, folder) if _is_coco_video(root.value) else parse_youtube_vis(root, folder)


def read_youtube_vis_value(path: Path | str) -> Any:
    """The unchecked JSON value of a YouTube-VIS or converted COCO-video file.

    Raises:
        MsstsError: the file is not JSON, or breaks the COCO-video format; the message names the file and the field.
    """
    path = Path(path)
    value = read_json(path)
    return to_youtube_vis(parse_coco_video(Field(path, "", value), path.parent)) if _is_coco_video(value) else value


def _is_coco_video(value: Any) -> bool:
    """Whether a value is COCO-video, which lists frames as `images`."""
    if not isinstance(value, dict) or "images" not in value:
        return False
    videos = value.get("videos")
    return not isinstance(videos, list) or not any(
        isinstance(video, dict) and "file_names" in video for video in videos
    )
