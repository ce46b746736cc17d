"""A trial's folder before it runs, and its MLflow run after it has ended."""

import logging
from dataclasses import replace
from pathlib import Path

from raydino.launch.cluster import ClusterConfig
from raydino.launch.inputs import open_against, open_inputs, resolve
from raydino.launch.job import Job
from raydino.launch.prepare import prepare
from raydino.launch.resume import RECIPE_FILE, changes_since
from raydino.launch.summary import summarise
from raydino.launch.sweep.trial import Trial, TrialResult
from raydino.tracking.opening import TrackerUnavailable
from raydino.tracking.outbox import recorded_run
from raydino.tracking.run import Status as MLflowStatus
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


def settle_trial(result: TrialResult, cluster: ClusterConfig) -> bool:
    """Write a trial's summary and end its MLflow run with how and why it ended; whether the tracker took it.

    Whatever an outage or a kill kept from it is sent now. False is no loss: the record on disk is complete.
    """
    run_dir, recipe = result.run_dir, result.trial.recipe
    if not (run_dir / RECIPE_FILE).exists():  # it could not even be prepared
        return True
    summarise(run_dir, recipe, mlflow_run_id=recorded_run(run_dir))
    try:
        settle(
            run_dir,
            tracking_uri=cluster.tracker(),
            status=ENDED[result.status],
            tags={"ending": result.status, "ending_reason": result.reason or "reached its last step"},
        )
    except TrackerUnavailable as error:
        log.warning("%s: %s", run_dir.name, error)
        return False
    return True
