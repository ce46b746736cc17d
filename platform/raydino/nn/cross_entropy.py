"""Cross-entropy of scores with soft targets, loss and gradient in one pass over the scores.

Prototype heads make the losses a question of memory traffic: 65,536 scores a view. Autograd keeps scaled scores and their
softmax and reads each again. Here a few rows at a time go through all of it while they lie in the cache, and the gradient takes
the place of the scores, which nothing reads again: fresh memory costs a CPU ten times what writing to it does.
"""

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

CACHED = 1 << 17  # scores taken at once on a CPU: 1.5 MB with targets and exponentials, about a core's cache
AT_ONCE = 1 << 26  # elsewhere: enough to fill a GPU, few enough for the temporaries to stay small
PIECES: int | None = None
"""How many pieces of a view are computed; None is all. Whoever counts memory without computing anything needs no third one."""


def cross_entropy(
    scores: Float[Tensor, "V N K"],
    targets: Sequence[Float[Tensor, "N K"]],
    masses: Sequence[float],
    *,
    temperature: float,
    fused: bool = False,
) -> Float[Tensor, "V N"]:
    """For every view v and row n, with target p = targets[v][n], which sums to masses[v], and scores s = scores[v, n]:

        -sum(p * log_softmax(s / temperature)) = masses[v] * logsumexp(s / temperature) - sum(p * s / temperature)

    Its gradient is (masses[v] * softmax(s / temperature) - p) / temperature; targets get none. In float32 or more.

    Where a gradient is wanted, the scores are overwritten: use no others of them afterwards.

    `fused`: on a GPU, as one Triton kernel (cross_entropy_triton.py). It knows no float64, which torch goes on to compute.
    """
    if not torch.is_grad_enabled():
        scores = scores.detach()  # says that no gradient is wanted
    compute = _in_pieces
    if fused and scores.dtype != torch.float64:
        from raydino.nn.cross_entropy_triton import forward as compute  # Triton is not everywhere where torch is
    return _CrossEntropy.apply(scores, temperature, compute, tuple(masses), *targets)  # pyright: ignore[reportReturnType]


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        scores: Tensor,
        temperature: float,
        compute: Callable[..., Tensor],
        masses: tuple[float, ...],
        *targets: Tensor,
    ) -> Tensor:
        wanted, scores = ctx.needs_input_grad[0], scores.detach()
        with torch.autocast(scores.device.type, enabled=False):  # it would take products in bfloat16
            losses = compute(scores, targets, masses, temperature=temperature, wanted=wanted)
        ctx.temperature, ctx.gradient = temperature, scores if wanted else None
        return losses

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *outer: Tensor
    ) -> tuple[Tensor | None, ...]:
        gradient, ctx.gradient = ctx.gradient, None  # scaled in place, so it serves once
        scale = (outer[0] / -ctx.temperature).unsqueeze(-1)
        return gradient.mul_(scale), *(None for _ in ctx.needs_input_grad[1:])


def _in_pieces(
    scores: Tensor, targets: Sequence[Tensor], masses: Sequence[float], *, temperature: float, wanted: bool
) -> Tensor:
    """The losses, and where `wanted` p - mass * softmax in place of the scores, a few rows of a view at a time."""
    precision = torch.promote_types(scores.dtype, torch.float32)
    losses = scores.new_empty(scores.shape[:2], dtype=precision)
    step = max(1, (CACHED if scores.device.type == "cpu" else AT_ONCE) // scores.shape[2])
    sharpness = 1 / temperature
    for begin in islice(range(0, scores.shape[1], step), PIECES):
        rows = slice(begin, begin + step)  # of all views in turn: most share a target, which the cache then has
        for view, (target, mass) in enumerate(zip(targets, masses, strict=True)):
            wished, own = target[rows].to(precision), scores[view, rows].to(precision)
            each = wished * own  # then the exponentials, in the same memory
            product = each.sum(dim=1)
            largest = own.amax(dim=1, keepdim=True) * sharpness  # as rounded: any shift of all exponents cancels
            total = torch.add(-largest, own, alpha=sharpness, out=each).exp_().sum(dim=1, keepdim=True)
            losses[view, rows] = (mass * (largest + total.log())).squeeze(1) - sharpness * product
            if wanted:  # its negative, for one operation less
                torch.addcmul(wished, each, mass / total, value=-1, out=scores[view, rows])
            del own, each  # before the next view has its own
    return losses
