"""Stochastic depth on a subset of the batch (DINOv2, section 5, "efficient stochastic depth").

Ordinary stochastic depth computes a residual branch for every sample and throws some of the results away; here the branch sees
only the samples that keep it, so memory and time fall by about `rate`. One rate holds for all blocks.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


def residual(x: Float[Tensor, "B T D"], branch: Callable[[Tensor], Tensor], *, rate: float) -> Float[Tensor, "B T D"]:
    """x + branch(x), the branch on max(floor(B * (1 - rate)), 1) random samples and weighted by B over that number.

    Its expectation over subsets is x + branch(x). The subset comes from torch's generator of x's device.
    """
    batch = len(x)
    kept = max(int(batch * (1 - rate)), 1)
    rows = torch.randperm(batch, device=x.device)[:kept]
    return x.index_add(0, rows, branch(x.index_select(0, rows)).to(x.dtype), alpha=batch / kept)


def block_on_subsets(block: Any, tokens: Float[Tensor, "B T D"], *, rate: float) -> Float[Tensor, "B T D"]:
    """A timm block with each of its two residual branches on a subset of its own."""
    tokens = residual(tokens, lambda x: block.ls1(block.attn(block.norm1(x))), rate=rate)
    return residual(tokens, lambda x: block.ls2(block.mlp(block.norm2(x))), rate=rate)


def use_subsets(blocks: Iterable[Any], *, rate: float) -> None:
    """Make timm blocks compute on subsets whenever they train. Their `forward` changes and not how they are called, so what
    hangs on their call, such as sharding, goes on to work."""
    for block in blocks:
        block.forward = partial(_forward, block, block.forward, rate=rate)


def _forward(block: Any, whole: Callable[[Tensor], Tensor], tokens: Tensor, *, rate: float) -> Tensor:
    return block_on_subsets(block, tokens, rate=rate) if block.training else whole(tokens)
