"""Training clips: a few frames of a video with boxes and masks of its objects.

Every frame of a clip is augmented in the same way.

A clip is a pure function of (seed, epoch, index), so that a resumed training sees what an unbroken one would have.
Letters: N instances, T frames, H and W of the clip's frames.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np

from mssts.data.colours import distorted, draw_colours
from mssts.data.frame_sampling import FrameSampling, Window
from mssts.data.youtube_vis import Track, Video, VideoDataset
from mssts.errors import MsstsError


@dataclass(frozen=True)
class RelativeCrop:
    """Keeps at least `least` of each side."""

    least: float = 0.6

    def draw(self, rng: np.random.Generator, height: int, width: int) -> tuple[int, int]:
        """Height and width of a crop of a frame."""
        crop_height, crop_width = (math.ceil(side * rng.uniform(self.least, 1)) for side in (height, width))
        return crop_height, crop_width


@dataclass(frozen=True)
class ResizedCrop:
    """A crop of `least` to `most` pixels a side, after the short edge is resized.

    So DETR and SeqFormer crop, whatever the size of the frame; the defaults are theirs.
    """

    short_edges: tuple[int, ...] = (400, 500, 600)
    least: int = 384
    most: int = 600

    def draw(self, rng: np.random.Generator, height: int, width: int) -> tuple[int, int]:
        """Height and width of a crop in the frame's own pixels, before it is resized."""
        scale = int(rng.choice(self.short_edges)) / min(height, width)
        crop_height, crop_width = (self._side(rng, side, scale) for side in (height, width))
        return crop_height, crop_width

    def _side(self, rng: np.random.Generator, side: int, scale: float) -> int:
        most = min(self.most, side * scale)
        return min(side, max(1, round(rng.uniform(min(self.least, most), most) / scale)))


@dataclass(frozen=True)
class ClipTransform:
    """Augmentation of clips. The defaults are SeqFormer's sizes for YouTube-VIS.

    `short_edges` are the sizes in pixels of which one is drawn for a clip's short edge, less where the long edge would
    exceed `long_edge`. `crop`, `flip` and `reverse` (of time) are probabilities, `crop_size` says how much a crop
    keeps. `jitter` is the strength, from 0 to 1, of a change of colours that all frames of a clip share. `distort`
    changes the colours of each frame on its own (`mssts.data.colours`), as the released code does.
    """

    short_edges: tuple[int, ...] = (288, 320, 352, 392, 416, 448, 480, 512)
    long_edge: int = 768
    crop: float = 0.5
    crop_size: RelativeCrop | ResizedCrop = ResizedCrop()
    flip: float = 0.5
    reverse: float = 0.5
    jitter: float = 0.4
    distort: bool = False


@dataclass(frozen=True)
class Clip:
    """T frames and the N instances (maybe 0) visible in at least one of them."""

    video_id: int
    frame_indices: tuple[int, ...]
    frames_THWC: np.ndarray  # uint8, RGB
    labels_N: np.ndarray  # int64, index into the data set's categories
    boxes_NT4: np.ndarray  # float32: centre x, centre y, width, height as fractions of the clip's size; 0 where absent
    masks_NTHW: np.ndarray  # bool
    present_NT: np.ndarray  # bool, whether the mask has any pixel


class ClipSource(Protocol):
    """The source of training clips: `len()` of them an epoch.

    Each is a pure function of index and epoch."""

    def __len__(self) -> int: ...

    def sample(self, index: int, epoch: int) -> Clip: ...


