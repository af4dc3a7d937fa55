"""Where frames come from: a video file, a folder of images, or the videos of a YouTube-VIS or COCO-video JSON.

Frames are streamed: whoever iterates over them decides how many are alive at once.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import av
import numpy as np

from mssts.data.videos import read_videos
from mssts.errors import MsstsError
from mssts.media.images import decode_image, image_size, size_text

_IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png"})


class Frame:
    """One frame, decoded when its pixels are first asked for.

    Attributes:
        encoded: the bytes of the JPEG or PNG it is stored as; None if it comes from a video file.
    """

    def __init__(self, rgb_HWC: np.ndarray | None = None, encoded: bytes | None = None, source: str = "") -> None:
        self.encoded = encoded
        self._rgb_HWC = rgb_HWC
        self._source = source

    @property
    def rgb_HWC(self) -> np.ndarray:
        """The pixels, RGB uint8 [H, W, 3].

        Raises:
            MsstsError: the image is corrupt; the message names its file.
        """
        if self._rgb_HWC is None:
            assert self.encoded is not None
            try:
                self._rgb_HWC = decode_image(self.encoded)
            except MsstsError as error:
                raise MsstsError(f"{self._source}: {error}") from None
        return self._rgb_HWC


@dataclass(frozen=True)
class Video:
    """One video of a source.

    `size` is height and width; `fps` and `length` (frames) are None where the source does not tell, and `length` is a
    container's claim, which may be wrong. `frames()` starts from the first frame at every call, and raises `MsstsError`
    at a frame that is missing, broken or of another size.
    """

    id: int
    name: str
    size: tuple[int, int]
    fps: float | None
    length: int | None
    frames: Callable[[], Iterator[Frame]]


@dataclass(frozen=True)
class VideoSource:
    """What a path holds: one video, or those of a data set."""

    path: Path
    videos: tuple[Video, ...]


def open_source(path: Path | str) -> VideoSource:
    """Opens a video file, a folder of JPEG and PNG images (one video, in natural order), or a data set's JSON.

    Files are looked for and first frames read, so that what is wrong shows before work starts.

    Raises:
        MsstsError: nothing is there; a file is not a video or has no frame; a folder has no images; a JSON breaks the
            format, or an image that it lists is missing.
    """
    path = Path(path)
    if path.is_dir():
        return VideoSource(path, (_folder_video(path),))
    if not path.is_file():
        raise MsstsError(f"{path}: no such file; expected a video, a folder of images or the JSON of a data set")
    if path.suffix.lower() == ".json":
        return VideoSource(path, _dataset_videos(path))
    return VideoSource(path, (_file_video(path),))


# --- images -------------------------------------------------------------------------------------------------------


def _natural_key(path: Path) -> list[tuple[bool, int, str]]:
    """Orders frame_2 before frame_10."""
    parts = re.split(r"(\d+)", path.name)
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]


def _folder_video(folder: Path) -> Video:
    paths = sorted((path for path in folder.iterdir() if path.suffix.lower() in _IMAGE_SUFFIXES), key=_natural_key)
    if not paths:
        hint = "; did you mean its instances.json?" if (folder / "instances.json").exists() else ""
        raise MsstsError(f"{folder}: no images in it; expected the .jpg or .png frames of a video{hint}")
    first = _read_image(paths[0])
    return _images_video(1, folder.resolve().name, paths, _encoded_size(first, paths[0]))


def _dataset_videos(path: Path) -> tuple[Video, ...]:
    dataset = read_videos(path)
    if not dataset.videos:
        raise MsstsError(f"{path}: videos is empty; expected at least one video")
    dataset.check_images()
    # The frames of a video usually lie in a folder of their own, whose name is the video's.
    names = ["_".join(PurePosixPath(video.file_names[0]).parent.parts) for video in dataset.videos]
    if "" in names or len(set(names)) < len(names):
        names = [f"video_{video.id}" for video in dataset.videos]
    return tuple(
        _images_video(
            video.id,
            name,
            [dataset.frame_path(video, t) for t in range(video.length)],
            (video.height, video.width),
        )
        for video, name in zip(dataset.videos, names, strict=True)
    )


def _images_video(identity: int, name: str, paths: Sequence[Path], size: tuple[int, int]) -> Video:
    def frames() -> Iterator[Frame]:
        for path in paths:
            encoded = _read_image(path)
            found = _encoded_size(encoded, path)
            if found != size:
                raise MsstsError(
                    f"{path}: {size_text(found)}, expected {size_text(size)} as the rest of its video; "
                    "the frames of a video must be of one size"
                )
            yield Frame(encoded=encoded, source=str(path))

    return Video(identity, name, size, None, len(paths), frames)


def _read_image(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise MsstsError(f"{path}: cannot be read: {error.strerror}") from None


def _encoded_size(encoded: bytes, path: Path) -> tuple[int, int]:
    try:
        return image_size(encoded)
    except MsstsError as error:
        raise MsstsError(f"{path}: {error}") from None


# --- video files --------------------------------------------------------------------------------------------------


def _file_video(path: Path) -> Video:
    def frames() -> Iterator[Frame]:
        return _decoded(path)

    first = next(frames(), None)
    if first is None:
        raise MsstsError(f"{path}: a video without frames; expected at least one")
    with _opened(path) as container:
        stream = container.streams.video[0]
        fps = float(stream.average_rate) if stream.average_rate else None
        length = stream.frames or None
    height, width, _ = first.rgb_HWC.shape
    return Video(1, path.stem, (height, width), fps, length, frames)


def _opened(path: Path) -> av.container.InputContainer:
    try:
        container = av.open(str(path))
    except (av.FFmpegError, OSError) as error:
        raise MsstsError(
            f"{path}: not a video that FFmpeg can read ({error.strerror}); expected an mp4 or the like"
        ) from None
    if not container.streams.video:
        container.close()
        raise MsstsError(f"{path}: has no video stream, or one without frames; expected an mp4 or the like")
    return container


def _decoded(path: Path) -> Iterator[Frame]:
    """Decodes a file frame by frame, turned upright as its rotation metadata says."""
    first_size = None
    with _opened(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        decoded = container.decode(stream)
        for index in itertools.count():
            try:
                frame = next(decoded, None)
            except av.FFmpegError as error:
                raise MsstsError(
                    f"{path}: a corrupt video: frame {index} cannot be decoded ({error.strerror})"
                ) from None
            if frame is None:
                return
            # `rotation` is in degrees counter-clockwise, the way rot90 turns.
            rgb_HWC = np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90)))
            size = (rgb_HWC.shape[0], rgb_HWC.shape[1])
            first_size = first_size or size
            if size != first_size:
                raise MsstsError(
                    f"{path}: frame {index} is {size_text(size)}, the first {size_text(first_size)}; "
                    "the frames of a video must be of one size"
                )
            yield Frame(rgb_HWC)
