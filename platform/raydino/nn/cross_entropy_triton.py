"""The cross-entropy of cross_entropy.py as one Triton kernel over all views and rows. Import this file only to use it.

Tested for its values in Triton's interpreter and compiled for GPUs without having one; never timed.
"""
# pyright: reportCallIssue=false, reportAssignmentType=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
# A kernel is Python by its looks alone.

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 8192  # scores of a row that a program holds at once
PER_WARP = 512  # of them: 16 a thread, in loads of 16 bytes


def forward(
    scores: Tensor, targets: Sequence[Tensor], masses: Sequence[float], *, temperature: float, wanted: bool
) -> Tensor:
    """Losses [V, N] in float32 of scores [V, N, K], not float64; where `wanted`, p - mass * softmax overwrites the scores."""
    views, rows, prototypes = scores.shape
    losses = scores.new_empty(views, rows, dtype=torch.float32)
    if not losses.numel():  # no kernel may be launched for nothing
        return losses
    block = min(triton.next_power_of_2(prototypes), BLOCK)
    _row[(views * rows,)](
        scores,
        *scores.stride(),
        tuple(target.float().contiguous() for target in targets),  # themselves, where they are that already
        tuple(masses),
        losses,
        prototypes,
        1 / temperature,
        wanted,
        block,
        num_warps=min(max(block // PER_WARP, 1), 16),
    )
    if wanted:
        torch.autograd.graph.increment_version(scores)  # so that autograd notices who else needs them
    return losses


@triton.jit
def _row(  # noqa: ANN202
    scores,  # noqa: ANN001
    by_view,  # noqa: ANN001
    by_row,  # noqa: ANN001
    by_score,  # noqa: ANN001
    targets,  # noqa: ANN001
    masses,  # noqa: ANN001
    losses,  # noqa: ANN001
    prototypes,  # noqa: ANN001
    sharpness,  # noqa: ANN001
    wanted: tl.constexpr,
    block: tl.constexpr,
):
    """One row of one view, in two sweeps. The views of a row are neighbours: most share a target, which the cache then has."""
    views: tl.constexpr = len(targets)
    row, view = (tl.program_id(0) // views).to(tl.int64), tl.program_id(0) % views
    target, mass = targets[0], masses[0]
    for other in tl.static_range(1, views):
        target = tl.where(view == other, targets[other], target)
        mass = tl.where(view == other, masses[other], mass)
    target += row * prototypes
    scores += view.to(tl.int64) * by_view + row * by_row
    largest, total, product = float("-inf"), 0.0, 0.0
    for begin in range(0, prototypes, block):
        at = begin + tl.arange(0, block)
        s = tl.load(scores + at * by_score, mask=at < prototypes, other=float("-inf")).to(tl.float32) * sharpness
        p = tl.load(target + at, mask=at < prototypes, other=0.0)
        before, largest = largest, tl.maximum(largest, tl.max(s))
        total = total * tl.exp(before - largest) + tl.sum(tl.exp(s - largest))
        product += tl.sum(tl.where(at < prototypes, p * s, 0.0))
    tl.store(losses + view * (tl.num_programs(0) // views) + row, mass * (largest + tl.log(total)) - product)
    if wanted:
        share = mass / total
        for begin in range(0, prototypes, block):
            at = begin + tl.arange(0, block)
            s = tl.load(scores + at * by_score, mask=at < prototypes, other=0.0).to(tl.float32) * sharpness
            p = tl.load(target + at, mask=at < prototypes, other=0.0)
            gradient = p - share * tl.exp(s - largest)
            tl.store(scores + at * by_score, gradient.to(scores.dtype.element_ty), mask=at < prototypes)
