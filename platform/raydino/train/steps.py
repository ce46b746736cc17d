"""The training loop: a generator of step reports. Whoever consumes it decides what to log, evaluate and save.

One step: micro-batches through the method, gradients clipped and checked, optimiser, then teacher and centres.
Nothing here knows of Ray,
files or trackers. Every random draw is keyed by the step, so a loop started at step n is the tail of the loop started at 0.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from raydino import collectives, faults
from raydino.keyed import key64
from raydino.methods.method import Method
from raydino.tracking.run import (
    LOSS_GROUP,
    LOSS_TOTAL,
    OPTIM_GRAD_NORM,
    OPTIM_LR,
    OPTIM_WEIGHT_DECAY,
)
from raydino.train.config import OptimConfig
from raydino.train.optim import clip_gradients, drop_last_layer_gradients, learning_rate, set_schedules
from raydino.train.parallel import autocast, without_sync
from raydino.views import Batch


class NonFiniteError(RuntimeError):
    """The loss or a gradient is NaN or infinite. Raised on every rank before any weight, moment, centre or teacher
    has changed."""


@dataclass(frozen=True)
class StepReport:
    """What one optimiser step did."""

    step: int
    """The step just finished, from 0."""
    metrics: dict[str, Tensor | float]
    """By metric name; tensors stay on the device until somebody asks."""
    images: int
    """Images of this step over all ranks."""
    waited: float
    """Seconds this rank waited for data."""
    seconds: float
    """Seconds from the end of the last step to the end of this one, waiting included; on a GPU the host's view."""


@dataclass(frozen=True)
class Loop:
    """What stays the same over all steps."""

    method: Method
    """Student, teacher and losses."""
    module: nn.Module
    """The method as called: itself, or wrapped for several ranks."""
    optimizer: torch.optim.Optimizer
    optim: OptimConfig
    peak_lr: float
    """Learning rate after the warm-up, scaled with the global batch."""
    seed: int
    steps: int
    device: torch.device
    normalise: Callable[[Tensor], Tensor]
    """uint8 crops to the backbone's input."""
    precision: Literal["bf16", "fp32"] = "fp32"
    accumulate: int = 1
    """Micro-batches per step and rank."""


def training_steps(loop: Loop, batches: Iterable[Batch]) -> Iterator[StepReport]:
    """Train on `batches`, one optimiser step each, and report every step.

    Raises:
        NonFiniteError: on all ranks, with model and optimiser as they were after the previous step.
    """
    source, finished = iter(batches), time.perf_counter()
    while True:
        asked = time.perf_counter()
        batch = next(source, None)
        if batch is None:
            return
        waited = time.perf_counter() - asked
        metrics = train_step(loop, batch)
        now = time.perf_counter()
        yield StepReport(batch.step, metrics, batch.images * collectives.world_size(), waited, now - finished)
        finished = time.perf_counter()  # what the consumer did with the report is not the step's time


def train_step(loop: Loop, batch: Batch) -> dict[str, Tensor | float]:
    """One optimiser step on one rank's batch; returns its metrics. Raises NonFiniteError."""
    step, method = batch.step, loop.method
    faults.reach("step", step=step, rank=collectives.rank())
    torch.manual_seed(key64(loop.seed, "depth", step, collectives.rank()))  # stochastic depth
    losses, diagnostics = _backward(loop, batch)
    frozen, rule = method.last_layer_frozen(step), method.settings.last_layer_rule
    norms = clip_gradients(method.student, loop.optim.clip, per=method.settings.clip)
    if frozen and rule == "no_gradient":  # after clipping, as published
        drop_last_layer_gradients(method.student)
    grad_norm = torch.linalg.vector_norm(torch.stack(list(norms.values())))
    total = torch.stack(list(losses.values())).sum()
    _stop_unless_finite(total, grad_norm, batch)
    lr = learning_rate(loop.optim, loop.peak_lr, step, steps=loop.steps)
    weight_decay = loop.optim.weight_decay.at(step, steps=loop.steps)
    still = frozen and rule == "no_rate"
    set_schedules(loop.optimizer, lr=lr, weight_decay=weight_decay, last_layer_still=still)
    loop.optimizer.step()
    loop.optimizer.zero_grad(set_to_none=True)
    method.after_step(step)
    return {
        LOSS_TOTAL: total,
        **{f"{LOSS_GROUP}/{name}": value for name, value in losses.items()},
        **diagnostics,
        **method.scheduled(step),
        OPTIM_LR: lr,
        OPTIM_WEIGHT_DECAY: weight_decay,
        OPTIM_GRAD_NORM: grad_norm,
        **{f"{OPTIM_GRAD_NORM}_{name}": norm for name, norm in norms.items()},
    }


def _backward(loop: Loop, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Gradients of the mean over micro-batches; returns their mean losses and diagnostics, without gradient."""
    sums: list[dict[str, Tensor]] = [{}, {}]
    for number, part in enumerate(batch.split(loop.accumulate), start=1):
        part = part.to(loop.device)
        crops = {name: loop.normalise(crop) for name, crop in part.crops.items()}
        part = replace(part, crops=crops)
        with without_sync(loop.module, last=number == loop.accumulate):
            with autocast(loop.device, loop.precision):
                output = loop.module(part, batch.step)
            (torch.stack(list(output.losses.values())).sum() / loop.accumulate).backward()
        for total, values in zip(sums, (output.losses, output.diagnostics), strict=True):
            for name, value in values.items():
                total[name] = total.get(name, 0.0) + value.detach() / loop.accumulate
    return sums[0], sums[1]


def _stop_unless_finite(total: Tensor, grad_norm: Tensor, batch: Batch) -> None:
    """All ranks stop together, so that none waits in a collective for one that left."""
    bad = collectives.all_sum((~torch.isfinite(torch.stack([total, grad_norm]).sum())).float())
    if bad.item() > 0:
        raise NonFiniteError(
            f"step {batch.step}: loss = {total.item():.4g}, gradient norm = {grad_norm.item():.4g} on rank {collectives.rank()} "
            f"({int(bad.item())} of {collectives.world_size()} ranks not finite; first image {batch.ids[0].hex()}); nothing was "
            "updated. Lower optim.lr or method.teacher_temperature, or lengthen optim.warmup."
        )
