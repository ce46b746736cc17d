"""The training loop: a generator of step reports. Whoever consumes it decides what to log, evaluate and save.

One step: micro-batches through the method, gradients clipped and checked, optimiser, then teacher and centres.
Nothing here knows of Ray, files or trackers. Every random draw is keyed by the step, so a loop started at step n is the tail of
the loop started at 0.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from raydino import collectives, faults
from raydino.data.colour import coloured
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
from raydino.train.guard import Guard, Skip, running_statistics
from raydino.train.optim import (
    clip_gradients,
    drop_backbone_gradients,
    drop_last_layer_gradients,
    learning_rate,
    set_schedules,
)
from raydino.train.parallel import autocast, without_sync
from raydino.train.profiling.parts import INPUT, OPTIMISER, WAITING, span
from raydino.train.stopwatch import Stopwatch
from raydino.views import Batch

SPIKE = 20.0  # what the fault "spike" multiplies a loss by


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
    own: float = 0.0
    """Seconds of data and forward pass: what this rank makes the others wait for."""
    skipped: Skip | None = None
    """Why the step changed nothing; then its metrics are of no use."""
    spike: bool = False
    """Whether its loss was far above those before."""


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
    frozen_steps: int = 0
    """Steps at the start in which the backbone is not trained."""
    guard: Guard = field(default_factory=Guard)
    """Whether a step may change anything."""


@dataclass(frozen=True)
class Outcome:
    """What came of one batch."""

    metrics: dict[str, Tensor | float]
    own: float
    """Seconds of the forward pass, waiting for other ranks left out where the host can tell."""
    skipped: Skip | None


def training_steps(loop: Loop, batches: Iterable[Batch]) -> Iterator[StepReport]:
    """Train on `batches`, one optimiser step each, and report every step; see train/guard.py for those that are skipped.

    Raises:
        UnhealthyError: on all ranks, after the report of the last step that `loop.guard` put up with.
    """
    source, finished = iter(batches), time.perf_counter()
    while True:
        asked = time.perf_counter()
        with span(WAITING):
            batch = next(source, None)
        if batch is None:
            return
        waited = time.perf_counter() - asked
        out = train_step(loop, batch)
        now = time.perf_counter()
        images = batch.images * collectives.world_size()
        yield StepReport(
            batch.step, out.metrics, images, waited, now - finished, waited + out.own, out.skipped, loop.guard.spike
        )
        if loop.guard.error is not None:
            raise loop.guard.error
        finished = time.perf_counter()  # what the consumer did with the report is not the step's time


def train_step(loop: Loop, batch: Batch) -> Outcome:
    """One optimiser step on one rank's batch, or none if `loop.guard` says so."""
    step, method, watch = batch.step, loop.method, Stopwatch(loop.device)
    with watch:
        faults.reach("step", step=step, rank=collectives.rank())
    torch.manual_seed(key64(loop.seed, "depth", step, collectives.rank()))  # stochastic depth
    statistics = running_statistics(method)
    before = [buffer.clone() for buffer in statistics]
    losses, diagnostics = _backward(loop, batch, watch)
    frozen, rule = method.last_layer_frozen(step), method.settings.last_layer_rule
    with span(OPTIMISER):  # and its own steps, which torch marks itself
        norms = clip_gradients(method.student, loop.optim.clip, per=method.settings.clip)
    if frozen and rule == "no_gradient":  # after clipping, as published
        drop_last_layer_gradients(method.student)
    if step < loop.frozen_steps:
        drop_backbone_gradients(method.student)
    grad_norm = torch.linalg.vector_norm(torch.stack(list(norms.values())))
    total = torch.stack(list(losses.values())).sum()
    skipped = loop.guard.judge(total, grad_norm, ids=batch.ids, step=step)
    lr = learning_rate(loop.optim, loop.peak_lr, step, steps=loop.steps)
    weight_decay = loop.optim.weight_decay.at(step, steps=loop.steps)
    if skipped is None:
        still = frozen and rule == "no_rate"
        set_schedules(loop.optimizer, lr=lr, weight_decay=weight_decay, last_layer_still=still)
        loop.optimizer.step()
        with span(OPTIMISER):
            method.after_step(step)
    else:
        method.forget_step()
        for buffer, value in zip(statistics, before, strict=True):
            buffer.copy_(value)
    loop.optimizer.zero_grad(set_to_none=True)
    metrics = {
        LOSS_TOTAL: total,
        **{f"{LOSS_GROUP}/{name}": value for name, value in losses.items()},
        **diagnostics,
        **method.scheduled(step),
        OPTIM_LR: lr,
        OPTIM_WEIGHT_DECAY: weight_decay,
        OPTIM_GRAD_NORM: grad_norm,
        **{f"{OPTIM_GRAD_NORM}_{name}": norm for name, norm in norms.items()},
    }
    return Outcome(metrics, watch.seconds(), skipped)


def _backward(loop: Loop, batch: Batch, watch: Stopwatch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Gradients of the mean over micro-batches; returns their mean losses and diagnostics, without gradient."""
    sums: list[dict[str, Tensor]] = [{}, {}]
    spoilt = partial(faults.reach, step=batch.step, rank=collectives.rank())
    for number, part in enumerate(batch.split(loop.accumulate), start=1):
        with without_sync(loop.module, last=number == loop.accumulate):
            with watch:
                with span(INPUT):
                    part = coloured(part.to(loop.device))
                    part = replace(part, crops={name: loop.normalise(crop) for name, crop in part.crops.items()})
                if spoilt("input"):
                    part = replace(part, crops={name: crop * math.nan for name, crop in part.crops.items()})
                with autocast(loop.device, loop.precision):
                    output = loop.module(part, batch.step)
            loss = torch.stack(list(output.losses.values())).sum() / loop.accumulate
            (loss * math.nan if spoilt("gradient") else loss).backward()
        for total, values in zip(sums, (output.losses, output.diagnostics), strict=True):
            for name, value in values.items():
                total[name] = total.get(name, 0.0) + value.detach() / loop.accumulate
    for site, by in (("loss", math.nan), ("spike", SPIKE)):
        if spoilt(site):
            sums[0] = {name: value * by for name, value in sums[0].items()}
    return sums[0], sums[1]
