"""A trial's folder before it runs, its MLflow run after it has ended, and the run above those of all trials."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from raydino.launch.cluster import ClusterConfig
from raydino.launch.inputs import open_against, open_inputs, resolve
from raydino.launch.job import Job
from raydino.launch.prepare import code_tags, prepare
from raydino.launch.report.leave import leave_page
from raydino.launch.resume import RECIPE_FILE, changes_since
from raydino.launch.summary import summarise
from raydino.launch.trials.outcome import end, ending
from raydino.launch.trials.trial import Trial, TrialResult
from raydino.recipe import Recipe
from raydino.tracking.mlflow_run import create_run
from raydino.tracking.opening import Opening, TrackerUnavailable
from raydino.tracking.outbox import recorded_run
from raydino.tracking.run import Status as MLflowStatus
from raydino.tracking.spool import Spool
from raydino.tracking.tree import PARENT_TAG, settle

ENDED: dict[str, MLflowStatus] = {
    "finished": "FINISHED",
    "stopped": "KILLED",
    "paused": "KILLED",
    "interrupted": "KILLED",
    "failed": "FAILED",
}
"""How MLflow calls it."""
log = logging.getLogger(__name__)


class Prepare:
    """Fills the folders of a sweep's trials, on `cluster` as one trial has it."""

    def __init__(self, cluster: ClusterConfig, *, parent: str | None, judged: bool) -> None:
        self._cluster, self._parent, self._judged = cluster, parent, judged

    def __call__(self, trial: Trial, run_dir: Path) -> Job:
        """The job of a trial whose folder is `run_dir`. Raises ConfigError or ShardError where it cannot be run."""
        recipe = trial.recipe
        path = resolve(recipe, self._cluster.folder)
        inputs = open_inputs(recipe, path)
        open_against(recipe)
        changes = changes_since(run_dir, recipe) if (run_dir / RECIPE_FILE).exists() else ()
        tags = {"group": trial.group, **({PARENT_TAG: self._parent} if self._parent else {})}
        job = prepare(*(recipe, self._cluster, run_dir, path, inputs), changes=changes, run_name=trial.name, tags=tags)
        return replace(
            job,
            alone=self._cluster.workers == 1,
            judged=self._judged,
            until=trial.until,
            ancestors=trial.ancestors,
        )


def settle_trial(result: TrialResult, cluster: ClusterConfig, *, parent: str | None) -> bool:
    """Write a trial's summary and end its MLflow run with how and why it ended; whether the tracker took it.

    Whatever an outage or a kill kept from it is sent now. False is no loss: the record on disk is complete.
    """
    run_dir, recipe, found = result.run_dir, result.trial.recipe, ending(result.run_dir)
    if found is None or not (run_dir / RECIPE_FILE).exists():  # it could not even be prepared
        return True
    summarise(run_dir, recipe, mlflow_run_id=recorded_run(run_dir))
    below = {PARENT_TAG: parent} if parent else {}
    try:
        settle(
            run_dir,
            tracking_uri=cluster.tracker(),
            status=ENDED[result.status],
            files=leave_page(run_dir, over=""),
            tags={**below, "ending": result.status, "ending_reason": result.reason or "reached its last step"},
        )
    except TrackerUnavailable as error:
        log.warning("%s: %s", run_dir.name, error)
        return False
    end(run_dir, replace(found, recorded=parent or ""))
    return True


def open_parent(folder: Path, cluster: ClusterConfig, *, params: Mapping[str, object], recipe: Recipe) -> str | None:
    """The MLflow run above a folder's trials, made or reopened; None where the tracker does not answer."""
    opening = Opening.of(
        experiment=cluster.experiment,
        run_name=folder.name,
        params=params,
        tags=code_tags(),
        dataset=None,
        recipe_yaml=recipe.to_yaml(),
        cluster_yaml=cluster.to_yaml(),
        run_dir=folder,
    )
    try:
        return create_run(opening, tracking_uri=cluster.tracker(), run_id=recorded_run(folder))
    except TrackerUnavailable as error:
        log.warning("%s", error)
        return None


def close_parent(
    folder: Path,
    cluster: ClusterConfig,
    results: Sequence[TrialResult],
    *,
    metrics: Mapping[str, float],
    tags: Mapping[str, str],
    files: Sequence[Path],
    status: MLflowStatus,
) -> bool:
    """End the run of `open_parent`, and record below it what an outage kept from its trials; whether the tracker took it all."""
    spool = Spool(folder)
    spool.log(metrics, len(results))
    spool.close(status)
    whole = True
    try:
        parent = settle(folder, tracking_uri=cluster.tracker(), status=status, tags=tags, files=files)
    except TrackerUnavailable as error:  # one request of many may have come too late, and the trials' may come in time
        log.warning("%s", error)
        parent, whole = recorded_run(folder), False
        if parent is None:
            return False
    late = [each for each in results if (found := ending(each.run_dir)) is not None and found.recorded != parent]
    taken = [settle_trial(each, cluster, parent=parent) for each in late]
    return whole and all(taken)
