"""COCO instance segmentation as videos of one frame, in a video set's categories."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from mssts import masks
from mssts.data.fields import Field, check_unique, read_box, read_category, read_flag, read_path
from mssts.data.youtube_vis import Track, Video, VideoDataset
from mssts.data.youtube_vis_classes import YOUTUBE_VIS_2019, YOUTUBE_VIS_2021
from mssts.errors import MsstsError
from mssts.files import read_json
from mssts.manifest import Category

# COCO's categories that YouTube-VIS 2019 has as well: those that SeqFormer's annotations for joint training
# (coco_keepfor_ytvis19.json) keep, as `category_map` in datasets/coco2seq.py of SeqFormer and of MS-STS VIS has them.
# One of the 21 pairs there is left out: 74 to 24, COCO's mouse, a computer's, to what is 2019's fox (and 2021's mouse,
# the animal).
COCO_TO_YOUTUBE_VIS_2019: Mapping[str, str] = {
    "person": "person",
    "bicycle": "motorbike",
    "car": "sedan",
    "motorcycle": "motorbike",
    "airplane": "airplane",
    "train": "train",
    "truck": "truck",
    "boat": "boat",
    "cat": "cat",
    "dog": "dog",
    "horse": "horse",
    "cow": "cow",
    "elephant": "elephant",
    "bear": "bear",
    "zebra": "zebra",
    "giraffe": "giraffe",
    "snowboard": "snowboard",
    "skateboard": "skateboard",
    "surfboard": "surfboard",
    "tennis racket": "tennis_racket",
}

# The same for YouTube-VIS 2021, which has birds too and calls a car a car (a comment beside `category_map` has it), and
# flying discs, which that leaves out and VITA (arXiv 2206.04403) has.
COCO_TO_YOUTUBE_VIS_2021: Mapping[str, str] = {
    **COCO_TO_YOUTUBE_VIS_2019,
    "car": "car",
    "bird": "bird",
    "frisbee": "flying_disc",
}


def read_coco(path: Path | str, images: Path | str | None = None, progress: bool = True) -> VideoDataset:
    """Reads and checks a COCO instance segmentation file.

    Masks may be polygons or run lengths, compressed or not.

    Args:
        path: the JSON file.
        images: the folder that `file_name` is relative to; by default that of COCO's own layout
            (`train2017` beside `annotations/instances_train2017.json`), else the file's folder.
        progress: whether to show a bar, on a terminal.

    Returns:
        The images as videos of one frame, their annotations as tracks.

    Raises:
        MsstsError: the file cannot be read or breaks the format; the message names the file and the field.
    """
    path = Path(path)
    if images is None:
        split = path.parent.parent / path.stem.removeprefix("instances_")
        images = split if split.is_dir() else path.parent
    elif not Path(images).is_dir():
        raise MsstsError(f"{images}: no such folder; expected the images that {path.name} lists")

    root = Field(path, "", read_json(path))
    categories = tuple(read_category(field) for field in root.get("categories").items())
    check_unique(root, "categories", [category.id for category in categories])
    pictures = tuple(_read_image(field) for field in root.get("images").items())
    check_unique(root, "images", [picture.id for picture in pictures])

    pictures_by_id = {picture.id: picture for picture in pictures}
    category_ids = {category.id for category in categories}
    bar = tqdm(root.get("annotations").items(), desc=path.name, unit="mask", disable=None if progress else True)
    tracks = tuple(_read_annotation(field, pictures_by_id, category_ids) for field in bar)
    check_unique(root, "annotations", [track.id for track in tracks])
    return VideoDataset(path, Path(images), categories, pictures, tracks, still=True)


def _read_image(field: Field) -> Video:
    width, height = field.get("width").side(), field.get("height").side()
    return Video(field.get("id").integer(), width, height, (read_path(field.get("file_name")),))


def _read_annotation(field: Field, pictures: Mapping[int, Video], category_ids: set[int]) -> Track:
    image_id, category_id = field.get("image_id"), field.get("category_id")
    picture = pictures.get(image_id.integer())
    if picture is None:
        image_id.fail(f"is {image_id.value}, which no entry of images has")
    if category_id.integer() not in category_ids:
        category_id.fail(f"is {category_id.value}, which no entry of categories has")
    rle = masks.read_mask(field.get("segmentation"), f"image {picture.id}", picture.size)
    bbox, area, crowd = (field.get_optional(key) for key in ("bbox", "area", "iscrowd"))
    return Track(
        id=field.get("id").integer(),
        video_id=picture.id,
        category_id=category_id.value,
        rles=(rle,),
        bboxes=(masks.box(rle, picture.size) if bbox is None else read_box(bbox),),
        areas=(float(masks.areas([rle], picture.size)[0]) if area is None else area.number(),),
        iscrowd=crowd is not None and read_flag(crowd),
    )


def category_names(categories: Iterable[Category]) -> dict[str, str]:
    """COCO's names of the categories of a video data set.

    The two tables above serve YouTube-VIS and any part of it; of another data set, those count that COCO calls the same
    (but for the underscores that YouTube-VIS writes for spaces).
    """
    names = {category.name for category in categories}
    tables = ((YOUTUBE_VIS_2019, COCO_TO_YOUTUBE_VIS_2019), (YOUTUBE_VIS_2021, COCO_TO_YOUTUBE_VIS_2021))
    for known, table in tables:
        if names <= set(known):
            return {coco: name for coco, name in table.items() if name in names}
    return {name.replace("_", " "): name for name in sorted(names)}


def keep_for(dataset: VideoDataset, categories: Sequence[Category]) -> tuple[VideoDataset, Counter[str]]:
    """The part of COCO that shows categories of a video data set, in those categories.

    Returns:
        The data set, with `categories` and only the images that show one of them; and how many annotations of each
        other category, by COCO's name, were dropped.

    Raises:
        MsstsError: nothing would be left.
    """
    names = category_names(categories)
    id_of = {category.name: category.id for category in categories}
    name_of = {category.id: category.name for category in dataset.categories}
    kept, dropped = [], Counter[str]()
    for track in dataset.tracks:
        coco = name_of[track.category_id]
        if coco in names:
            kept.append(replace(track, category_id=id_of[names[coco]]))
        else:
            dropped[coco] += 1
    if not kept:
        wanted = ", ".join(sorted(names)) or "none that COCO has"
        raise MsstsError(f"{dataset.source}: no annotation of a category of the videos; expected one of: {wanted}")
    shown = {track.video_id for track in kept}
    pictures = tuple(picture for picture in dataset.videos if picture.id in shown)
    return replace(dataset, categories=tuple(categories), videos=pictures, tracks=tuple(kept)), dropped
