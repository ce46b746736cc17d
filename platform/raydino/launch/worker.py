"""What runs in every Ray Train worker: build, restore, train, and decide what to log, evaluate and save.

The training itself is `raydino.train.steps.training_steps`; this file consumes its reports. Rank 0 records and
saves, all ranks evaluate
together. A worker that starts takes up the newest checkpoint of the run's folder, whoever wrote it: a restart after a crash and a
`--resume auto` are the same thing.
"""

import json
import logging
import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from ray.train.torch import get_device
from torch import Tensor

from raydino import collectives
from raydino.config import ConfigError, in_steps
from raydino.data.fetch import TooManyBadImages
from raydino.data.stream import BadImage, batches
from raydino.evals.features import extract
from raydino.evals.knn import pixels_knn
from raydino.evals.pictures import attention_maps, crop_sheet, patch_pca
from raydino.evals.spectrum import spectrum
from raydino.keyed import key64
from raydino.launch.cluster import ClusterConfig
from raydino.launch.inputs import Inputs, open_inputs
from raydino.recipe import Recipe
from raydino.tracking.meters import Meter, Rate
from raydino.tracking.mlflow_run import MLflowRun
from raydino.tracking.run import (
    COLLAPSED,
    FEATURE_STD,
    PIXELS_TOP1,
    RANKME,
    TEACHER_DISTANCE,
    UNIFORMITY,
    Run,
    Status,
    evaluation_metric,
)
from raydino.tracking.spool import Spool
from raydino.train import checkpoint as checkpoints
from raydino.train.health import COLLAPSE_ADVICE, CollapseAlarm, teacher_distance
from raydino.train.optim import build_optimizer
from raydino.train.parallel import native_bf16, replicate
from raydino.train.steps import Loop, NonFiniteError, StepReport, training_steps
from raydino.views import Batch

