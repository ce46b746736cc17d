"""How one model runs on several workers and in which precision. Everything here changes speed or place, not the recipe."""

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from raydino import collectives
from raydino.config import ConfigError


def replicate(method: nn.Module, device: torch.device) -> nn.Module:
    """The method as every rank trains it: itself on one worker, DistributedDataParallel on several.

    Buffers are not broadcast: centres are moved alike on all ranks by their own all-reduce, and batch norms (DINO's convolutional
    networks) compute their statistics over all ranks, in the teacher as in the student.

    Raises:
        ConfigError: batch norm on several CPU workers, which torch cannot synchronise.
    """
    if collectives.world_size() == 1:
        return method
    if has_batch_norm(method):
        if device.type == "cpu":
            raise ConfigError("cluster.workers: batch norm is synchronised on GPUs only; use 1, or another network")
        method = nn.SyncBatchNorm.convert_sync_batchnorm(method)
    ids = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(method, device_ids=ids, broadcast_buffers=False, gradient_as_bucket_view=True)


def has_batch_norm(module: nn.Module) -> bool:
    """Whether any part normalises over the batch."""
    return any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in module.modules())


def without_sync(module: nn.Module, *, last: bool) -> AbstractContextManager[None]:
    """No gradient all-reduce for any micro-batch but the last."""
    return nullcontext() if last or not isinstance(module, DistributedDataParallel) else module.no_sync()


def autocast(device: torch.device, precision: Literal["bf16", "fp32"]) -> AbstractContextManager[object]:
    """bfloat16 autocast, or nothing."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bf16" else nullcontext()


def native_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware: CUDA from Ampere on, CPUs with AMX or AVX512-BF16.

    With AVX512-BF16 matrix products are 2.1 times as fast as in float32; elsewhere bfloat16 is emulated: measured 400 times
    slower on a CPU with AVX2 only.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    probes = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")  # private in torch, so they may go away
    return any(bool(getattr(torch.cpu, probe, bool)()) for probe in probes)
