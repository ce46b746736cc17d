"""What a worker leaves of a run: its figures, the images it could not decode, and what the teacher is judged to be worth."""

import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import ray.train
import torch
from torch import Tensor

from raydino import collectives
from raydino.config import in_steps
from raydino.data.colour import shown
from raydino.data.fetch import BadImage
from raydino.evals.features import extract, shared_features
from raydino.evals.knn import pixels_knn
from raydino.evals.pictures import attention_maps, crop_sheet, patch_pca
from raydino.evals.spectrum import spectrum
from raydino.launch.inputs import Inputs
from raydino.launch.job import QUARANTINE, SKIPPED, Job
from raydino.nn.backbone import Backbone
from raydino.tracking.meters import Meter, Rate
from raydino.tracking.mlflow_run import MLflowRun
from raydino.tracking.opening import Opening
from raydino.tracking.run import (
    COLLAPSED,
    DATA_IMAGES_SEEN,
    EVAL_FEATURE_STD,
    LOSS_SPIKES,
    LOSS_SPIKES_TOTAL,
    NOT_FINITE,
    NOT_FINITE_TOTAL,
    PIXELS_TOP1,
    RANKME,
    RUN_PROGRESS_AT,
    RUN_STEP,
    SLOWEST_RANK,
    SLOWEST_RATIO,
    TEACHER_DISTANCE,
    UNIFORMITY,
    Run,
    Status,
    evaluation_metric,
)
from raydino.tracking.spool import Spool
from raydino.train.guard import Skip
from raydino.train.health import COLLAPSE_ADVICE, CollapseAlarm, teacher_distance
from raydino.train.sharding import whole_encoder
from raydino.train.steps import Loop, StepReport
from raydino.views import Batch

log = logging.getLogger(__name__)

PICTURE_IMAGES = 6


def quarantine(run_dir: Path, rank: int, bad: BadImage) -> None:
    """Add a line to the run's quarantine table; a resumed run may name an image again."""
    line = {**asdict(bad), "id": bad.id.hex(), "rank": rank}
    with (run_dir / QUARANTINE).open("a") as table:
        table.write(json.dumps(line) + "\n")