PICTURE_IMAGES = 6
STOP, FAILURE, QUARANTINE = "STOP", "failure.json", "quarantine.jsonl"
"""Files in the run's folder: a wish to stop, a failure that a restart cannot mend, the images that could not be decoded."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """What the driver hands to every worker."""

    recipe: Recipe
    cluster: ClusterConfig
    run_dir: Path
    """Absolute, on storage that all workers share."""
    data_path: str
    data_digest: str
    tracking_uri: str
    mlflow_run_id: str | None
    """None where the tracker could not be reached at the start: the record is then the spool alone."""


def train_worker(job: Job) -> None:
    """Train `job` on this worker, from the newest checkpoint on.

    Raises:
        ConfigError, NonFiniteError, TooManyBadImages: failures that a restart would meet again; they are written to failure.json
            too, so that the driver stops at once.
    """
    try:
        _train(job)
    except (ConfigError, NonFiniteError, TooManyBadImages, checkpoints.CheckpointError) as error:
        failure = {"error": type(error).__name__, "message": str(error)}
        (job.run_dir / FAILURE).write_text(json.dumps(failure))
        raise


def _train(job: Job) -> None:
    recipe, rank = job.recipe, collectives.rank()
    inputs = open_inputs(recipe, job.data_path)
    loop = build_loop(recipe, job.cluster, get_device())
    start = _restore(job, loop)
    record = _Record(job, rank)
    judge = _Judge(job, inputs, loop, record)
    stream = batches(
        inputs.collection,
        inputs.plan,
        recipe.method.views(recipe.backbone.patch_size),
        seed=recipe.seed,
        rank=rank,
        world=collectives.world_size(),
        start_step=start,
        steps=recipe.steps - start,
        max_bad=recipe.data.max_bad,
        on_bad=record.quarantine,
        decode_in=job.cluster.decode_in,
        threads=_decode_threads(job.cluster),
        prefetch=max(1, job.cluster.prefetch),
    )
    with closing(stream):
        if start == 0:
            with record.rate.paused():
                judge.evaluate(0)
        done = start
        for report in training_steps(loop, _with_crop_sheet(stream, judge, start)):
            done = report.step + 1
            last, stop = done == recipe.steps, _stop_wanted(job, loop.device)
            record.step(report, now=last or stop or done % recipe.cadence.log == 0)
            with record.rate.paused():
                if last or _due(done, recipe.cadence.evaluate, recipe.steps):
                    judge.evaluate(done)
                if last or stop or _due(done, recipe.cadence.checkpoint, recipe.steps):
                    _save(job, loop, done)
            if stop:
                break
    record.close("FINISHED" if done == recipe.steps else "KILLED")


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
        accumulate=cluster.accumulate,
    )


def _restore(job: Job, loop: Loop) -> int:
    """Load the newest checkpoint, if there is one; returns the step to go on with. Raises ConfigError if it is of other data."""
    folder = job.run_dir / "checkpoints"
    if collectives.rank() == 0:
        checkpoints.sweep(folder)
    saved = checkpoints.load_newest(folder, device=loop.device)
    if saved is None:
        return 0
    for name, now in _identity(job).items():
        if saved.meta.get(name) != now:
            raise ConfigError(
                f"{name}: the checkpoint at step {saved.step} was made with {saved.meta.get(name)}, this run has {now}; "
                "restore the data it was made with, or start a run under another name."
            )
    loop.method.load_state_dict(saved.model)
    checkpoints.load_optimizer(loop.optimizer, saved.optimizer)
    return saved.step


def _save(job: Job, loop: Loop, done: int) -> None:
    if collectives.rank() != 0:
        return
    state = checkpoints.Checkpoint(
        step=done,
        model=loop.method.state_dict(),
        optimizer=checkpoints.optimizer_tensors(loop.optimizer),
        meta={
            **_identity(job),
            "mlflow_run_id": job.mlflow_run_id,
            "torch": torch.__version__,
            "world": collectives.world_size(),
        },
    )
    try:
        checkpoints.save(job.run_dir / "checkpoints", state, keep=job.recipe.cadence.keep)
    except OSError as error:  # a full disk is no reason to stop training; the older checkpoints are still there
        log.warning("step %d: no checkpoint was saved (%s); the one before it stays", done, error)


def _identity(job: Job) -> dict[str, Any]:
    """What a checkpoint must share with the run that takes it up."""
    return {"run": job.recipe.id, "data": job.data_digest}


def _due(done: int, every: int | float, steps: int) -> bool:
    interval = in_steps(every, steps)
    return interval > 0 and done % interval == 0


def _stop_wanted(job: Job, device: torch.device) -> bool:
    """Whether the driver asked to stop. Rank 0 looks, all agree: a rank that left alone would leave the others waiting."""
    wanted = collectives.rank() == 0 and (job.run_dir / STOP).exists()
    if collectives.world_size() == 1:
        return wanted
    return collectives.all_sum(torch.tensor(float(wanted), device=device)).item() > 0


def _with_crop_sheet(stream: Iterator[Batch], judge: "_Judge", start: int) -> Iterator[Batch]:
    first = next(stream, None)
    if first is None:
        return iter(())
    if start == 0:
        judge.picture_of(first)
    return chain([first], stream)


class _Record:
    """Where this rank's figures go: rank 0 to the run, other ranks nowhere; bad images to a table of each rank's own."""

    def __init__(self, job: Job, rank: int) -> None:
        self._job, self._rank = job, rank
        self._meter, self.rate = Meter(), Rate()
        self._alarm, self._alarmed = CollapseAlarm(warmup=in_steps(job.recipe.optim.warmup, job.recipe.steps)), False
        self.run = self._open() if rank == 0 else None

    def _open(self) -> Run:
        """The record on disk, and in MLflow where it was reached at the start."""
        spool = Spool(self._job.run_dir)
        if self._job.mlflow_run_id is None:
            return spool
        return MLflowRun(spool, tracking_uri=self._job.tracking_uri, run_id=self._job.mlflow_run_id)

    def step(self, report: StepReport, *, now: bool) -> None:
        """Count a step; write the means since the last line if it is time (`now`)."""
        self._meter.add(report.metrics)
        self._alarm.add(report.metrics, report.step)
        self.rate.step(images=report.images, waited=report.waited)
        if now:
            verdict = self._alarm.verdict()
            self.log({**self._meter.take(), **verdict, **self.rate.take()}, report.step + 1)
            if verdict.get(COLLAPSED) and not self._alarmed and self.run is not None:
                self._alarmed = True  # said once; the metric goes on
                log.warning("step %d: the run has collapsed. %s", report.step + 1, COLLAPSE_ADVICE)

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Write metrics of `step` finished steps."""
        if self.run is not None:
            self.run.log(metrics, step)

    def quarantine(self, bad: BadImage) -> None:
        """Add a line to this rank's quarantine table; a resumed run may name an image again."""
        line = {**asdict(bad), "id": bad.id.hex(), "rank": self._rank}
        with (self._job.run_dir / QUARANTINE).open("a") as table:
            table.write(json.dumps(line) + "\n")

    def close(self, status: Status) -> None:
        """End the record."""
        if self.run is not None:
            if (self._job.run_dir / QUARANTINE).exists():
                self.run.artifact(self._job.run_dir / QUARANTINE)
            self.run.close(status)


