"""What runs in every Ray Train worker: build, restore, train, and decide what to log, evaluate and save.

The training itself is `raydino.train.steps.training_steps`; this file consumes its reports. Rank 0 records and
saves, all ranks evaluate
together. A worker that starts takes up the newest checkpoint of the run's folder, whoever wrote it: a restart after a crash and a
`--resume auto` are the same thing.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

import ray
import torch
from ray.train.torch import get_device

from raydino import collectives
from raydino.config import ConfigError, in_steps
from raydino.data.fetch import TooManyBadImages
from raydino.data.stream import batches
from raydino.keyed import key64
from raydino.launch import audit, failure
from raydino.launch.cluster import ClusterConfig
from raydino.launch.inputs import open_inputs
from raydino.launch.job import Job
from raydino.launch.owners import Owners
from raydino.launch.record import Judge, Record
from raydino.recipe import Recipe
from raydino.shards.schema import ShardUnreachable
from raydino.train import checkpoint as checkpoints
from raydino.train.optim import build_optimizer
from raydino.train.parallel import native_bf16, replicate
from raydino.train.saving import Saver
from raydino.train.steps import Loop, NonFiniteError, training_steps
from raydino.train.verify import damage, require_same
from raydino.views import Batch

LASTING = (ConfigError, NonFiniteError, TooManyBadImages, checkpoints.CheckpointError)
"""What a restart would meet again."""
STOP = "STOP"
"""File in the run's folder: a wish to stop."""

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
    recipe, rank = job.recipe, collectives.rank()
    inputs = open_inputs(recipe, job.data_path)
    if (now := inputs.collection.manifest.digest) != job.data_digest:
        raise ConfigError(
            f"data.path = {recipe.data.path}: changed while the run went on (digest {now[:16]}…, it began with "
            f"{job.data_digest[:16]}…); restore it, or start a run under another name."
        )
    loop = build_loop(recipe, job.cluster, get_device())
    start = progress.done = _restore(job, loop)
    record = Record(job, rank)
    judge = Judge(job, inputs, loop, record)
    saver = _saver(job) if rank == 0 else None
    witness = audit.Audit(audit.FOLDER, inputs.plan, rank=rank, world=collectives.world_size(), start=start)
    stream = batches(
        inputs.collection,
        inputs.plan,
        recipe.views,
        seed=recipe.seed,
        rank=rank,
        world=collectives.world_size(),
        start_step=start,
        steps=recipe.steps - start,
        max_bad=recipe.data.max_bad,
        on_bad=record.quarantine,
        decode_in=_decode_in(job),
        threads=_decode_threads(job.cluster),
        prefetch=max(1, job.cluster.prefetch),
        claim=claim,
    )
    with closing(stream):
        if start == 0:
            with record.rate.paused():
                judge.evaluate(0)
        for report in training_steps(loop, witness.batches(_with_crop_sheet(stream, judge, start))):
            done = progress.done = report.step + 1
            last, stop = done == recipe.steps, _stop_wanted(job, loop.device)
            witness.step(report)
            record.step(report, now=last or stop or done % recipe.cadence.log == 0)
            if saver is not None:
                record.log(saver.poll(), done)
            with record.rate.paused():
                if last or _due(done, recipe.cadence.evaluate, recipe.steps):
                    judge.evaluate(done)
                if last or stop or _due(done, recipe.cadence.checkpoint, recipe.steps):
                    record.log(_save(job, loop, saver, done, claim), done)
            if stop:
                break
    if saver is not None:
        record.log(saver.finish(), progress.done)
    record.close("FINISHED" if progress.done == recipe.steps else "KILLED")


def _saver(job: Job) -> Saver:
    recipe = job.recipe
    return Saver(job.run_dir / "checkpoints", keep=recipe.cadence.keep, limit=recipe.guards.save_failures)


