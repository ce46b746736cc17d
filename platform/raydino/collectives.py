"""The few collectives the methods need. In one process each is the identity, so no code asks whether it is distributed.

Parameters may be sharded over ranks (train/sharding.py); `shard`, `whole` and `norms` are all that others need to know of it.
"""

import time
from collections.abc import Iterator, Sequence
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


def is_sharded(tensor: Tensor) -> bool:
    """Whether ranks hold a part of it each (torch's DTensor, asked this way because its import takes half a second)."""
    return hasattr(tensor, "full_tensor")


def shard(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor: its rows of a sharded one, else all of it. The same memory, without gradient."""
    return (tensor.to_local() if is_sharded(tensor) else tensor).detach()  # pyright: ignore[reportAttributeAccessIssue]


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, without gradient: a sharded one gathered from all ranks, which call this together, else itself."""
    return tensor.detach().full_tensor() if is_sharded(tensor) else tensor.detach()  # pyright: ignore[reportAttributeAccessIssue]


def norms(tensors: Sequence[Tensor]) -> Tensor:
    """The Euclidean norm of each tensor, of sharded ones over all ranks, which call this together."""
    each = torch.stack(torch._foreach_norm([shard(tensor) for tensor in tensors]))
    return all_sum(each.square()).sqrt() if is_sharded(tensors[0]) else each


def barrier() -> None:
    """Wait for all ranks."""
    if world_size() > 1:
        dist.barrier()