class _Judge:
    """Evaluations, label-free health and pictures of the teacher."""

    def __init__(self, job: Job, inputs: Inputs, loop: Loop, record: _Record) -> None:
        self._job, self._inputs, self._loop, self._record = job, inputs, loop, record
        self._evaluations = {name: config.build() for name, config in job.recipe.evals.items()}

    def evaluate(self, done: int) -> None:
        """Judge the teacher after `done` steps and record it. All ranks call it together."""
        encoder, inputs = self._loop.method.encoder(), self._inputs
        metrics: dict[str, float] = {}
        if inputs.labelled is not None:
            for name, evaluation in self._evaluations.items():
                found = evaluation.run(encoder, inputs.labelled)
                metrics |= {evaluation_metric(name, key): value for key, value in found.items()}
            if done == 0 and collectives.world_size() == 1:
                metrics[PIXELS_TOP1] = pixels_knn(inputs.labelled)["top1"]
        features, _ = extract(encoder, inputs.probe, self._job.recipe.data.normalisation, device=self._loop.device)
        found = spectrum(features)
        metrics |= {RANKME: found["rankme"], FEATURE_STD: found["feature_std"], UNIFORMITY: found["uniformity"]}
        method = self._loop.method
        metrics[TEACHER_DISTANCE] = float(teacher_distance(student=method.student, teacher=method.teacher))
        self._record.log(metrics, done)
        if self._job.recipe.cadence.pictures and self._record.run is not None:
            self._draw(self._record.run, done)

    def picture_of(self, batch: Batch) -> None:
        """The crop sheet: what the method sees of the first images."""
        if self._job.recipe.cadence.pictures and self._record.run is not None:
            sheet = crop_sheet(batch.crops, batch.masks, self._job.recipe.backbone.patch_size)
            self._record.run.picture("crops", sheet, 0)

    def _draw(self, run: Run, done: int) -> None:
        encoder, normalise, images = self._loop.method.encoder(), self._job.recipe.data.normalisation, self._shown()
        if len(images):
            run.picture("patch_pca", patch_pca(encoder, images, normalise), done)
            run.picture("attention", attention_maps(encoder, images, normalise), done)

    def _shown(self) -> Tensor:
        few = self._inputs.probe.at_most(PICTURE_IMAGES, seed=self._job.recipe.seed)
        return torch.cat([pixels for pixels, _ in few.chunks(torch.arange(len(few)).numpy(), batch=PICTURE_IMAGES)])


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _workers_here() -> int:
    """Workers on this node, as Ray Train tells them; all of them where it does not."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", collectives.world_size()))


def _decode_threads(cluster: ClusterConfig) -> int:
    return cluster.decode_threads(
        cores=_cores(), workers_here=_workers_here(), use_gpu=cluster.use_gpu(torch.cuda.device_count())
    )
