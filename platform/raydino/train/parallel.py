"""How one model runs on several workers and in which precision. Everything here changes speed or place, not the recipe."""

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from importlib.util import find_spec
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from raydino import collectives
from raydino.config import ConfigError
from raydino.methods.method import Method
from raydino.nn.backbone import Backbone
from raydino.train.sharding import shard_method

Precision = Literal["bf16", "fp32"]


def distribute(
    method: Method, device: torch.device, *, parallel: Literal["ddp", "fsdp"], compute: Precision, reduce: Precision
) -> nn.Module:
    """The method on `device` as every rank trains it: itself on one worker, else replicated (`replicate`) or sharded
    (train/sharding.py).

    `compute` is the precision of forward and backward, `reduce` that in which gradients are averaged.

    Raises:
        ConfigError: batch norm on several CPU workers, which torch cannot synchronise.
    """
    if parallel == "ddp" or not dist.is_initialized():
        return replicate(method.to(device), device, reduce=reduce)
    shard_method(_with_synchronised_norms(method, device), device, compute=compute, reduce=reduce)
    return method.to(device)


def replicate(method: nn.Module, device: torch.device, *, reduce: Precision = "fp32") -> nn.Module:
    """The method itself on one worker, DistributedDataParallel on several.

    Buffers are not broadcast: centres are moved alike on all ranks by their own all-reduce, and batch norms (DINO's convolutional
    networks) compute their statistics over all ranks, in the teacher as in the student.

    Raises:
        ConfigError: batch norm on several CPU workers, which torch cannot synchronise.
    """
    if collectives.world_size() == 1:
        return method
    ids = [device.index] if device.type == "cuda" else None
    module = DistributedDataParallel(
        _with_synchronised_norms(method, device), device_ids=ids, broadcast_buffers=False, gradient_as_bucket_view=True
    )
    if reduce == "bf16":
        from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook

        module.register_comm_hook(None, bf16_compress_hook)
    return module


def _with_synchronised_norms(method: Any, device: torch.device) -> Any:
    if collectives.world_size() == 1 or not has_batch_norm(method):
        return method
    if device.type == "cpu":
        raise ConfigError("cluster.workers: batch norm is synchronised on GPUs only; use 1, or another network")
    return nn.SyncBatchNorm.convert_sync_batchnorm(method)


def compile_blocks(backbone: Backbone) -> None:
    """Have torch compile each block for every size of crops it meets: the same sums in fewer, fused kernels, rounded otherwise.

    Block by block, because all blocks of a network share what is compiled for one of them. Stochastic depth draws the same
    numbers. To be called before `recompute_blocks`, which then computes the compiled block again.

    Raises:
        ConfigError: a convolutional network, which has no blocks.
    """
    if not backbone.blocks():
        raise ConfigError("cluster.compile: a convolutional network has no blocks to compile; set it to false")
    from torch import _dynamo
    from torch._inductor import config as inductor

    inductor.fallback_random = True
    # Sizes of crops, with and without gradient; where the rate of drop path grows with depth, for every block anew.
    _dynamo.config.recompile_limit = max(_dynamo.config.recompile_limit, 8 * len(backbone.blocks()))
    for block in backbone.blocks():
        block.forward = torch.compile(block.forward, dynamic=False)


def recompute_blocks(backbone: Backbone) -> None:
    """Keep only the input of each block for the backward pass and compute the block again there, with the same random draws.

    Before sharding: parameters are gathered around the block's call, so once for both of its computations.

    Raises:
        ConfigError: a convolutional network, which has no blocks and whose batch norms would count every batch twice.
    """
    if not backbone.blocks():
        raise ConfigError("cluster.checkpoint_activations: a convolutional network has no such blocks; set it to false")
    for block in backbone.blocks():
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def fuse_losses(method: Method, device: torch.device) -> None:
    """Have one Triton kernel compute the losses over prototypes.

    Raises:
        ConfigError: there is no GPU for it, or no Triton, which torch for Linux brings along.
    """
    if device.type == "cpu":
        raise ConfigError(
            "cluster.losses = triton: this worker has no GPU, where alone Triton computes; set it to torch"
        )
    if find_spec("triton") is None:
        raise ConfigError(
            "cluster.losses = triton: Triton is not installed on this worker; install it, or set it to torch"
        )
    method.fused_losses = True


def has_batch_norm(module: nn.Module) -> bool:
    """Whether any part normalises over the batch."""
    return any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in module.modules())


def without_sync(module: nn.Module, *, last: bool) -> AbstractContextManager[None]:
    """No averaging of gradients over ranks for any micro-batch but the last; until then they add up, whole, on each rank."""
    if isinstance(module, DistributedDataParallel):
        return nullcontext() if last else module.no_sync()
    if (switch := getattr(module, "set_requires_gradient_sync", None)) is not None:  # sharded
        switch(last)
    return nullcontext()


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
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
