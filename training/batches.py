"""Clips in padded batches, in an order given by seed and epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mssts.data.clips import Clip, ClipSource
from mssts.training.matcher import Target

_MULTIPLE = 8  # batches are padded to it, so that masks of stride 4 cover the frame


@dataclass(frozen=True)
class Batch:
    """B clips of T frames, padded at the bottom and the right."""

    frames_BTHWC: Tensor  # uint8
    sizes_B2: Tensor  # int32, valid height and width
    targets: list[Target]

    @property
    def instances(self) -> int:
        """The number of instances of all its clips."""
        return sum(len(target.labels_n) for target in self.targets)

    def split(self, parts: int) -> list[Batch]:
        """Parts of equally many clips, each no larger than its own clips want it."""
        size = len(self.targets) // parts
        return [self._part(slice(i * size, (i + 1) * size)) for i in range(parts)]

    def _part(self, cut: slice) -> Batch:
        sizes_B2 = self.sizes_B2[cut]
        H, W = (_padded(side) for side in sizes_B2.amax(0).tolist())
        targets = [replace(t, masks_nTHW=t.masks_nTHW[:, :, :H, :W]) for t in self.targets[cut]]
        return Batch(self.frames_BTHWC[cut, :, :H, :W], sizes_B2, targets)

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        targets = [target.to(device) for target in self.targets]
        frames, sizes = (x.to(device, non_blocking=True) for x in (self.frames_BTHWC, self.sizes_B2))
        return Batch(frames, sizes, targets)


def _padded(side: int) -> int:
    return -(-side // _MULTIPLE) * _MULTIPLE


def collate(clips: Sequence[Clip]) -> Batch:
    """Pads clips to a common size.

    Their masks are padded the same way. Boxes stay fractions of the valid size.
    """
    sizes = [clip.frames_THWC.shape[1:3] for clip in clips]
    H, W = (_padded(max(side)) for side in zip(*sizes, strict=True))
    T = len(clips[0].frames_THWC)
    frames = torch.zeros(len(clips), T, H, W, 3, dtype=torch.uint8)
    targets = []
    for b, (clip, (h, w)) in enumerate(zip(clips, sizes, strict=True)):
        frames[b, :, :h, :w] = torch.from_numpy(clip.frames_THWC)
        masks = torch.zeros(len(clip.labels_N), T, H, W, dtype=torch.bool)
        masks[:, :, :h, :w] = torch.from_numpy(clip.masks_NTHW)
        labels, boxes, present = (torch.from_numpy(x) for x in (clip.labels_N, clip.boxes_NT4, clip.present_NT))
        targets.append(Target(labels, boxes, present, masks))
    return Batch(frames, torch.tensor(sizes, dtype=torch.int32), targets)


class _Epoch(Dataset[Clip]):
    def __init__(self, clips: ClipSource, epoch: int) -> None:
        self.clips, self.epoch = clips, epoch

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> Clip:
        return self.clips.sample(index, self.epoch)


def batches_in_epoch(clips: ClipSource, batch: int) -> int:
    """The number of whole batches of an epoch.

    A remainder is left to the next shuffle.
    """
    return max(len(clips) // batch, 1)


def batches(
    clips: ClipSource,
    batch: int,
    seed: int,
    epoch: int,
    start: int,
    workers: int,
    share: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
    """The batches of an epoch from the `start`-th on.

    Of each, the i-th of n equal shares, where `share` is (i, n).
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = torch.randperm(len(clips), generator=generator).tolist()
    size = min(batch, len(clips))
    own = size // share[1]
    first = share[0] * own
    groups = [order[i * size + first :][:own] for i in range(start, batches_in_epoch(clips, batch))]
    loader = DataLoader(
        _Epoch(clips, epoch),
        batch_sampler=groups,
        num_workers=workers,
        # Workers return numpy arrays through pipes. Tensors would go through /dev/shm, of which Docker gives 64 MB: a
        # worker that finds it full dies, and the loader waits for it.
        collate_fn=list,
        generator=generator,  # or the loader would draw from the global one, and a resumed run once more often
    )
    return map(collate, loader)
