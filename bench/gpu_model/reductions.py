"""Reductions of MSDeformAttn's backward: the cost of grad_value.

It is compared with that of sums on chip.

Every corner of a point that lies inside adds the D channels of its head, in fp32, to grad_value: to L2 today. A design
that keeps the sums of coarse levels in shared memory runs three blocks for each head of a frame, which write them out
at the end. From sm_90's machine code: shared memory has no addition of fp32, so an addition there is a loop of a load,
a sum, a compare-and-swap and a branch, for each channel of a lane, until no other lane of the token came between.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mssts.bench.gpu_model.l1_cache import MULTIPROCESSORS, corners, query_order

if TYPE_CHECKING:
    from mssts.bench.kernels.workloads import DeformWorkload

ON_CHIP: tuple[tuple[int, ...], ...] = ((), (2, 3), (1, 2, 3))
BLOCKS_OF_SLICE = 3
WARP_ITEMS, LANE_CHANNELS = 4, 4  # of the backward: a lane has 4 channels of one of 4 items
LOOP_INSTRUCTIONS = 4
ITEMSIZE = 4


@dataclass(frozen=True)
class Reductions:
    """Of one call.

    Attributes:
        l2_bytes: of reductions that the L2 makes, those of the blocks' sums at their end included.
        shared_bytes: of a block.
        shared_reductions: corners that are added to shared memory.
        turns: of the loop of an addition there, for those of one warp: as many as items that share a token.
        added_instructions: for each point, on average over all.
        busy: multiprocessors.
    """

    l2_bytes: float
    shared_bytes: int
    shared_reductions: int
    turns: float
    added_instructions: float
    busy: int


@functools.lru_cache
def reductions(workload: DeformWorkload, on_chip: tuple[int, ...]) -> Reductions:
    """Those of an encoder's call.

    Its sums of the levels `on_chip` lie in shared memory.
    """
    import torch

    inputs = workload.make(torch.float32, "cpu", 0)
    tokens, inside = corners(workload, inputs.reference_NQLR.numpy(), inputs.offsets_NQMLP2.numpy())
    row = workload.channels * ITEMSIZE
    level_of_point = np.arange(tokens.shape[-2]) // workload.points
    chosen = np.isin(level_of_point, on_chip)
    slices = workload.frames * workload.heads
    shared_bytes = row * sum(h * w for level, (h, w) in enumerate(workload.shapes) if level in on_chip)
    on_chip_corners = int(inside[..., chosen, :].sum())
    written = slices * BLOCKS_OF_SLICE * shared_bytes
    l2_bytes = (int(inside.sum()) - on_chip_corners) * row + written
    if not on_chip:
        return Reductions(l2_bytes, 0, 0, 0.0, 0.0, MULTIPROCESSORS)
    turns = _turns(tokens[..., chosen, :], inside[..., chosen, :], query_order(workload.shapes))
    loops = LANE_CHANNELS * LOOP_INSTRUCTIONS * turns - 1  # in place of one reduction
    added = 4 * loops / WARP_ITEMS * chosen.mean()
    return Reductions(
        l2_bytes, shared_bytes, on_chip_corners, turns, added, min(slices * BLOCKS_OF_SLICE, MULTIPROCESSORS)
    )


def _turns(tokens: np.ndarray, inside: np.ndarray, order: np.ndarray) -> float:
    """The mean, over loads, of the most items of a warp that share a token.

    Items are neighbours in `order`.
    """
    whole = order[: len(order) // WARP_ITEMS * WARP_ITEMS]
    found = []
    for frame_tokens, frame_inside in zip(tokens, inside, strict=True):
        groups = frame_tokens[whole].reshape(-1, WARP_ITEMS, *frame_tokens.shape[1:])
        there = frame_inside[whole].reshape(groups.shape)
        most = np.zeros((len(groups), *groups.shape[2:]), np.int64)
        for item in range(WARP_ITEMS):
            same = (groups == groups[:, item : item + 1]) & there & there[:, item : item + 1]
            most = np.maximum(most, same.sum(1))
        found.append(most[most > 0])
    return float(np.concatenate(found).mean())


def reduction_rows(
    workload: DeformWorkload, instructions: float, issues_per_second: float, l2_rate: float, l1_rate: float
) -> Iterator[dict[str, Any]]:
    """Rows by levels on chip, with the bounds of the backward.

    Args:
        workload: an encoder's.
        instructions: that the built backward issues for each point.
        issues_per_second: of all multiprocessors.
        l2_rate: reductions of the L2, in bytes a second.
        l1_rate: of all shared memories, in bytes a second.
    """
    row = workload.channels * ITEMSIZE
    for on_chip in ON_CHIP:
        found = reductions(workload, on_chip)
        share = found.busy / MULTIPROCESSORS
        issue_us = (instructions + found.added_instructions) * workload.samples / (issues_per_second * share) * 1e6
        l2_us = found.l2_bytes / l2_rate * 1e6
        shared_us = 2 * row * found.turns * found.shared_reductions / (l1_rate * share) * 1e6
        yield {
            "levels_on_chip": list(on_chip), "offset_pixels": workload.offset_pixels,
            "l2_reductions_mb": found.l2_bytes / 1e6, "shared_kb": found.shared_bytes / 1e3, "turns": found.turns,
            "instructions_per_point": instructions + found.added_instructions, "issue_us": issue_us, "l2_us": l2_us,
            "shared_us": shared_us, "bound_us": max(issue_us, l2_us, shared_us),
        }  # fmt: skip