class ClipDataset:
    """Clips of the videos that have a track to learn from (crowds are none)."""

    def __init__(
        self,
        dataset: VideoDataset,
        transform: ClipTransform,
        clip_frames: int,
        seed: int,
        sampling: FrameSampling | None = None,
        every_frame: bool = False,
    ) -> None:
        """Prepares an epoch of clips.

        Args:
            dataset: the videos and their tracks.
            transform: how a clip is augmented.
            clip_frames: the frames of a clip.
            seed: of everything that is drawn.
            sampling: which frames of a video make a clip; `Window()` if None.
            every_frame: an epoch has a clip about each frame, as SeqFormer's, rather than one of each video.

        Raises:
            MsstsError: the data set has no annotated video.
        """
        self.dataset, self.transform = dataset, transform
        self.clip_frames, self.seed, self.sampling = clip_frames, seed, sampling or Window()
        self.videos = [video for video in dataset.videos if learnable_tracks(dataset, video)]
        if not self.videos:
            raise MsstsError(f"{dataset.source}: no video has an annotation; training needs an annotated split")
        self._clips: list[tuple[Video, int | None]] = [(video, None) for video in self.videos]
        if every_frame:
            self._clips = [(video, t) for video in self.videos for t in range(video.length)]

    def __len__(self) -> int:
        return len(self._clips)

    def sample(self, index: int, epoch: int) -> Clip:
        """Clip `index` of `epoch`.

        Raises:
            MsstsError: an image is missing, broken or of another size than the file says.
        """
        rng = np.random.default_rng(np.random.SeedSequence([self.seed, epoch, index]))
        video, centre = self._clips[index]
        indices = self.sampling.draw(rng, video.length, self.clip_frames, centre)
        if rng.random() < self.transform.reverse:
            indices = indices[::-1]
        geometry = Geometry.draw(rng, self.transform, video.height, video.width)
        colours = draw_colours(rng, self.transform.jitter)

        unique, where = np.unique(indices, return_inverse=True)
        frames_THWC = np.stack([geometry.frame(self.dataset.read_frame(video, int(t))) for t in unique])
        # A colour matrix works on pixels, so all frames go through it as one tall picture.
        shape = frames_THWC.shape
        frames_THWC = cv2.transform(frames_THWC.reshape(-1, shape[2], 3), colours).reshape(shape)[where]
        if self.transform.distort:
            frames_THWC = np.stack([distorted(rng, frame) for frame in frames_THWC])

        tracks = [
            track for track in learnable_tracks(self.dataset, video) if any(track.rles[t] is not None for t in unique)
        ]
        masks_NTHW = np.zeros((len(tracks), len(unique), *shape[1:3]), bool)
        for n, track in enumerate(tracks):
            for i, t in enumerate(unique):
                if track.rles[t] is not None:
                    masks_NTHW[n, i] = geometry.mask(self.dataset.mask(track, int(t)))
        labels_N = np.array([self.dataset.label_of[track.category_id] for track in tracks], np.int64)
        return visible_clip(video.id, tuple(indices.tolist()), frames_THWC, labels_N, masks_NTHW[:, where])


def learnable_tracks(dataset: VideoDataset, video: Video) -> list[Track]:
    """The tracks of a video that are single objects: a crowd's mask is that of many."""
    return [track for track in dataset.tracks_of(video) if not track.iscrowd]


def visible_clip(
    video_id: int,
    frame_indices: tuple[int, ...],
    frames_THWC: np.ndarray,
    labels_N: np.ndarray,
    masks_NTHW: np.ndarray,
) -> Clip:
    """A clip of the instances that its masks show in at least one frame."""
    boxes_NT4, present_NT = mask_boxes(masks_NTHW)
    seen = present_NT.any(1)
    return Clip(
        video_id=video_id,
        frame_indices=frame_indices,
        frames_THWC=frames_THWC,
        labels_N=labels_N[seen],
        boxes_NT4=boxes_NT4[seen],
        masks_NTHW=masks_NTHW[seen],
        present_NT=present_NT[seen],
    )


def mask_boxes(masks_NTHW: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The extents of masks as fractions of their size.

    Returns:
        Boxes, float32 [N, T, 4], centre x, centre y, width, height, 0 where a mask is empty; and whether it is not,
        bool [N, T].
    """
    height, width = masks_NTHW.shape[2:]
    columns, rows = masks_NTHW.any(2), masks_NTHW.any(3)
    present = columns.any(2)
    x1, y1 = columns.argmax(2) / width, rows.argmax(2) / height
    x2, y2 = 1 - columns[:, :, ::-1].argmax(2) / width, 1 - rows[:, :, ::-1].argmax(2) / height
    boxes = np.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], axis=-1)
    return (boxes * present[:, :, None]).astype(np.float32), present


@dataclass(frozen=True)
class Geometry:
    """A crop, a new size and a flip, for both frames and masks."""

    top: int
    left: int
    bottom: int
    right: int
    height: int
    width: int
    flip: bool

    @classmethod
    def draw(cls, rng: np.random.Generator, transform: ClipTransform, height: int, width: int) -> Geometry:
        """Draws the geometry of a clip whose frames are height × width."""
        crop_height, crop_width = height, width
        if rng.random() < transform.crop:
            crop_height, crop_width = transform.crop_size.draw(rng, height, width)
        top = int(rng.integers(height - crop_height + 1))
        left = int(rng.integers(width - crop_width + 1))
        short, long = sorted((crop_height, crop_width))
        scale = min(int(rng.choice(transform.short_edges)) / short, transform.long_edge / long)
        return cls(
            top=top,
            left=left,
            bottom=top + crop_height,
            right=left + crop_width,
            height=max(1, round(crop_height * scale)),
            width=max(1, round(crop_width * scale)),
            flip=bool(rng.random() < transform.flip),
        )

    def frame(self, image: np.ndarray) -> np.ndarray:
        """Applies it to a picture, of one channel or three."""
        image = image[self.top : self.bottom, self.left : self.right]
        if image.shape[:2] != (self.height, self.width):
            shrinks = self.height < image.shape[0]
            interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
            image = cv2.resize(image, (self.width, self.height), interpolation=interpolation)
        return image[:, ::-1] if self.flip else image

    def mask(self, mask: np.ndarray) -> np.ndarray:
        """Applies it to a bool mask. A pixel is set if at least half of it is."""
        if (self.bottom - self.top, self.right - self.left) == (self.height, self.width):
            return self.frame(mask)
        return self.frame(mask.view(np.uint8) * np.uint8(255)) >= 128
