"""Trials: complete runs of raydino, several at a time on one Ray, stopped early where a scheduler says so.

This is what sweeps, populations and ablations share. A trial has a run folder of its own under FOLDER/trials with recipe.yaml,
metrics.jsonl, checkpoints and summary.json; run again, a trial that is over is not run again, and one that was interrupted goes
on from its checkpoint.
"""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from raydino.config import ConfigError
from raydino.launch.checks.machine import this_machine
from raydino.launch.cluster import ClusterConfig
from raydino.launch.engine.connect import start_ray
from raydino.launch.engine.trainer import reading_cpus
from raydino.launch.trials.room import DRIVER_CPUS, of_trial, room
from raydino.launch.trials.trial import Trial, TrialResult
from raydino.tracking.run import KNN_TOP1

if TYPE_CHECKING:
    from raydino.launch.trials.board import Board, Source
    from raydino.launch.trials.halving import Halving

log = logging.getLogger(__name__)
LOOK = 0.5  # s between two looks at what has happened


def run_trials(
    trials: "Sequence[Trial] | Source",
    *,
    cluster: ClusterConfig,
    folder: Path,
    scheduler: "Halving | None" = None,
    objective: str = KNN_TOP1,
    parent: str | None = None,
    watch: "Callable[[Board], bool]" = lambda _: True,
) -> list[TrialResult]:
    """Run trials on the Ray that is running, or on one started for them; returns their results in the order asked for.

    Args:
        trials: what to run, in this order, as many at a time as the cluster has room for; or who makes them one by one.
        cluster: where. `workers` are those of one trial; `storage` holds built-in images and MLflow's database.
        folder: of the sweep, on storage that all nodes share; the runs are in its sub-folder `trials`.
        scheduler: whether a trial goes on after an evaluation; None lets all run to their last step.
        objective: metric to maximise, as its name is in the record.
        parent: id of the MLflow run that the trials' runs are children of.
        watch: called twice a second; where it returns False, those that run save and leave, and no more are begun.

    Raises:
        ConfigError: two trials share a name, or the cluster has no room for a single trial. A trial that cannot be run is a
            result that failed, not an error.
    """
    from raydino.launch.trials.board import Board, Listed, remember
    from raydino.launch.trials.halving import Judge
    from raydino.launch.trials.prepare import Prepare, settle_trial
    from raydino.launch.trials.tuning import Tuning
    from raydino.tracking.opening import TrackerUnavailable
    from raydino.tracking.tree import make_ready

    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    source = Listed(trials) if isinstance(trials, Sequence) else trials
    judge = Judge(scheduler, objective=objective) if scheduler else None
    if judge is not None:
        remember(judge, source.known(), folder, objective=objective)
    try:
        make_ready(cluster.tracker(), cluster.experiment)
    except TrackerUnavailable as error:
        log.warning("%s", error)
    with trial_ray(cluster):
        here, at_once = _what_a_trial_gets(cluster)
        board = Board(
            source,
            folder,
            prepare=Prepare(here, parent=parent, judged=judge is not None),
            ended=lambda result: settle_trial(result, here, parent=parent),
            judge=judge,
        )
        tuning = Tuning(
            board,
            objective=objective,
            at_once=at_once,
            resources=_resources(here),
            max_failures=cluster.max_failures,
            folder=folder,
        )
        while not tuning.ended(timeout=LOOK):
            if not watch(board):
                board.stop()
        watch(board)
        tuning.check()
        if board.error is not None:
            raise board.error
    return [board.results[name] for name in board.order if name in board.results]


def trial_ray(cluster: ClusterConfig) -> AbstractContextManager[None]:
    """A Ray for trials: with its dashboard, without which Ray Train's groups of workers outlive a trial that was ended."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    machine = this_machine()
    store = cluster.store_bytes(gpus=machine.gpus, memory=machine.memory, shared=machine.shared_memory)
    # One CPU beyond the cores, which only Ray counts: the trials take all of them, and reading needs one.
    return start_ray(cluster, store=store, cpus=cores + 1, dashboard=True)


def trials_at_once(cluster: ClusterConfig, nodes: Sequence[Mapping[str, float]]) -> int:
    """How many of `cluster`'s trials run at once on `nodes`. Raises ConfigError where there is no room for one."""
    if cluster.is_elastic:
        raise ConfigError(
            f"cluster.min_workers = {cluster.min_workers}: trials share the cluster, and a number of workers that follows "
            "it is for a run that has it alone; set it to 0."
        )
    # On a Ray of our own, the CPU that only Ray counts is for reading, and trials have the cores.
    return room(cluster, nodes, reading=1.0 if cluster.is_local else reading_cpus(cluster))


def _what_a_trial_gets(cluster: ClusterConfig) -> tuple[ClusterConfig, int]:
    """The cluster as one trial has it, and how many there are at once."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    at_once = trials_at_once(cluster, nodes)
    total = ray.cluster_resources()
    use_gpu = cluster.use_gpu(int(total.get("GPU", 0)))
    decode_in = cluster.decodes_in(
        gpus=int(total.get("GPU", 0)), cpus=total.get("CPU", 0.0) / at_once, store=0, store_needed=0
    )
    return of_trial(cluster.override({"gpu": use_gpu, "decode_in": decode_in})), at_once


def _resources(cluster: ClusterConfig) -> dict[str, float]:
    """What Tune reserves for a trial: what its worker takes, or next to nothing for the driver of several."""
    if cluster.workers > 1:
        return {"CPU": DRIVER_CPUS}
    return {"CPU": cluster.cpus_per_worker, **({"GPU": cluster.gpus_per_worker} if cluster.gpu is True else {})}
