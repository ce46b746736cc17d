"""Trials: complete runs of raydino, several at a time on one Ray, stopped early where a scheduler says so.

This is what sweeps, populations and ablations share. A trial has a run folder of its own under FOLDER/trials with recipe.yaml,
metrics.jsonl, checkpoints and summary.json; run again, a finished trial is not run again, and one that was interrupted goes on
from its checkpoint.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from raydino.launch.cluster import ClusterConfig
from raydino.recipe import Recipe
from raydino.tracking.run import KNN_TOP1

Status = Literal["finished", "stopped", "failed", "interrupted"]
"""How a trial ended: at its last step, by the scheduler's verdict, by an error, or by a wish to stop the whole."""


@dataclass(frozen=True)
class Trial:
    """One run of a sweep."""

    name: str
    """Unique in its sweep; the name of its run folder."""
    recipe: Recipe
    """The whole experiment, seed included."""
    group: str
    """Trials of one group are repeats of each other, alike in all but the seed."""


@dataclass(frozen=True)
class Evaluation:
    """What one evaluation of a trial found."""

    step: int
    """Finished steps."""
    images: int
    """Images seen until then."""
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class TrialResult:
    """What a trial came to."""

    trial: Trial
    status: Status
    history: tuple[Evaluation, ...]
    """All evaluations by step, that of the untrained teacher first."""
    metrics: Mapping[str, float]
    """The last value of every metric in its record: losses, evaluations, `health/collapsed`."""
    run_dir: Path
    seconds: float
    """Time that it held its resources, over all attempts."""
    images_seen: int
    reason: str = ""
    """Why it did not reach its last step; empty where it did."""


def run_trials(
    trials: Sequence[Trial],
    *,
    cluster: ClusterConfig,
    folder: Path,
    scheduler: "Halving | None" = None,
    objective: str = KNN_TOP1,
    gpus: float = 1.0,
    parent: str | None = None,
) -> list[TrialResult]:
    """Run trials on the Ray that is running, or on one started for them; returns their results in the order of `trials`.

    Args:
        trials: what to run, in this order, as many at a time as the cluster has room for.
        cluster: where. `workers` are those of one trial; `storage` holds built-in images and MLflow's database.
        folder: of the sweep; the runs are in its sub-folder `trials`.
        scheduler: whom to ask after every evaluation whether a trial goes on; None lets all run to their last step.
        objective: metric to maximise, as its name is in the record.
        gpus: GPUs of a worker where workers take any; below 1, several trials share one.
        parent: id of the MLflow run that the trials' runs are children of.

    Raises:
        ConfigError: two trials share a name, a recipe cannot be run, or the cluster has no room for a single trial.
    """
    raise NotImplementedError
