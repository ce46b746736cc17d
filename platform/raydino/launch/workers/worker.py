"""What runs in every Ray Train worker: start the stream, build, restore, train, and decide what to log, evaluate and save.

The training itself is `raydino.train.steps.training_steps`; this file consumes its reports. Rank 0 records and
saves, all ranks evaluate together. A worker that starts takes up the newest checkpoint of the run's folder, whoever wrote it: a
restart after a crash and a `--resume auto` are the same thing.
"""

import logging
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Literal

import ray
import torch
from ray.train.torch import get_device

from raydino import collectives
from raydino.allocator import keep_freed_memory
from raydino.config import ConfigError, in_steps
from raydino.data.batches import batches
from raydino.data.fetch import TooManyBadImages
from raydino.data.phases import Phases
from raydino.keyed import key64
from raydino.launch.cluster import ClusterConfig
from raydino.launch.engine.owners import Owners
from raydino.launch.gauges import Gauges
from raydino.launch.init import begin_from
from raydino.launch.inputs import Inputs, open_inputs
from raydino.launch.job import Job
from raydino.launch.workers import audit, failure
from raydino.launch.workers.keep import Keeper, choose
from raydino.launch.workers.profiling import profiled
from raydino.launch.workers.record import Judge, Record, quarantine
from raydino.launch.workers.shapes import with_fixed_shapes
from raydino.launch.workers.watchdog import FOLDER as STACKS
from raydino.launch.workers.watchdog import Watchdog
from raydino.launch.workers.wishes import Wishes
from raydino.nn.attention import use_attention
from raydino.recipe import Recipe
from raydino.shards.schema import ShardUnreachable
from raydino.tracking.meters import Rate
from raydino.tracking.run import DATA_ROWS, RUN_PROGRESS_AT, RUN_STEPS
from raydino.train.checkpoint import step_of
from raydino.train.guard import Guard, UnhealthyError
from raydino.train.optim import build_optimizer
from raydino.train.parallel import (
    compile_blocks,
    distribute,
    fuse_losses,
    native_bf16,
    recompute_blocks,
)
from raydino.train.steps import Loop, StepReport, training_steps
from raydino.train.verify import CheckpointError
from raydino.views import Batch

LASTING = (ConfigError, UnhealthyError, TooManyBadImages, CheckpointError)
"""What a restart would meet again."""

log = logging.getLogger(__name__)


@dataclass
class _Progress:
    """How far this worker is."""

    done: int = 0
    """Finished steps of the run."""


def train_worker(job: Job, claim: Owners | None = None) -> None:
    """Train `job` on this worker, from the newest checkpoint on; `claim` decides on copies where `data.stream_dedup` asks for it.

    Raises whatever goes wrong. What a restart would meet again is written to failure.json too, so that the driver stops at
    once: what is LASTING, unless it is storage that does not answer, and any exception that came before at the same step.
    """
    progress, rank = _Progress(), collectives.rank()
    try:
        _train(job, progress, claim)
    except Exception as error:
        if isinstance(error, LASTING) and not isinstance(error, ShardUnreachable):  # storage may answer after a restart
            failure.give_up(job.run_dir, error, str(error))
        elif failure.came_again(job.run_dir, error, rank=rank, step=progress.done):
            failure.give_up(job.run_dir, error, failure.explanation(error, rank=rank, step=progress.done))
        raise


def _train(job: Job, progress: _Progress, claim: Owners | None = None) -> None:
    recipe = job.recipe
    inputs = open_inputs(recipe, job.data_path)
    if (now := inputs.collection.manifest.digest) != job.data_digest:
        raise ConfigError(
            f"data.path = {recipe.data.path}: changed while the run went on (digest {now[:16]}…, it began with "
            f"{job.data_digest[:16]}…); restore it, or start a run under another name."
        )
    device = _device(job)
    checkpoint = choose(job, device)
    start = 0 if checkpoint is None else step_of(checkpoint)
    with closing(_stream(job, inputs, claim, start=start)) as stream:  # first: it needs seconds for its first batch
        loop = build_loop(recipe, job.cluster, device, job.run_dir, fresh=checkpoint is None)
        keeper = Keeper(job, loop, claim)
        progress.done = keeper.restore(checkpoint)
        _train_on(stream, job, inputs, loop, progress, keeper)


