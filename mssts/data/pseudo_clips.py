"""Pseudo clips: an image becomes a clip as if a hand-held camera had filmed it.

Each frame but one is the image turned, cropped in perspective and shifted, so that objects move, and leave and
enter, with exact masks. Letters: N instances, T frames, H and W of the frames.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from mssts.data.clips import Clip, ClipTransform, Geometry, learnable_tracks, visible_clip
from mssts.data.colours import colour_change
from mssts.data.youtube_vis import VideoDataset
from mssts.errors import MsstsError


@dataclass(frozen=True)
class CameraMotion:
    """The camera's range. The defaults are SeqFormer's (its datasets/coco2seq.py)."""

    rotation: float = 20.0  # degrees either way
    shift: float = 0.1  # either way, of each side
    perspective: float = 0.08  # of each side: the standard deviation of how far a corner of the view moves inwards
    brightness: float = 40.0  # either way, of 255
    hue: float = 7.0  # degrees either way
    saturation: float = 0.02  # either way, of the colour's own
    blur: float = 0.25  # probability
    blur_lengths: tuple[int, ...] = (9, 11)  # pixels of the image


class PseudoClipDataset:
    """A pseudo clip of each image with objects, by the rules of `ClipDataset`.

    Of the transform, crop, sizes and flip apply to the clip as a whole. `jitter` does not: colours change from frame to
    frame, as the motion says.
    """

    def __init__(
        self,
        dataset: VideoDataset,
        transform: ClipTransform,
        clip_frames: int,
        seed: int,
        motion: CameraMotion | None = None,
        max_instances: int = 25,
    ) -> None:
        """Prepares pseudo clips of the images.

        Args:
            dataset: of images (`read_coco`).
            transform: how a clip is augmented.
            clip_frames: the frames of a clip.
            seed: of everything that is drawn.
            motion: by default SeqFormer's.
            max_instances: images with more are left out, as SeqFormer does.

        Raises:
            MsstsError: no image has an annotation.
        """
        self.dataset, self.transform, self.clip_frames, self.seed = dataset, transform, clip_frames, seed
        self.motion = motion or CameraMotion()
        self.pictures = [
            picture for picture in dataset.videos if 1 <= len(learnable_tracks(dataset, picture)) <= max_instances
        ]
        if not self.pictures:
            raise MsstsError(f"{dataset.source}: no image has 1 to {max_instances} annotations; nothing to learn from")

    def __len__(self) -> int:
        return len(self.pictures)

    def sample(self, index: int, epoch: int) -> Clip:
        """The clip of image `index` in `epoch`.

        Raises:
            MsstsError: an image is missing, broken or of another size than the file says.
        """
        rng = np.random.default_rng(np.random.SeedSequence([self.seed, epoch, index]))
        picture = self.pictures[index]
        geometry = Geometry.draw(rng, self.transform, picture.height, picture.width)
        image = self.dataset.read_frame(picture, 0)
        tracks = learnable_tracks(self.dataset, picture)
        masks = [self.dataset.mask(track, 0) for track in tracks]

        untouched = int(rng.integers(self.clip_frames))
        frames, masks_by_frame = [], []
        for t in range(self.clip_frames):
            if t == untouched:
                frames.append(geometry.frame(image))
                masks_by_frame.append([geometry.mask(mask) for mask in masks])
                continue
            view = draw_view(rng, self.motion, picture.height, picture.width)
            frame = _warp(cv2.transform(image, _draw_colours(rng, self.motion)), view)
            frames.append(geometry.frame(_blur(rng, self.motion, frame)))
            masks_by_frame.append([geometry.mask(_warp_mask(mask, view)) for mask in masks])
        return visible_clip(
            video_id=picture.id,
            frame_indices=(0,) * self.clip_frames,
            frames_THWC=np.stack(frames),
            labels_N=np.array([self.dataset.label_of[track.category_id] for track in tracks], np.int64),
            masks_NTHW=np.stack(masks_by_frame, axis=1),
        )


def draw_view(rng: np.random.Generator, motion: CameraMotion, height: int, width: int) -> np.ndarray:
    """The camera's homography of pixel coordinates, float64 [3, 3].

    A quadrilateral within the image fills the frame (a crop, in perspective), which is then turned about its centre and
    shifted.
    """
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    # Less than half a side, or the corners could pass one another.
    inwards = np.minimum(np.abs(rng.normal(0, motion.perspective, (4, 2))), 0.4) * (width, height)
    seen = corners + inwards * [[1, 1], [-1, 1], [-1, -1], [1, -1]]
    crop = cv2.getPerspectiveTransform(seen.astype(np.float32), corners)

    angle = math.radians(motion.rotation * rng.uniform(-1, 1))
    turn = np.array([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]])
    x, y = motion.shift * rng.uniform(-1, 1, 2) * (width, height)
    # OpenCV counts from the middle of the first pixel.
    return (
        _translation(width / 2 + x - 0.5, height / 2 + y - 0.5)
        @ turn
        @ _translation(-width / 2, -height / 2)
        @ crop
        @ _translation(0.5, 0.5)
    )


def _translation(x: float, y: float) -> np.ndarray:
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]], float)


def _warp(image: np.ndarray, view: np.ndarray) -> np.ndarray:
    """The image seen through `view`, black outside."""
    height, width = image.shape[:2]
    return cv2.warpPerspective(image, view, (width, height), flags=cv2.INTER_LINEAR)


def _warp_mask(mask: np.ndarray, view: np.ndarray) -> np.ndarray:
    return _warp(mask.view(np.uint8) * np.uint8(255), view) >= 128


def _draw_colours(rng: np.random.Generator, motion: CameraMotion) -> np.ndarray:
    brightness, saturation, hue = rng.uniform(-1, 1, 3) * (motion.brightness, motion.saturation, motion.hue)
    return colour_change(brightness, 1.0, 1 + saturation, math.radians(hue))


def _blur(rng: np.random.Generator, motion: CameraMotion, frame: np.ndarray) -> np.ndarray:
    """Now and then blurs a frame along a line."""
    if rng.random() >= motion.blur:
        return frame
    return cv2.filter2D(frame, -1, _line(int(rng.choice(motion.blur_lengths)), rng.uniform(0, math.pi)))


def _line(length: int, angle: float) -> np.ndarray:
    """The kernel of a motion blur, float32 [length, length] of sum 1."""
    kernel = np.zeros((length, length), np.float32)
    middle, reach = (length - 1) / 2, np.linspace(-1, 1, 2 * length)
    rows = np.rint(middle + middle * reach * math.sin(angle)).astype(int)
    columns = np.rint(middle + middle * reach * math.cos(angle)).astype(int)
    kernel[rows, columns] = 1
    return kernel / kernel.sum()