def build_loop(recipe: Recipe, cluster: ClusterConfig, device: torch.device) -> Loop:
    """The model as this rank trains it on `device`: the same weights on every rank, from the recipe's seed."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")  # TensorFloat-32 for what autocast leaves in float32
    else:
        torch.set_num_threads(cluster.torch_threads(cores=_cores(), workers_here=_workers_here()))
    torch.manual_seed(key64(recipe.seed, "weights"))
    method = recipe.method.build(recipe.backbone, steps=recipe.steps).to(device)
    return Loop(
        method=method,
        module=replicate(method, device),
        optimizer=build_optimizer(method.student, recipe.optim),
        optim=recipe.optim,
        peak_lr=recipe.learning_rate,
        seed=recipe.seed,
        steps=recipe.steps,
        device=device,
        normalise=recipe.data.normalisation,
        precision=cluster.precision_on(native_bf16=native_bf16(device)),
        accumulate=cluster.accumulate_on(collectives.world_size(), recipe.global_batch),
    )


def _restore(job: Job, loop: Loop) -> int:
    """Load the newest checkpoint, if there is one; returns the step to go on with. Rank 0 chooses, so that none differs.

    Raises:
        ConfigError: it is of other data.
        CheckpointError: none can be used, or it is of another architecture.
        OSError: another rank reads other bytes than rank 0.
    """
    folder, rank = job.run_dir / "checkpoints", collectives.rank()
    path = checkpoints.recover(folder) if rank == 0 else None
    chosen = checkpoints.step_of(path) if path is not None else -1
    chosen = int(collectives.all_max(torch.tensor(chosen, device=loop.device)))
    if chosen < 0:
        return 0
    path = checkpoints.path_of(folder, chosen)
    if rank != 0 and (fault := damage(path)):
        raise OSError(
            f"{path} is sound on rank 0 and not on rank {rank} ({fault}); is the storage the same on all nodes?"
        )
    saved = checkpoints.load(path, device=loop.device)
    for name, now in _identity(job).items():
        known = (now, *job.data_before) if name == "data" else (now,)
        if saved.meta.get(name) not in known:
            raise ConfigError(
                f"{name}: the checkpoint at step {saved.step} was made with {saved.meta.get(name)}, this run has {now}; "
                "restore the data it was made with, or start a run under another name."
            )
    require_same(str(path), loop.method.state_dict(), saved.model)
    loop.method.load_state_dict(saved.model)
    checkpoints.load_optimizer(loop.optimizer, saved.optimizer)
    return saved.step


def _save(job: Job, loop: Loop, saver: Saver | None, done: int, claim: Owners | None) -> dict[str, float]:
    """Begin to save the state after `done` steps; returns what the save before has to tell."""
    if saver is None:
        return {}
    return saver.save(
        done,
        model=loop.method.state_dict(),
        optimizer=checkpoints.optimizer_tensors(loop.optimizer),
        meta={
            **_identity(job),
            "mlflow_run_id": job.mlflow_run_id,
            "torch": torch.__version__,
            "world": collectives.world_size(),
        },
        # first: claims beyond a checkpoint are found again as they were, missing ones are not
        before=(lambda: None) if claim is None else claim.save,
    )


def _identity(job: Job) -> dict[str, Any]:
    """What a checkpoint must share with the run that takes it up."""
    return {"run": job.run_dir.name, "data": job.data_digest}


def _due(done: int, every: int | float, steps: int) -> bool:
    interval = in_steps(every, steps)
    return interval > 0 and done % interval == 0


def _stop_wanted(job: Job, device: torch.device) -> bool:
    """Whether the driver asked to stop. Rank 0 looks, all agree: a rank that left alone would leave the others waiting."""
    wanted = collectives.rank() == 0 and (job.run_dir / STOP).exists()
    if collectives.world_size() == 1:
        return wanted
    return collectives.all_sum(torch.tensor(float(wanted), device=device)).item() > 0


def _with_crop_sheet(stream: Iterator[Batch], judge: Judge, start: int) -> Iterator[Batch]:
    first = next(stream, None)
    if first is None:
        return iter(())
    if start == 0:
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
