"""COCO-video data sets (CocoVID, as MMTracking and labelling tools write it).

COCO with two more ids: an image is a frame, with its `video_id` and its place there, `frame_id`; an annotation is one
object in one frame, with the `instance_id` or `track_id` that it has in all frames of its video.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from mssts import masks
from mssts.data.fields import Box, Field, check_unique, read_box, read_category, read_flag, read_path
from mssts.data.youtube_vis import Track, Video, VideoDataset, images_folder
from mssts.files import read_json


def read_coco_video(path: Path | str, images: Path | str | None = None) -> VideoDataset:
    """Reads and checks a COCO-video JSON file.

    Masks may be polygons or run lengths, compressed or not.

    Args:
        path: the JSON file. `annotations` may be absent or null (a test split), and `videos` may be absent.
        images: the folder that `file_name` is relative to; by default `JPEGImages` beside the file, else its folder.

    Returns:
        Videos in the order of `videos`, else of their first image, their frames in the order of `frame_id`. Tracks in
        the order of their first annotation, numbered from 1: an `instance_id` may start from 1 again in each video.

    Raises:
        MsstsError: the file cannot be read or breaks the format; the message names the file and the field.
    """
    path = Path(path)
    folder = images_folder(path, images)
    return parse_coco_video(Field(path, "", read_json(path)), folder)


def parse_coco_video(root: Field, images: Path) -> VideoDataset:
    """As `read_coco_video`, of a file that is read already."""
    categories = tuple(read_category(entry) for entry in root.get("categories").items())
    check_unique(root, "categories", [category.id for category in categories])
    videos, places = _read_frames(root)
    annotations = root.get_optional("annotations")
    tracks = () if annotations is None else _read_tracks(annotations, places, {category.id for category in categories})
    return VideoDataset(root.source, images, categories, videos, tracks)


def _read_frames(root: Field) -> tuple[tuple[Video, ...], dict[int, tuple[Video, int]]]:
    """The videos, and of each image's id the video and the frame that it is."""
    entries = root.get("images").items()
    ids = [entry.get("id").integer() for entry in entries]
    check_unique(root, "images", ids)
    videos_field = root.get_optional("videos")
    listed = [] if videos_field is None else videos_field.items()
    video_ids = [entry.get("id").integer() for entry in listed]
    check_unique(root, "videos", video_ids)

    frames: dict[int, dict[int, Field]] = {identity: {} for identity in video_ids}  # of each video, by frame_id
    for entry in entries:
        video_id, frame_id = entry.get("video_id"), entry.get("frame_id")
        if videos_field is not None and video_id.integer() not in frames:
            video_id.fail(f"is {video_id.value}, which no entry of videos has")
        of_video = frames.setdefault(video_id.integer(), {})
        first = of_video.setdefault(frame_id.integer(), entry)
        if first is not entry:
            frame_id.fail(f"is {frame_id.value}, which {first.place} of video {video_id.value} has already")
    for entry in listed:
        if not frames[entry.value["id"]]:
            entry.fail("has no entry in images; a video has at least 1 frame")

    videos = []
    places = {}
    for identity, of_video in frames.items():
        ordered = [of_video[frame_id] for frame_id in sorted(of_video)]
        video = _read_video(identity, ordered)
        videos.append(video)
        places.update({entry.value["id"]: (video, t) for t, entry in enumerate(ordered)})
    return tuple(videos), places


def _read_video(identity: int, images: list[Field]) -> Video:
    width, height = images[0].get("width").side(), images[0].get("height").side()
    for image in images:
        image.get("width").equals(width, f"the width of {images[0].place} of the same video")
        image.get("height").equals(height, f"the height of {images[0].place} of the same video")
    return Video(identity, width, height, tuple(read_path(image.get("file_name")) for image in images))


@dataclass
class _Object:
    """One object of a video: its first annotation, and those by frame."""

    first: Field
    video: Video
    category_id: int
    iscrowd: bool
    frames: dict[int, Field] = field(default_factory=dict)


def _read_tracks(
    annotations: Field, places: Mapping[int, tuple[Video, int]], category_ids: set[int]
) -> tuple[Track, ...]:
    objects: dict[tuple[int, int], _Object] = {}
    for entry in annotations.items():
        image_id, category_id, crowd = entry.get("image_id"), entry.get("category_id"), entry.get_optional("iscrowd")
        if image_id.integer() not in places:
            image_id.fail(f"is {image_id.value}, which no entry of images has")
        if category_id.integer() not in category_ids:
            category_id.fail(f"is {category_id.value}, which no entry of categories has")
        video, t = places[image_id.value]
        object_id = entry.get_optional("instance_id") or entry.get_optional("track_id")
        if object_id is None:
            entry.fail("has neither a field 'instance_id' nor a field 'track_id'; one must say which object it is")
        iscrowd = crowd is not None and read_flag(crowd)
        found = objects.setdefault((video.id, object_id.integer()), _Object(entry, video, category_id.value, iscrowd))
        same = f"{found.first.place}, the same object of video {video.id},"
        if category_id.value != found.category_id:
            category_id.fail(f"is {category_id.value}, but {same} has {found.category_id}")
        if iscrowd != found.iscrowd:
            entry.fail(f"has iscrowd {int(iscrowd)}, but {same} has {int(found.iscrowd)}")
        if found.frames.setdefault(t, entry) is not entry:
            object_id.fail(f"is {object_id.value}, which {found.frames[t].place} of the same image has already")
    bar = tqdm(objects.values(), desc=annotations.source.name, unit="track", disable=None)
    return tuple(_read_track(identity, found) for identity, found in enumerate(bar, 1))


def _read_track(identity: int, found: _Object) -> Track:
    video = found.video
    rles: list[bytes | None] = [None] * video.length
    bboxes: list[Box | None] = [None] * video.length
    areas: list[float | None] = [None] * video.length
    for t, entry in found.frames.items():
        segmentation, bbox, area = entry.get("segmentation"), entry.get_optional("bbox"), entry.get_optional("area")
        if segmentation.value is None:  # listed, but not visible
            continue
        rle = masks.read_mask(segmentation, f"image {entry.value['image_id']}", video.size)
        rles[t] = rle
        bboxes[t] = masks.box(rle, video.size) if bbox is None else read_box(bbox)
        areas[t] = float(masks.areas([rle], video.size)[0]) if area is None else area.number()
    return Track(identity, video.id, found.category_id, tuple(rles), tuple(bboxes), tuple(areas), found.iscrowd)
