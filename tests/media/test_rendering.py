"""Pictures of results as a viewer sees them, video files as a player reads them."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mssts.errors import MsstsError
from mssts.media.rendering import VisibleInstance, contact_sheet, draw_instances, legible_scale, palette, write_png
from mssts.media.video_writer import VideoWriter

GREY = 90


def grey(height: int = 240, width: int = 320) -> np.ndarray:
    return np.full((height, width, 3), GREY, np.uint8)


def rectangle_mask(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros((240, 320), bool)
    mask[top:bottom, left:right] = True
    return mask


def extent(pixels: np.ndarray) -> tuple[int, int, int, int]:
    """x, y, width and height of the smallest rectangle that holds the true pixels."""
    x, y, width, height = cv2.boundingRect(pixels.astype(np.uint8))
    return x, y, width, height


def coloured(image: np.ndarray, track_id: int) -> np.ndarray:
    return (image == palette(track_id)).all(axis=-1)


def test_colours_are_told_apart() -> None:
    colours = [palette(track_id) for track_id in range(1, 65)]
    lab = cv2.cvtColor(np.array([colours], np.float32) / 255, cv2.COLOR_RGB2LAB)[0]
    # A difference of 2.3 is just noticeable side by side; across a picture, and between frames, it takes far more.
    distances = [np.linalg.norm(lab[i] - lab[j]) for i, j in combinations(range(64), 2)]
    assert min(distances) > 8
    assert min(np.linalg.norm(lab[i] - lab[j]) for i, j in combinations(range(16), 2)) > 25
    assert palette(3) == palette(3) == palette(67)


def test_mask_is_tinted_and_the_rest_untouched() -> None:
    frame = grey()
    mask = rectangle_mask(120, 100, 180, 200)
    image = draw_instances(frame, [VisibleInstance(1, "cat", 0.5, mask)])
    assert (frame == GREY).all()
    # Between the frame and the identity's colour, the same everywhere inside the contour.
    inside = image[124:176, 104:196].reshape(-1, 3)
    assert (inside == inside[0]).all()
    share = (inside[0].astype(float) - GREY) / (np.array(palette(1)) - GREY)
    assert share == pytest.approx(share.mean(), abs=0.02) and 0.3 < share.mean() < 0.6
    np.testing.assert_allclose(image[150, 100], palette(1), atol=20)  # the contour, all but opaque
    untouched = np.ones(mask.shape, bool)
    untouched[90:182, 98:202] = False  # the mask with its contour, and the label above it
    assert (image[untouched] == GREY).all()


def test_run_lengths_draw_what_the_array_draws() -> None:
    mask = rectangle_mask(50, 60, 130, 170)
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))["counts"]
    of_array, of_rle = (draw_instances(grey(), [VisibleInstance(2, "dog", 0.9, form)]) for form in (mask, rle))
    np.testing.assert_array_equal(of_rle, of_array)


def test_the_first_instance_is_on_top() -> None:
    mask = rectangle_mask(100, 100, 200, 200)
    image = draw_instances(grey(), [VisibleInstance(1, "a", 0.9, mask), VisibleInstance(2, "b", 0.8, mask)])
    alone = draw_instances(grey(), [VisibleInstance(1, "a", 0.9, mask)])[150, 150].astype(int)
    below = draw_instances(grey(), [VisibleInstance(2, "b", 0.8, mask)])[150, 150].astype(int)
    both = image[150, 150].astype(int)
    assert abs(both - alone).sum() < abs(both - below).sum()


@pytest.mark.parametrize(("x", "y"), [(0, 0), (314, 0), (0, 234), (314, 234), (150, 0), (150, 234), (314, 100)])
def test_labels_stay_whole_at_the_borders(x: int, y: int) -> None:
    def label_size(left: int, top: int) -> tuple[int, int]:
        instance = VisibleInstance(1, "person", 0.87, box=(left, top, left + 6, top + 6))
        image = draw_instances(grey(), [instance])
        changed = (image != GREY).any(axis=-1)
        changed[top : top + 6, left : left + 6] &= ~coloured(image, 1)[top : top + 6, left : left + 6]
        return extent(changed)[2:]

    width, height = label_size(100, 100)
    assert width > 50 and height >= 12
    at_border = label_size(x, y)
    assert at_border[0] == width
    assert abs(at_border[1] - height) <= 6  # a label inside its box shares rows with it


def test_labels_of_one_place_do_not_cover_each_other() -> None:
    box = (40, 60, 120, 140)
    image = draw_instances(grey(), [VisibleInstance(i, "person", 0.5, box=box) for i in (1, 2, 3, 4)])
    rows = []
    for track_id in (1, 2, 3, 4):
        label = coloured(image, track_id)
        label[:, :122] = False  # beside the box's own lines: labels are wider than the box
        _, y, _, height = extent(label)
        rows.append(set(range(y, y + height)))
        assert height >= 12
    assert not any(a & b for a, b in combinations(rows, 2))


def test_what_cannot_be_seen_is_not_drawn() -> None:
    nothing = [
        VisibleInstance(1, "a", 0.5, np.zeros((240, 320), bool), (np.nan,) * 4),
        VisibleInstance(2, "b", 0.5, None, (400, 10, 500, 90)),
    ]
    assert (draw_instances(grey(), nothing) == GREY).all()


@pytest.mark.parametrize("size", [(16, 16), (9, 400), (400, 9), (1, 1)])
def test_long_names_and_small_frames(size: tuple[int, int]) -> None:
    instance = VisibleInstance(1, "très long nom de classe " * 5, 0.5, np.ones(size, bool), (0, 0, size[1], size[0]))
    assert draw_instances(grey(*size), [instance]).shape == (*size, 3)


def test_small_frames_are_enlarged() -> None:
    assert (legible_scale(144, 256), legible_scale(720, 1280), legible_scale(8, 900)) == (4, 1, 2)
    mask = rectangle_mask(100, 100, 200, 200)
    image = draw_instances(grey(), [VisibleInstance(1, "a", 0.9, mask, (100, 100, 200, 200))], scale=3)
    assert image.shape == (720, 960, 3)
    plain = draw_instances(grey(), [VisibleInstance(1, "a", 0.9, mask)])
    np.testing.assert_array_equal(image[450, 450], plain[150, 150])
    x, y, width, height = extent(coloured(image, 1)[300:, :])  # below the label, which the box carries
    np.testing.assert_allclose((x, width, y + height), (300, 300, 300), atol=2)  # the width of its line


def test_contact_sheet_shows_every_image_with_its_caption() -> None:
    images = [np.full((60, 100, 3), 40 * i, np.uint8) for i in range(1, 6)]
    sheet = contact_sheet(images, 3, [f"frame {i}" for i in range(5)])
    bare = contact_sheet(images, 3)
    places = []
    for i in range(1, 6):
        x, y, width, height = extent((sheet == 40 * i).all(axis=-1) & (sheet[..., :1] == 40 * i).all(axis=-1))
        places.append((x, y))
        assert (sheet[y : y + height, x : x + width] == 40 * i).mean() > 0.9 and (width, height) >= (100, 60)
    assert places[0][1] == places[1][1] == places[2][1] < places[3][1] == places[4][1]
    assert places[0][0] == places[3][0] < places[1][0] == places[4][0] < places[2][0]
    assert sheet.shape[0] > bare.shape[0]
    assert len(np.unique(sheet[: places[0][1]].reshape(-1, 3), axis=0)) > 2  # something is written above the first


def test_png_holds_the_pixels(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    write_png(tmp_path / "sheet.png", image)
    read = cv2.cvtColor(cv2.imread(str(tmp_path / "sheet.png")), cv2.COLOR_BGR2RGB)
    np.testing.assert_array_equal(read, image)
    (tmp_path / "file").touch()
    with pytest.raises(MsstsError, match="cannot be written"):
        write_png(tmp_path / "file" / "sheet.png", image)


def moving_square(size: tuple[int, int], frames: int) -> list[np.ndarray]:
    images = [np.full((*size, 3), (200, 60, 40), np.uint8) for _ in range(frames)]
    for t, image in enumerate(images):
        image[10:30, 4 * t : 4 * t + 20] = (30, 120, 220)
    return images


@pytest.mark.parametrize(("size", "even"), [((64, 96), (64, 96)), ((61, 97), (62, 98))])
def test_video_can_be_read_again(tmp_path: Path, size: tuple[int, int], even: tuple[int, int]) -> None:
    path = tmp_path / "overlay.mp4"
    images = moving_square(size, 15)
    with VideoWriter(path, 30000 / 1001, size) as writer:
        for image in images:
            writer.write(image)
    assert [file.name for file in tmp_path.iterdir()] == ["overlay.mp4"]
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264" and stream.codec_context.pix_fmt == "yuv420p"
        assert stream.average_rate == Fraction(30000, 1001)
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert [frame.shape for frame in decoded] == [(*even, 3)] * 15
    for image, frame in zip(images, decoded, strict=True):
        # Away from edges only rounding is lost; wrong colour coefficients would shift such colours by 10 or more.
        assert abs(frame[45:55, 5:90].astype(int) - image[45:55, 5:90]).max() <= 4
        assert abs(frame[: size[0], : size[1]].astype(int) - image).mean() < 4
    # The index comes before the pictures, so that a browser starts at once.
    data = path.read_bytes()
    assert 0 <= data.find(b"moov") < data.find(b"mdat")


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_video_leaves_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "overlay.mp4"
    path.write_bytes(b"the one before")
    with pytest.raises(error), VideoWriter(path, 10, (64, 96)) as writer:
        for image in moving_square((64, 96), 5):
            writer.write(image)
        raise error
    assert [file.name for file in tmp_path.iterdir()] == ["overlay.mp4"]
    assert path.read_bytes() == b"the one before"


def test_a_video_without_frames_or_place_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MsstsError, match="no frame"), VideoWriter(tmp_path / "empty.mp4", 10, (64, 96)):
        pass
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(MsstsError, match="cannot be written"), VideoWriter(tmp_path / "file" / "a.mp4", 10, (64, 96)):
        pass


def test_a_frame_of_another_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not fit"), VideoWriter(tmp_path / "a.mp4", 10, (64, 96)) as writer:
        writer.write(grey(64, 98))
    assert not list(tmp_path.iterdir())
