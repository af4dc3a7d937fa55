"""The processes of one training, on PyTorch's DistributedDataParallel.

`torchrun` starts one process for each device, and each computes its share of every batch. Without a process group,
every function here leaves things as they are.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mssts.errors import MsstsError

# A process waits for its peers' data and for rank 0 to save; one that is gone must not be waited for longer than this.
_TIMEOUT = timedelta(minutes=10)


@contextmanager
def process_group(device: torch.device) -> Iterator[torch.device]:
    """Joins the processes of `torchrun`, if any, and yields this process' device.

    Raises:
        MsstsError: `device` names one GPU for all processes, or there are more processes than GPUs.
    """
    if not dist.is_torchelastic_launched():
        yield device
        return
    if device.type == "cuda":
        local = int(os.environ["LOCAL_RANK"])
        if device.index is not None:
            raise MsstsError(f"--device {device}: each process takes a GPU of its own; pass --device cuda")
        if local >= torch.cuda.device_count():
            raise MsstsError(
                f"--device cuda: torch sees {torch.cuda.device_count()} GPUs here, too few for process {local} of "
                "this node; give torchrun a smaller --nproc-per-node"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    store, own_rank, processes = next(dist.rendezvous("env://"))
    if os.environ.get("GROUP_WORLD_SIZE") == "1":
        # `torchrun` keeps its store over restarts, with the addresses of dead processes in it (seen in PyTorch 2.13).
        # Nodes may count restarts differently, so that several of them must be given a new store each time instead.
        store = dist.PrefixStore(f"attempt-{_restarts()}", store)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        store=store,
        rank=own_rank,
        world_size=processes,
        timeout=_TIMEOUT,
    )
    try:
        yield device
    finally:
        dist.destroy_process_group()


def restarted() -> bool:
    """Whether `torchrun --max-restarts` has started these processes again."""
    return _restarts() > 0


def _restarts() -> int:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def rank() -> int:
    """The number of this process, from 0.

    Rank 0 writes the files.
    """
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def gather(value: Any) -> list[Any]:
    """The values that the processes passed (small, picklable), by rank."""
    values: list[Any] = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(values, value)
    return values


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum over all processes of tensors of one shape, in place."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def parallel(module: nn.Module, device: torch.device) -> nn.Module:
    """The module in DistributedDataParallel, which *averages* gradients.

    The module itself for a single process.
    """
    if world_size() == 1:
        return module
    return DistributedDataParallel(module, device_ids=[device] if device.type == "cuda" else None)


def synchronised(module: nn.Module, now: bool) -> AbstractContextManager[None]:
    """The context of a forward and backward that exchanges gradients `now` or later."""
    if now or not isinstance(module, DistributedDataParallel):
        return nullcontext()
    return module.no_sync()


def synchronise_batch_norm(model: nn.Module, device: torch.device) -> None:
    """Makes each batch norm one over the images of all processes, on GPUs.

    The names of its parameters stay the same.

    PyTorch has none for processors: there, a process' batch norms see its own share of a batch.
    """
    if world_size() > 1 and device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