def _train_on(stream: Phases, job: Job, inputs: Inputs, loop: Loop, progress: _Progress, keeper: Keeper) -> None:
    recipe, rank, start = job.recipe, collectives.rank(), progress.done
    with (
        Gauges.of_run(job, on=rank == 0) as gauges,
        Watchdog(job.run_dir / STACKS, rank=rank, timeout=job.cluster.hang_timeout) as watchdog,
    ):
        gauges.set({RUN_STEPS: recipe.steps, DATA_ROWS: inputs.plan.rows_per_epoch, RUN_PROGRESS_AT: time.time()})
        record = Record(job, rank, loop.device, lambda: stream.starved, gauges.set)
        judge = Judge(job, inputs, loop, record)
        if start == 0:
            with record.rate.paused(), watchdog.patience(first=True):
                judge.evaluate(0)
        witness = audit.Audit(audit.FOLDER, inputs.plan, rank=rank, world=collectives.world_size(), start=start)
        watched = witness.batches(_with_crop_sheet(stream, judge, record.rate, start))
        reports = witness.steps(training_steps(loop, watched))
        if job.profile and rank == 0:
            reports = profiled(job, loop, reports, record, cores=max(1, _cores() // _workers_here()))
        try:
            _follow(job, reports, progress, record, judge, keeper, watchdog)
        except Exception as error:  # what is good is kept: the state from before skipped steps, or a save in hand
            with watchdog.patience(), suppress(CheckpointError):
                if isinstance(error, UnhealthyError):
                    keeper.save(progress.done)
                keeper.wait()
            raise
        with watchdog.patience():
            record.log(keeper.finish(), progress.done)
    record.close("FINISHED" if progress.done == recipe.steps else "KILLED")


def _device(job: Job) -> torch.device:
    """What this worker trains on: Ray Train's choice, or what Ray has reserved for a trial."""
    if not job.alone:
        return get_device()
    return torch.device("cuda:0" if job.cluster.use_gpu(torch.cuda.device_count()) else "cpu")


def _follow(
    job: Job,
    reports: Iterable[StepReport],
    progress: _Progress,
    record: Record,
    judge: Judge,
    keeper: Keeper,
    watchdog: Watchdog,
) -> None:
    """Record, judge and keep what the training reports, until it ends or is asked to stop."""
    recipe, wishes = job.recipe, Wishes(job.run_dir, judge.device, alone=job.alone)
    for report in reports:
        done = progress.done = report.step + 1
        watchdog.beat(done)
        last, wish = done >= job.last_step, wishes.after_step()
        record.note(keeper.poll())
        record.step(report, now=last or wish.stop or done % recipe.cadence.log == 0)
        with record.rate.paused(), watchdog.patience():
            if wish.save:
                record.note(keeper.save(done, wait=True))
                wishes.saved()
                log.warning("step %d: saved, because nodes are about to go or to come (%s)", done, wish)
            if last or _due(done, recipe.cadence.evaluate, recipe.steps):
                judge.evaluate(done)
                if job.judged and not last and wishes.wait_for_verdict(done):
                    wish = replace(wish, stop=True)
            if last or wish.stop or _due(done, recipe.cadence.checkpoint, recipe.steps):
                record.note(keeper.save(done))
        if wish.stop:
            break


def _stream(job: Job, inputs: Inputs, claim: Owners | None, *, start: int) -> Phases:
    """All batches from `start` on. Where a curriculum changes their size the pipeline starts anew, as after a restart: windows
    that hold images of both sizes are read twice, and a bad image may be reported again."""
    recipe, cluster, world = job.recipe, job.cluster, collectives.world_size()
    micro_batch = recipe.global_batch // world // cluster.accumulate_on(world, recipe.global_batch)
    padded = partial(with_fixed_shapes, recipe, workers=world, micro_batch=micro_batch)
    streams = (
        batches(
            inputs.collection,
            inputs.plan,
            views,
            seed=recipe.seed,
            rank=collectives.rank(),
            world=world,
            start_step=steps.start,
            steps=len(steps),
            max_bad=recipe.data.max_bad,
            on_bad=partial(quarantine, job.run_dir, collectives.rank()),
            decode_in=_decode_in(job),
            threads=_decode_threads(cluster),
            prefetch=max(1, cluster.prefetch),
            claim=claim,
        )
        for steps, views in recipe.phases(start, job.last_step)
    )
    return Phases(streams, padded) if cluster.fixed_shapes else Phases(streams)


def build_loop(
    recipe: Recipe, cluster: ClusterConfig, device: torch.device, run_dir: Path | None = None, *, fresh: bool = True
) -> Loop:
    """The model as this rank trains it on `device`: the same weights on every rank, from the recipe's seed and from the copies in
    the run's folder, where one is given: initial weights for a `fresh` run, a frozen teacher for any."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")  # TensorFloat-32 for what autocast leaves in float32
    else:
        keep_freed_memory()
        torch.set_num_threads(cluster.torch_threads(cores=_cores(), workers_here=_workers_here()))
    torch.manual_seed(key64(recipe.seed, "weights"))
    method = recipe.method.build(recipe.backbone, steps=recipe.steps)
    if run_dir is not None:
        begin_from(method, run_dir, recipe, fresh=fresh)
    precision = cluster.precision_on(native_bf16=native_bf16(device))
    attention = cluster.attention_on(on_cpu=device.type == "cpu", precision=precision, tokens=recipe.tokens)
    use_attention(method, fused=attention == "fused")
    if cluster.compile:
        for network in method.networks():
            compile_blocks(network.backbone)
    if cluster.losses == "triton":
        fuse_losses(method, device)
    if cluster.checkpoint_activations:
        recompute_blocks(method.student.backbone)
    module = distribute(method, device, parallel=cluster.parallel, compute=precision, reduce=cluster.gradient_reduction)
    return Loop(
        method=method,
        module=module,
        optimizer=build_optimizer(method.student, recipe.optim),
        optim=recipe.optim,
        peak_lr=recipe.learning_rate,
        seed=recipe.seed,
        steps=recipe.steps,
        device=device,
        normalise=recipe.data.normalisation,
        precision=precision,
        accumulate=cluster.accumulate_on(collectives.world_size(), recipe.global_batch),
        guard=Guard(recipe.guards),
        frozen_steps=in_steps(recipe.init.frozen_steps, recipe.steps),
    )


def _due(done: int, every: int | float, steps: int) -> bool:
    interval = in_steps(every, steps)
    return interval > 0 and done % interval == 0


def _with_crop_sheet(stream: Iterator[Batch], judge: Judge, rate: Rate, start: int) -> Iterator[Batch]:
    with rate.waiting():
        first = next(stream, None)
    if first is None:
        return iter(())
    if start == 0:
        with rate.paused():
            judge.picture_of(first)
    return chain([first], stream)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _workers_here() -> int:
    """Workers on this node, as Ray Train tells them; all of them where it does not."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", collectives.world_size()))


def _decode_in(job: Job) -> Literal["worker", "cluster"]:
    """Where this run's images are cut; every rank asks the same cluster, so all agree."""
    resources = ray.cluster_resources()
    return job.cluster.decodes_in(
        gpus=int(resources.get("GPU", 0)),
        cpus=resources.get("CPU", 0.0),
        store=int(resources.get("object_store_memory", 0)),
        store_needed=job.store_bytes,
    )


def _decode_threads(cluster: ClusterConfig) -> int:
    return cluster.decode_threads(
        cores=_cores(), workers_here=_workers_here(), use_gpu=cluster.use_gpu(torch.cuda.device_count())
    )
