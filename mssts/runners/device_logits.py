"""Mask logits that stay on a GPU, and the run lengths made of them there.

Letters: B clips, K instances, T frames, h and w of a mask's logits.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from mssts import kernels
from mssts.errors import MsstsError

# The kernel's map of a mask has one bit a pixel. More masks than fit into so many bytes go one call after another.
_MOST_WORKSPACE = 64 << 20
# Bytes of text that a mask is given at first: an object of a 1280x720 frame takes about 2,000.
_USUAL_TEXT = 4096


class DeviceMemory(Protocol):
    """Memory of a GPU, beside the logits, and the stream that they are computed in."""

    @property
    def stream(self) -> int:
        """The stream's handle."""

    def room(self, name: str, size: int) -> int:
        """The address of so many bytes, which is a multiple of 16.

        What had the name before is free then.
        """

    def read(self, address: int, size: int) -> bytes:
        """Bytes of what `room` gave, after everything that is in the stream."""


@dataclass(frozen=True)
class DeviceLogits:
    """Mask logits float32 [B, K, T, h, w] in a GPU's memory.

    Attributes:
        address: of the first.
        shape: B, K, T, h and w.
        strides: in elements, of B, K, T and h; a row is contiguous.
        memory: what encoding may use.
    """

    address: int
    shape: tuple[int, int, int, int, int]
    strides: tuple[int, int, int, int]
    memory: DeviceMemory

    @staticmethod
    def dense(address: int, shape: Sequence[int], memory: DeviceMemory) -> DeviceLogits:
        """Logits one behind the other."""
        B, K, T, h, w = shape
        return DeviceLogits(address, (B, K, T, h, w), (K * T * h * w, T * h * w, h * w, w), memory)

    def cut(self, clips: int, frames: int, rows: int, columns: int) -> DeviceLogits:
        """The first of them along each side."""
        return replace(self, shape=(clips, self.shape[1], frames, rows, columns))

    def encode(
        self, clip: int, kept: Sequence[int], valid: tuple[int, int], size: tuple[int, int], cell: int
    ) -> tuple[tuple[bytes | None, ...], ...]:
        """Masks of a frame's size as COCO run-length strings, None where one has no pixel.

        They are those of `mssts.segmenters.postprocessing`, to the byte.

        Args:
            clip: which of B.
            kept: which of K, ascending.
            valid: height and width of the valid part of the engine's frame.
            size: height and width of the frame.
            cell: pixels of the engine's frame to a logit, along a side.

        Raises:
            MsstsError: the GPU failed.
        """
        T, bits = self.shape[2], size[0] * size[1]
        masks = max(1, _MOST_WORKSPACE * 8 // bits)
        frames = min(T, masks)
        instances = max(1, masks // frames) if frames == T else 1
        count = max(kept, default=-1) + 1  # an engine returns the best first, so that these are all of them
        rles: list[list[bytes | None]] = [[] for _ in range(count)]
        for k in range(0, count, instances):
            for t in range(0, T, frames):
                call = self._call(clip, valid, size, cell)
                call.instances, call.frames = min(instances, count - k), min(frames, T - t)
                call.logits += 4 * (k * self.strides[1] + t * self.strides[2])
                found = iter(self._run(call))
                for row in rles[k : k + call.instances]:
                    row.extend(next(found) for _ in range(call.frames))
        return tuple(tuple(rles[k]) for k in kept)

    def _call(self, clip: int, valid: tuple[int, int], size: tuple[int, int], cell: int) -> kernels.MaskRleCall:
        call = kernels.MaskRleCall()
        call.rows, call.columns = self.shape[3:]
        call.strides = (ctypes.c_int64 * 3)(*self.strides[1:])
        call.valid_height, call.valid_width = valid
        call.height, call.width = size
        call.cell = cell
        call.logits = self.address + 4 * clip * self.strides[0]
        return call

    def _run(self, call: kernels.MaskRleCall) -> list[bytes | None]:
        """The strings of a call, in memory that is made larger until they fit."""
        handle, masks = kernels.library("cuda").handle, call.instances * call.frames
        call.workspace = self.memory.room("workspace", max(handle.mssts_cuda_mask_rle_workspace(call), 1))
        call.ends = self.memory.room("ends", 8 * masks)
        call.capacity = _USUAL_TEXT * masks
        while True:
            call.text = self.memory.room("text", call.capacity)
            if handle.mssts_cuda_mask_rle(call, self.memory.stream) != kernels.OK:
                raise MsstsError(f"masks could not be encoded on the GPU: {handle.mssts_last_error().decode()}")
            ends = np.frombuffer(self.memory.read(call.ends, 8 * masks), np.int64).tolist()
            if ends[-1] <= call.capacity:
                break
            call.capacity = ends[-1]
        text = self.memory.read(call.text, ends[-1])
        return [text[begin:end] or None for begin, end in zip([0, *ends], ends, strict=False)]


def encodes_on_gpu() -> bool:
    """Whether the CUDA library is there, with a GPU that it can run on."""
    return not kernels.library("cuda").reason