class Record:
    """Where this rank's figures go: rank 0 to the run, other ranks nowhere; bad images and skipped steps to tables of each rank's
    own."""

    def __init__(
        self,
        job: Job,
        rank: int,
        device: torch.device,
        starved: Callable[[], float] = lambda: 0.0,
        show: Callable[[Mapping[str, float]], None] = lambda _: None,
    ) -> None:
        """`show` is told what a person who watches the run should see now; on every rank, though one alone may pass it on."""
        self._job, self._rank, self._device, self._show = job, rank, device, show
        self._meter, self.rate = Meter(), Rate(starved=starved)
        recipe = job.recipe
        views = recipe.method.global_crops.count * job.cluster.micro_batch(recipe.global_batch)
        self._alarm = CollapseAlarm(warmup=in_steps(recipe.optim.warmup, recipe.steps), views=views)
        self._alarmed = False
        self._noted: dict[str, float] = {}
        self._own: list[float] = []
        self._counts, self._totals = {NOT_FINITE: 0, LOSS_SPIKES: 0}, {NOT_FINITE_TOTAL: 0.0, LOSS_SPIKES_TOTAL: 0.0}
        self.run = self._open() if rank == 0 else None
        self._show(self._totals)  # 0 is seen before anything happens: what grows is told by a difference

    def _open(self) -> Run:
        """The record on disk and in MLflow, which takes it up whenever it answers first."""
        spool = Spool(self._job.run_dir)
        if self._job.mlflow_run_id is None and Opening.load(self._job.run_dir) is None:
            return spool  # nobody asked for a tracker
        return MLflowRun(spool, tracking_uri=self._job.tracking_uri, run_id=self._job.mlflow_run_id)

    def step(self, report: StepReport, *, now: bool) -> None:
        """Count a step; write the means since the last line if it is time (`now`). All ranks call it together."""
        if report.skipped is None:
            self._meter.add(report.metrics)
            self._alarm.add(report.metrics, report.step)
        else:
            self._skip(report, report.skipped)
        self._counts[LOSS_SPIKES] += report.spike
        self._live(report)
        self._own.append(report.own)
        self.rate.step(images=report.images, waited=report.waited)
        if now:
            self._line(report.step + 1)

    def _live(self, report: StepReport) -> None:
        """Show where the run is: for a line of the record it may be minutes too early."""
        done, skip = report.step + 1, report.skipped
        self._totals[NOT_FINITE_TOTAL] += skip is not None and skip.reason == "not finite"
        self._totals[LOSS_SPIKES_TOTAL] += report.spike
        seen = done * self._job.recipe.global_batch
        self._show({RUN_STEP: done, RUN_PROGRESS_AT: time.time(), DATA_IMAGES_SEEN: seen, **self._totals})

    def _line(self, done: int) -> None:
        verdict, counts = self._alarm.verdict(), {name: float(count) for name, count in self._counts.items()}
        self.log(
            {**self._meter.take(), **verdict, **counts, **self._slowest(), **self._noted, **self.rate.take()}, done
        )
        self._noted = {}
        self._counts = dict.fromkeys(self._counts, 0)
        if verdict.get(COLLAPSED) and not self._alarmed and self.run is not None:
            self._alarmed = True  # said once; the metric goes on
            log.warning("step %d: the run has collapsed. %s", done, COLLAPSE_ADVICE)
        if counts[LOSS_SPIKES] and self.run is not None:
            log.warning("step %d: %d loss spikes since the last line (guards.spike)", done, counts[LOSS_SPIKES])

    def _slowest(self) -> dict[str, float]:
        """Which rank the others wait for. All ranks call it together."""
        seconds, self._own = sum(self._own) / len(self._own), []
        if collectives.world_size() == 1:
            return {}
        each = torch.zeros(collectives.world_size(), dtype=torch.float64)
        each[self._rank] = seconds
        each = collectives.all_sum(each.to(self._device)).cpu()
        slowest = int(each.argmax())
        others = torch.cat([each[:slowest], each[slowest + 1 :]])
        return {SLOWEST_RANK: float(slowest), SLOWEST_RATIO: float(each[slowest] / others.median().clamp(min=1e-9))}

    def _skip(self, report: StepReport, skip: Skip) -> None:
        """Count a skipped step, and name this rank's images if they may be the cause."""
        self._counts[NOT_FINITE] += skip.reason == "not finite"
        if skip.suspect:
            line = {
                **asdict(skip),
                "step": report.step,
                "rank": self._rank,
                "ids": [sample.hex() for sample in skip.ids],
            }
            line |= {name: str(line[name]) for name in ("loss", "grad_norm")}  # JSON has no NaN
            with (self._job.run_dir / SKIPPED).open("a") as table:
                table.write(json.dumps(line) + "\n")

    def note(self, metrics: Mapping[str, float]) -> None:
        """Put metrics on the next line."""
        self._noted |= metrics

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Write metrics of `step` finished steps."""
        self._show({**metrics, RUN_PROGRESS_AT: time.time()})
        if self.run is not None:
            self.run.log(metrics, step)

    def close(self, status: Status) -> None:
        """End the record."""
        if self.run is not None:
            for name in (QUARANTINE, SKIPPED):
                if (self._job.run_dir / name).exists():
                    self.run.artifact(self._job.run_dir / name)
            self.run.close(status)


class Judge:
    """Evaluations, label-free health and pictures of the teacher."""

    def __init__(self, job: Job, inputs: Inputs, loop: Loop, record: Record) -> None:
        self._job, self._inputs, self._loop, self._record = job, inputs, loop, record
        self.device = loop.device
        self._evaluations = {name: config.build() for name, config in job.recipe.evals.items()}

    def evaluate(self, done: int) -> None:
        """Judge the teacher after `done` steps and record it. All ranks call it together."""
        recipe, inputs = self._job.recipe, self._inputs
        encoder = whole_encoder(
            self._loop.method.encoder(), lambda: recipe.method.build(recipe.backbone, steps=recipe.steps).encoder()
        )
        metrics: dict[str, float] = {}
        with shared_features(blocks=max((e.blocks for e in self._evaluations.values()), default=1)):
            if inputs.labelled is not None:
                for name, evaluation in self._evaluations.items():
                    found = evaluation.run(encoder, inputs.labelled)
                    metrics |= {evaluation_metric(name, key): value for key, value in found.items()}
                if done == 0 and collectives.world_size() == 1:
                    metrics[PIXELS_TOP1] = pixels_knn(inputs.labelled, device=self._loop.device)["top1"]
            features, _ = extract(encoder, inputs.probe, recipe.data.normalisation, device=self._loop.device)
        found = spectrum(features)
        metrics |= {RANKME: found["rankme"], EVAL_FEATURE_STD: found["feature_std"], UNIFORMITY: found["uniformity"]}
        method = self._loop.method
        metrics[TEACHER_DISTANCE] = float(teacher_distance(student=method.student, teacher=method.teacher))
        self._record.log(metrics, done)
        if not self._job.alone:
            _report(metrics, done)
        if self._job.recipe.cadence.pictures and self._record.run is not None:
            self._draw(encoder, self._record.run, done)

    def picture_of(self, batch: Batch) -> None:
        """The crop sheet: what the method sees of the first images."""
        if self._job.recipe.cadence.pictures and self._record.run is not None:
            crops = shown(batch, PICTURE_IMAGES)
            sheet = crop_sheet(crops, batch.masks, self._job.recipe.backbone.patch_size)
            self._record.run.picture("crops", sheet, 0)

    def _draw(self, encoder: Backbone, run: Run, done: int) -> None:
        normalise, images = self._job.recipe.data.normalisation, self._shown()
        if len(images):
            run.picture("patch_pca", patch_pca(encoder, images, normalise), done)
            if attention := attention_maps(encoder, images, normalise):
                run.picture("attention", attention, done)

    def _shown(self) -> Tensor:
        few = self._inputs.probe.at_most(PICTURE_IMAGES, seed=self._job.recipe.seed)
        return torch.cat([pixels for pixels, _ in few.chunks(torch.arange(len(few)).numpy(), batch=PICTURE_IMAGES)])


def _report(metrics: dict[str, float], done: int) -> None:
    """Tell Ray Train, and through it Tune, how the run stands. Every rank calls it after every evaluation.

    It is a barrier, and a call waits until the one before it has been collected, up to 2 s: so never once per step. Nothing is
    uploaded: the run's checkpoints are its own, and Ray keeps nothing that a restart would need.
    """
    ray.train.report({**metrics, "step": done})
