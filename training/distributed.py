"""What the processes of one training exchange, on torch.distributed. Without a process group, every call is a no-op.

`torchrun` starts one process for each device. Each computes a share of every batch; what it contributes to the loss is
normalised over the whole batch, so that gradients, losses and metrics of the batch are *sums* over the processes.

The model is not wrapped in DistributedDataParallel: the criterion draws masks outside of `forward`, the discriminator
is called twice between two of its steps, and accumulation would want both held back. One sum of the gradients after
backward is the same arithmetic, without the overlap of communication with the backward pass.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mssts.errors import MsstsError
from mssts.model.layers import at_least_fp32

# A process waits for its peers' data and for rank 0 to save; one that is gone must not be waited for longer than this.
_TIMEOUT = timedelta(minutes=10)
_BUCKET = 1 << 24  # elements of gradients that are summed in one message


@contextmanager
def process_group(device: torch.device) -> Iterator[torch.device]:
    """Joins the processes that `torchrun` started, if it did, and yields this process' own device.

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
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=_TIMEOUT)
    try:
        yield device
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """Which of the processes this is, from 0; rank 0 writes the files."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def gather(value: Any) -> list[Any]:
    """What each process passed (small, picklable), by rank."""
    values: list[Any] = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(values, value)
    return values


def sum_over_ranks(values: Sequence[float]) -> list[float]:
    """The sums over all processes of numbers that each has as many of."""
    if world_size() == 1:
        return list(values)
    sums = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(sums)
    return sums.tolist()


@torch.no_grad()
def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replaces each gradient by its sum over all processes, in which a missing one counts as zero."""
    if world_size() == 1:
        return
    bucket: list[Tensor] = []
    for parameter in parameters:
        if not parameter.requires_grad:
            continue
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        bucket.append(parameter.grad)
        if sum(gradient.numel() for gradient in bucket) >= _BUCKET:
            _sum_bucket(bucket)
            bucket = []
    if bucket:
        _sum_bucket(bucket)


def _sum_bucket(gradients: list[Tensor]) -> None:
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    for gradient, total in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(total.view_as(gradient))


@torch.no_grad()
def broadcast_module(module: nn.Module) -> None:
    """Gives all processes rank 0's parameters and buffers."""
    if world_size() > 1:
        for tensor in module.state_dict().values():
            dist.broadcast(tensor, 0)


def synchronise_batch_norm(model: nn.Module) -> None:
    """Makes each batch norm of a model one over the whole batch; the names of its parameters stay the same."""
    if world_size() == 1:
        return
    for name, module in list(model.named_modules()):
        if type(module) is nn.BatchNorm2d:
            new = SynchronisedBatchNorm2d(module.num_features, module.eps, module.momentum).to(module.weight)
            new.load_state_dict(module.state_dict())
            model.set_submodule(name, new)


class SynchronisedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose statistics are those of all processes' images. Unlike torch's, it works without a GPU too."""

    def forward(self, x_NCHW: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x_NCHW)
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        x = at_least_fp32(x_NCHW)
        own_count = x.new_tensor([x.numel() / x.shape[1]])
        sums = _SumOverRanks.apply(torch.cat((x.sum((0, 2, 3)), own_count)))
        count = sums[-1].detach()
        mean_C = sums[:-1] / count
        centred = x - mean_C[:, None, None]
        variance_C = _SumOverRanks.apply(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean_C, self.momentum)
            self.running_var.lerp_(variance_C * count / (count - 1), self.momentum)
        scale_C = (variance_C + self.eps).rsqrt() * self.weight
        return (centred * scale_C[:, None, None] + self.bias[:, None, None]).to(x_NCHW.dtype)


class _SumOverRanks(torch.autograd.Function):
    """The sum over all processes. Each of them uses it, so its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        values = values.clone()
        dist.all_reduce(values)
        return values

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient)
        return gradient
