"""Simulation of a GPU's L1 caches under a forward of MSDeformAttn.

It counts what the L2 has to deliver. The L1 is taken as fully associative, least recently used first out, of 128-byte
lines whose 32-byte sectors are filled one by one, as NVIDIA describes it; the warps of the blocks that reside on a
multiprocessor take turns, a load each. Blocks go round the multiprocessors in their order, and a new one begins where
one has ended. It knows no bank conflicts and no times.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from mssts.bench.kernels.workloads import DeformWorkload

LINE, SECTOR = 128, 32
MULTIPROCESSORS = 132
_INPUTS = 1 << 40  # their lines are no token's


@dataclass(frozen=True)
class Design:
    """How a kernel runs the items of a call.

    Attributes:
        name: what it is called in a record.
        itemsize: bytes of an element.
        tiled: its queries are taken in tiles of 8x8 of a level, else row by row.
        block_items: items of a block; an item is one head of one query.
        by_head: a block has one head of neighbouring queries, else all heads of a query are neighbours.
        warp_items: items of a warp.
        items_of_load: items of which one load of a warp reads a point.
        blocks: that reside on a multiprocessor.
        cache_bytes: of the L1, beside shared memory.
        on_chip: levels whose tokens lie in shared memory.
        sliced: blocks go in turn over the slices (a head of a frame), so that a multiprocessor keeps to one.
        takes_inputs: it reads references, offsets and logits, else locations and weights.
    """

    name: str
    itemsize: int = 2
    tiled: bool = True
    block_items: int = 64
    by_head: bool = True
    warp_items: int = 8
    items_of_load: int = 2
    blocks: int = 4
    cache_bytes: int = 124 * 1024
    on_chip: tuple[int, ...] = ()
    sliced: bool = False
    takes_inputs: bool = True


OURS = Design("mssts")
BEFORE = Design("mssts, queries row by row", tiled=False, cache_bytes=92 * 1024)
# A block of 24 warps a multiprocessor, three a slice, with levels 1 to 3 in 78 KB of shared memory.
PERSISTENT = Design("persistent, coarse levels in shared memory", block_items=192, blocks=1, cache_bytes=60 * 1024,
                    on_chip=(1, 2, 3), sliced=True)  # fmt: skip
# The released kernel: a warp is the 32 channels of one head and query, a block of 1024 threads four queries.
STOCK = Design("stock", itemsize=4, tiled=False, block_items=32, by_head=False, warp_items=1, items_of_load=1, blocks=1,
               cache_bytes=192 * 1024)  # fmt: skip


@dataclass(frozen=True)
class Traffic:
    """Bytes of one call.

    Attributes:
        value: of the tokens that came from L2.
        inputs: of references, offsets and logits that came from L2.
        corners: of the tokens that were read.
        fill: of the tokens that were put into shared memory.
        out: written.
    """

    value: float
    inputs: float
    corners: float
    fill: float
    out: float

    @property
    def l2_to_l1(self) -> float:
        """What the L2 delivers."""
        return self.value + self.inputs + self.fill


@functools.lru_cache
def simulate(workload: DeformWorkload, design: Design, every: int = 33) -> Traffic:
    """The traffic of one call.

    Args:
        workload: an encoder's.
        design: of the kernel.
        every: one multiprocessor of so many is simulated, and stands for the others.
    """
    import torch

    inputs = workload.make(torch.float32, "cpu", 0)
    tokens, inside = corners(workload, inputs.reference_NQLR.numpy(), inputs.offsets_NQMLP2.numpy())
    order = query_order(workload.shapes) if design.tiled else np.arange(workload.tokens)
    blocks = _blocks(workload, design, order)
    on_chip = np.zeros(workload.tokens, bool)
    start = 0
    for level, (height, width) in enumerate(workload.shapes):
        on_chip[start : start + height * width] = level in design.on_chip
        start += height * width
    row = workload.heads * workload.channels * design.itemsize
    slot = workload.channels * design.itemsize
    missed_value = missed_input = read = simulated = 0
    multiprocessors = range(0, MULTIPROCESSORS, every)
    for multiprocessor in multiprocessors:
        cache = _Cache(design.cache_bytes)
        own = _own_blocks(blocks, multiprocessor, design)
        simulated += sum(len(block) for block in own)
        for item_group, load in _turns(own, design, workload):
            if load < 0:
                if design.takes_inputs:
                    missed_input += sum(_read_inputs(cache, item, workload, design) for item in item_group)
                continue
            for frame, query, head in item_group:
                place = (frame, query, head, load)
                for token, is_inside in zip(tokens[place].tolist(), inside[place].tolist(), strict=True):
                    if not is_inside and design.name == STOCK.name:
                        continue  # the stock kernel branches, ours reads the nearest token
                    read += slot
                    if not on_chip[token]:
                        missed_value += cache.read((frame * workload.tokens + token) * row + head * slot, slot)
    scale = workload.frames * workload.query_count * workload.heads / simulated
    items = workload.frames * workload.query_count * workload.heads
    points = len(workload.shapes) * workload.points
    fill = MULTIPROCESSORS * slot * int(on_chip.sum()) if design.on_chip else 0
    # The stock kernel reads locations and weights of each point once for the 32 lanes of a warp.
    inputs_bytes = missed_input * scale if design.takes_inputs else items * points * 3 * design.itemsize
    return Traffic(missed_value * scale, inputs_bytes, read * scale, fill, items * slot)


def query_order(shapes: tuple[tuple[int, int], ...]) -> np.ndarray:
    """The order in which the kernel takes the tokens.

    It is that of plugins/cuda/deform_attn_order.cuh: bands of 8 rows of a level, each in tiles of 8 columns, each tile
    row by row.
    """
    order, start = [], 0
    for height, width in shapes:
        grid = start + np.arange(height * width).reshape(height, width)
        order += [grid[y : y + 8, x : x + 8].ravel() for y in range(0, height, 8) for x in range(0, width, 8)]
        start += height * width
    return np.concatenate(order)


class _Cache:
    """Sectors by line, the least recently used line first."""

    def __init__(self, size: int) -> None:
        self._lines: OrderedDict[int, int] = OrderedDict()
        self._most = size // LINE

    def read(self, address: int, size: int) -> int:
        """The bytes that a read of `size` bytes fetches."""
        missed = 0
        for line in range(address // LINE, (address + size - 1) // LINE + 1):
            first = max(address - line * LINE, 0) // SECTOR
            last = (min(address + size - line * LINE, LINE) - 1) // SECTOR
            wanted = (1 << (last + 1)) - (1 << first)
            have = self._lines.get(line, 0)
            missed += (wanted & ~have).bit_count() * SECTOR if have & wanted != wanted else 0
            self._lines[line] = have | wanted
            self._lines.move_to_end(line)
            if len(self._lines) > self._most:
                self._lines.popitem(last=False)
        return missed


Item = tuple[int, int, int]  # frame, query, head


def _blocks(workload: DeformWorkload, design: Design, order: np.ndarray) -> list[list[Item]]:
    """The items of each block, in the order in which blocks start."""
    if not design.by_head:
        items = [(f, int(q), m) for f in range(workload.frames) for q in order for m in range(workload.heads)]
        return [items[i : i + design.block_items] for i in range(0, len(items), design.block_items)]
    return [
        [(frame, int(query), head) for query in order[i : i + design.block_items]]
        for frame in range(workload.frames)
        for head in range(workload.heads)
        for i in range(0, len(order), design.block_items)
    ]


def _own_blocks(blocks: list[list[Item]], multiprocessor: int, design: Design) -> list[list[Item]]:
    """The blocks that one multiprocessor runs."""
    if not design.sliced:
        return blocks[multiprocessor::MULTIPROCESSORS]
    share = len(blocks) / MULTIPROCESSORS
    return blocks[round(multiprocessor * share) : round((multiprocessor + 1) * share)]


def _turns(blocks: list[list[Item]], design: Design, workload: DeformWorkload) -> Iterator[tuple[list[Item], int]]:
    """The loads of a multiprocessor in turn.

    Of each the items and the point, or -1 for their inputs.
    """
    points = len(workload.shapes) * workload.points

    def loads(items: list[Item]) -> Iterator[tuple[list[Item], int]]:
        yield items, -1
        for i in range(0, len(items), design.items_of_load):
            for point in range(points):
                yield items[i : i + design.items_of_load], point

    def warps(block: list[Item]) -> list[Iterator[tuple[list[Item], int]]]:
        return [loads(block[i : i + design.warp_items]) for i in range(0, len(block), design.warp_items)]

    waiting = iter(blocks)
    resident = [warps(block) for _, block in zip(range(design.blocks), waiting, strict=False)]
    while resident:
        for number, block in enumerate(resident):
            going = []
            for warp in block:
                load = next(warp, None)
                if load is not None:
                    yield load
                    going.append(warp)
            if not going:
                following = next(waiting, None)
                going = warps(following) if following is not None else []
            resident[number] = going
        resident = [block for block in resident if block]


def _read_inputs(cache: _Cache, item: Item, workload: DeformWorkload, design: Design) -> int:
    """The bytes that an item's reference, offsets and logits fetch."""
    frame, query, head = item
    points, row = len(workload.shapes) * workload.points, frame * workload.query_count + query
    number = row * workload.heads + head
    size = points * design.itemsize
    reference = len(workload.shapes) * 2 * 4
    return (
        cache.read(_INPUTS + number * size, size)
        + cache.read(2 * _INPUTS + number * 2 * size, 2 * size)
        + cache.read(3 * _INPUTS + row * reference, reference)
    )


def corners(workload: DeformWorkload, reference: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The tokens of a point's corners, and whether they are inside: [N, Q, M, L*P, 4].

    Where one is outside, the token is the nearest inside.
    """
    tokens, inside, start = [], [], 0
    for level, (height, width) in enumerate(workload.shapes):
        size = np.array([width, height], np.float32)
        pixel = reference[:, :, None, level, None] * size + offsets[:, :, :, level] - 0.5
        low = np.floor(np.clip(pixel, -1, size)).astype(np.int64)
        x, y = (np.stack((low[..., axis], low[..., axis] + 1), -1) for axis in (0, 1))
        there = ((x >= 0) & (x < width))[..., None, :] & ((y >= 0) & (y < height))[..., :, None]
        token = start + np.clip(y, 0, height - 1)[..., :, None] * width + np.clip(x, 0, width - 1)[..., None, :]
        tokens.append(token.reshape(*token.shape[:-2], 4))
        inside.append(there.reshape(*there.shape[:-2], 4))
        start += height * width
    return np.concatenate(tokens, -2), np.concatenate(inside, -2)
