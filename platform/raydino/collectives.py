"""The few collectives the methods need. In one process each is the identity, so no code asks whether it is distributed."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor


def rank() -> int:
    """This process's rank, 0 when not distributed."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes, 1 when not distributed."""
    return dist.get_world_size() if dist.is_initialized() else 1


class _Clock:
    """Seconds that this process has waited in collectives."""

    waited = 0.0


def waited() -> float:
    """Seconds that this process has spent in the collectives below so far; on a GPU only the host's share of them."""
    return _Clock.waited


@contextmanager
def _waiting() -> Iterator[None]:
    begin = time.perf_counter()
    try:
        yield
    finally:
        _Clock.waited += time.perf_counter() - begin


def all_sum(value: Tensor) -> Tensor:
    """Sum over ranks; a new tensor, without gradient."""
    value = value.detach().clone()
    if world_size() > 1:
        with _waiting():
            dist.all_reduce(value)
    return value


def all_mean(value: Tensor) -> Tensor:
    """Mean over ranks; a new tensor, without gradient."""
    return all_sum(value) / world_size()


def all_max(value: Tensor) -> Tensor:
    """Maximum over ranks; a new tensor, without gradient."""
    value = value.detach().clone()
    if world_size() > 1:
        with _waiting():
            dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return value


def gather_rows(value: Tensor) -> Tensor:
    """Rows of all ranks in rank order; ranks may hold different numbers of rows. Without gradient."""
    value = value.detach().contiguous()
    if world_size() == 1:
        return value
    counts = [torch.zeros(1, dtype=torch.long, device=value.device) for _ in range(world_size())]
    dist.all_gather(counts, torch.tensor([len(value)], device=value.device))
    longest = max(int(c) for c in counts)
    padded = torch.zeros(longest, *value.shape[1:], dtype=value.dtype, device=value.device)
    padded[: len(value)] = value
    parts = [torch.empty_like(padded) for _ in range(world_size())]
    dist.all_gather(parts, padded)
    return torch.cat([part[: int(count)] for part, count in zip(parts, counts, strict=True)])


def barrier() -> None:
    """Wait for all ranks."""
    if world_size() > 1:
        dist.barrier()
