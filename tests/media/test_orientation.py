"""EXIF orientation: every tag, in every place where an image may lie."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from support.media_files import as_displayed, with_exif

from mssts.data.videos import read_videos
from mssts.errors import MsstsError
from mssts.media.images import decode_image, file_exif_tag, image_size
from mssts.media.sources import open_source
from mssts.training.config import recipe
from mssts.training.sources import training_data

# Where the EXIF standard says that row 0 and column 0 of the stored picture are displayed, as a matrix of points.
TURNS = {
    1: (1, 0, 0, 1),
    2: (-1, 0, 0, 1),
    3: (-1, 0, 0, -1),
    4: (1, 0, 0, -1),
    5: (0, 1, 1, 0),
    6: (0, 1, -1, 0),
    7: (0, -1, -1, 0),
    8: (0, -1, 1, 0),
}


def picture(height: int = 24, width: int = 40) -> np.ndarray:
    image = np.full((height, width, 3), 90, np.uint8)
    image[:8, :8], image[:8, -8:], image[-8:, :8] = (220, 30, 30), (30, 200, 30), (40, 40, 220)
    return image


def encode(rgb: np.ndarray, suffix: str) -> bytes:
    parameters = (cv2.IMWRITE_JPEG_QUALITY, 100, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, 0x111111)
    return cv2.imencode(suffix, rgb[..., ::-1], parameters if suffix == ".jpg" else ())[1].tobytes()


def close(left: np.ndarray, right: np.ndarray) -> bool:
    return left.shape == right.shape and np.abs(left.astype(int) - right).max() <= 3


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("tag", range(1, 9))
def test_an_image_is_decoded_as_displayed(tag: int, suffix: str) -> None:
    encoded = with_exif(encode(picture(), suffix), tag)
    expected = as_displayed(picture(), TURNS[tag])
    assert image_size(encoded) == expected.shape[:2]
    decoded = decode_image(encoded)
    assert close(decoded, expected)
    assert decoded.flags.c_contiguous
    assert image_size(encoded, "ignore") == (24, 40)
    assert close(decode_image(encoded, "ignore"), picture())
    if suffix == ".jpg":  # OpenCV knows it of JPEG
        shown = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
        assert close(decoded, shown)


def test_exif_of_either_byte_order_and_type_is_read_and_nonsense_is_1() -> None:
    jpeg = encode(picture(), ".jpg")
    for order in "<>":
        for kind in (3, 4):
            assert image_size(with_exif(jpeg, 6, order, kind)) == (40, 24)
    for tag in (0, 9, 65535):
        assert close(decode_image(with_exif(jpeg, tag)), picture())
    # A directory that leads out of the segment, and a segment of another kind before EXIF's own.
    broken = with_exif(jpeg, 6).replace(b"MM\x00\x2a\x00\x00\x00\x08", b"MM\x00\x2a\x00\x0f\x00\x08")
    assert close(decode_image(broken), picture())
    other = b"\xff\xe1\x00\x12http://ns.adobe." + with_exif(jpeg, 6)[2:]
    assert image_size(jpeg[:2] + other) == (40, 24)


def test_a_tag_is_found_wherever_it_lies_in_the_file(tmp_path: Path) -> None:
    jpeg, png = encode(picture(), ".jpg"), with_exif(encode(picture(), ".png"), 6)
    profile = b"\xff\xe2" + (65535).to_bytes(2, "big") + bytes(65533)
    exif = png.index(b"eXIf") - 4
    chunk, without = png[exif : exif + 12 + int.from_bytes(png[exif : exif + 4], "big")], encode(picture(), ".png")
    end = without.index(b"IEND") - 4
    files = {
        "late.jpg": jpeg[:2] + profile + with_exif(jpeg, 6)[2:],
        "late.png": without[:end] + chunk + without[end:],
    }
    for name, encoded in files.items():
        (tmp_path / name).write_bytes(encoded)
        assert file_exif_tag(tmp_path / name) == 6
        assert image_size(encoded) == (40, 24)
    (tmp_path / "none.jpg").write_bytes(jpeg)
    (tmp_path / "text.jpg").write_text("no image")
    assert [file_exif_tag(tmp_path / name) for name in ("none.jpg", "text.jpg")] == [1, 1]


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("tag", [2, 5, 8])
def test_photos_and_folders_are_read_as_displayed(tag: int, suffix: str, tmp_path: Path) -> None:
    encoded = with_exif(encode(picture(), suffix), tag)
    expected = as_displayed(picture(), TURNS[tag])
    (tmp_path / f"photo{suffix}").write_bytes(encoded)
    (tmp_path / "folder").mkdir()
    for t in range(2):
        (tmp_path / "folder" / f"{t}{suffix}").write_bytes(encoded)
    for path, frames in ((tmp_path / f"photo{suffix}", 1), (tmp_path / "folder", 2)):
        (video,) = open_source(path).videos
        shown = list(video.frames())
        assert (video.size, video.length, len(shown)) == (expected.shape[:2], frames, frames)
        assert all(close(frame.rgb_HWC, expected) and frame.encoded == encoded for frame in shown)
        (video,) = open_source(path, "ignore").videos
        stored = next(video.frames())
        assert video.size == (24, 40)
        assert close(stored.rgb_HWC, picture())
        assert stored.encoded is None  # a server would turn it


def write_dataset(folder: Path, tag: int, size: tuple[int, int], masks: bool, suffix: str = ".jpg") -> Path:
    """Two frames, of which the second has a tag.

    `size` is what the file claims.
    """
    images = folder / "JPEGImages" / "a"
    images.mkdir(parents=True)
    upright = picture() if size == (24, 40) or tag < 5 else as_displayed(picture(), TURNS[tag])
    (images / f"0{suffix}").write_bytes(encode(upright, suffix))
    (images / f"1{suffix}").write_bytes(with_exif(encode(picture(), suffix), tag))
    mask = np.zeros(size, np.uint8, order="F")
    mask[:8, :8] = 1
    rle = {"size": list(size), "counts": coco_mask.encode(mask)["counts"].decode()}
    video = {"id": 1, "height": size[0], "width": size[1], "file_names": [f"a/{t}{suffix}" for t in range(2)]}
    track = {"id": 1, "video_id": 1, "category_id": 1, "segmentations": [rle, rle]}
    value = {"videos": [video], "categories": [{"id": 1, "name": "thing"}], "annotations": [track] if masks else None}
    path = folder / "instances.json"
    path.write_text(json.dumps(value))
    return path


@pytest.mark.parametrize(("tag", "suffix"), [(3, ".jpg"), (6, ".png")])
def test_a_data_set_with_masks_must_say_what_they_lie_on(tag: int, suffix: str, tmp_path: Path) -> None:
    turned = as_displayed(picture(), TURNS[tag])
    path = write_dataset(tmp_path / "apply", tag, turned.shape[:2], masks=True, suffix=suffix)
    refusal = rf"a/1{suffix}: has EXIF orientation {tag}, .*--exif apply or --exif ignore"
    with pytest.raises(MsstsError, match=refusal):
        open_source(path)
    with pytest.raises(MsstsError, match=refusal):
        training_data(recipe("tiny"), 0, path)
    (video,) = open_source(path, "apply").videos
    assert close(list(video.frames())[1].rgb_HWC, turned)
    assert training_data(recipe("tiny"), 0, path, exif="apply").clips.sample(0, 0).frames_THWC.shape[0] > 0

    path = write_dataset(tmp_path / "ignore", tag, (24, 40), masks=True, suffix=suffix)
    (video,) = open_source(path, "ignore").videos
    frames = list(video.frames())
    assert close(frames[1].rgb_HWC, picture())
    assert [frame.encoded is None for frame in frames] == [False, True]
    data = training_data(recipe("tiny"), 0, path, exif="ignore")
    dataset = data.clips.dataset  # type: ignore[attr-defined]
    assert close(dataset.read_frame(dataset.videos[0], 1), picture())


def test_a_data_set_without_masks_is_read_as_displayed(tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "set", 6, (40, 24), masks=False)
    (video,) = open_source(path).videos
    assert close(list(video.frames())[1].rgb_HWC, as_displayed(picture(), TURNS[6]))
    dataset = read_videos(path)
    assert close(dataset.read_frame(dataset.videos[0], 1), as_displayed(picture(), TURNS[6]))
    path = write_dataset(tmp_path / "stored", 6, (24, 40), masks=False)
    (video,) = open_source(path).videos
    with pytest.raises(MsstsError, match=r"1\.jpg: 24×40 \(with --exif apply: its EXIF orientation is 6\), expected"):
        list(video.frames())
