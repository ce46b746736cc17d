"""Real trials on a real Ray: stopped at their rung, not run twice, nothing left behind."""

import contextlib
import json
import time
from pathlib import Path

import psutil
import pytest

from raydino.launch.cluster import ClusterConfig
from raydino.launch.trials.halving import Halving
from raydino.launch.trials.outcome import ATTEMPTS
from raydino.launch.trials.prepare import close_parent, open_parent
from raydino.launch.trials.run import run_trials
from raydino.launch.trials.trial import Trial, TrialResult
from raydino.methods.config import DINOv2Config
from raydino.recipe import Recipe
from raydino.tracking.run import LOSS_TOTAL
from raydino.tracking.spool import METRICS_FILE, read_metrics
from raydino.train.checkpoint import committed

pytestmark = [pytest.mark.ray, pytest.mark.slow]
DISTANCE = "health/teacher_distance"
"""An objective that is certain: the higher the learning rate, the further the student is from its teacher."""


@pytest.fixture
def falling(small: Recipe) -> list[Trial]:
    """Four trials, each worse than the one before."""
    rates = (1e-2, 1e-3, 3e-4, 1e-4)
    return [
        Trial(f"{number}", small.override({"optim": {"lr": rate, "warmup": 0}}), f"{number}")
        for number, rate in enumerate(rates)
    ]


def _run(trials: list[Trial], cluster: ClusterConfig, folder: Path, **more) -> list[TrialResult]:
    return run_trials(trials, cluster=cluster, folder=folder, objective=DISTANCE, **more)


def _begins(result: TrialResult) -> int:
    return sum("begin" in line for line in (result.run_dir / ATTEMPTS).read_text().splitlines())


def _losses(run_dir: Path) -> dict[int, float]:
    rows = read_metrics(run_dir / METRICS_FILE)
    return {step: row[LOSS_TOTAL] for step, row in rows.items() if LOSS_TOTAL in row}


def test_trials__the_worse_stop_at_their_rung_and_a_second_call_runs_nothing(
    trial_cluster: ClusterConfig, falling: list[Trial], tmp_path: Path, small: Recipe
):
    import ray
    from mlflow import MlflowClient
    from ray.util import placement_group_table
    from ray.util.state import list_actors

    parent = open_parent(tmp_path, trial_cluster, params={"a": 1}, recipe=small)
    halving = Halving(grace=64, most=192, reduction=3.0)
    results = _run(falling, trial_cluster, tmp_path, scheduler=halving, parent=parent)

    assert [result.trial for result in results] == falling
    assert [result.status for result in results[2:]] == ["stopped", "stopped"]
    assert results[0].status == "finished"
    assert [result.images_seen for result in results if result.status == "stopped"][-2:] == [64, 64]
    assert set(_losses(results[3].run_dir)) == {1, 2, 3, 4}  # not a step beyond the rung
    assert committed(results[3].run_dir / "checkpoints")[0].name == "step-00000004"
    assert "ASHA at rung 1 of 1: health/teacher_distance" in results[3].reason
    assert [each.step for each in results[0].history] == [0, 4, 8, 12]

    states = {state["state"] for state in placement_group_table().values()}
    assert states == {"REMOVED"}
    here = ray.get_runtime_context().gcs_address  # there may be another Ray on the machine
    alive = {actor.class_name for actor in list_actors(here, filters=[("state", "=", "ALIVE")])}
    assert not [name for name in alive if "Trainable" in name], alive

    client = MlflowClient(trial_cluster.tracker())
    experiment = client.get_experiment_by_name("raydino")
    assert experiment is not None
    children = {
        run.info.run_name: run
        for run in client.search_runs([experiment.experiment_id], f"tags.`mlflow.parentRunId` = '{parent}'")
    }
    assert {name: run.info.status for name, run in children.items()} == {
        result.trial.name: {"finished": "FINISHED", "stopped": "KILLED"}[result.status] for result in results
    }
    assert children["3"].data.tags["ending_reason"] == results[3].reason
    recorded = [(point.step, point.value) for point in client.get_metric_history(children["0"].info.run_id, LOSS_TOTAL)]
    assert sorted(recorded) == sorted(_losses(results[0].run_dir).items())
    assert close_parent(
        tmp_path, trial_cluster, results, metrics={"sweep/best": 1.0}, tags={}, files=[], status="FINISHED"
    )
    assert parent is not None and client.get_run(parent).info.status == "FINISHED"

    before = [_begins(result) for result in results]
    again = _run(falling, trial_cluster, tmp_path, scheduler=halving, parent=parent)
    assert [_begins(result) for result in again] == before == [1, 1, 1, 1]
    assert again == results


@pytest.mark.fault
def test_trials__a_killed_actor_is_replaced_and_goes_on_from_its_checkpoint(
    trial_cluster: ClusterConfig, falling: list[Trial], tmp_path: Path
):
    """The whole process of a trial dies; the losses are those of the trial that nothing happens to."""
    cadence = {"log": 1, "evaluate": 40, "checkpoint": 5, "pictures": False}
    recipe = falling[0].recipe.override({"steps": 80, "cadence": cadence})
    (undisturbed,) = _run([Trial("undisturbed", recipe, "0")], trial_cluster, tmp_path)
    killed: list[int] = []

    def strike(board) -> bool:
        if not killed and any(max(_losses(board.run_dir(each)), default=0) >= 10 for each in board.snapshot()):
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):  # Ray's idle processes come and go
                    if "Trainable" in " ".join(process.cmdline()):
                        process.kill()
                        killed.append(process.pid)
        return True

    (result,) = _run([Trial("killed", recipe, "0")], trial_cluster, tmp_path, watch=strike)
    assert killed
    assert result.status == "finished" and result.images_seen == 80 * 16
    assert _begins(result) == 2
    assert _losses(result.run_dir) == _losses(undisturbed.run_dir)


class BuggyConfig(DINOv2Config):
    """A method with a bug."""

    def build(self, backbone, *, steps):
        raise ZeroDivisionError("the new loss divides by zero")


@pytest.mark.fault
def test_trials__a_bug_fails_its_trial_with_the_reason_and_leaves_the_others_alone(
    trial_cluster: ClusterConfig, falling: list[Trial], tmp_path: Path
):
    import sys

    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    recipe = falling[0].recipe
    fields = {name: getattr(recipe.method, name) for name in type(recipe.method).model_fields}
    buggy = recipe.override({"method": BuggyConfig(**fields)})
    results = _run([Trial("buggy", buggy, "buggy"), falling[1]], trial_cluster, tmp_path)
    assert [result.status for result in results] == ["failed", "finished"]
    assert "ZeroDivisionError after step 0, and again after a restart" in results[0].reason
    assert json.loads((results[0].run_dir / "ending.json").read_text())["status"] == "failed"


@pytest.mark.fault
def test_trials__of_several_workers_are_stopped_and_leave_nothing_behind(
    trial_cluster: ClusterConfig, falling: list[Trial], tmp_path: Path
):
    """Drivers of a hundredth of a CPU, workers placed by Ray Train: a pattern that used to wait for ever."""
    from ray.util import placement_group_table

    cluster = trial_cluster.override({"workers": 2, "cpus_per_worker": 0.9})
    results = _run([falling[0], falling[3]], cluster, tmp_path, scheduler=Halving(grace=64, most=192))
    assert [(result.status, result.images_seen) for result in results] == [("finished", 192), ("stopped", 64)]
    deadline = time.monotonic() + 60  # Ray Train's cleaner looks now and then
    while {state["state"] for state in placement_group_table().values()} != {"REMOVED"}:
        assert time.monotonic() < deadline, placement_group_table()
        time.sleep(1)


@pytest.mark.fault
def test_trials__asked_to_stop_they_save_and_go_on_later(
    trial_cluster: ClusterConfig, falling: list[Trial], tmp_path: Path
):
    trials = [
        Trial(
            trial.name,
            trial.recipe.override({"steps": 400, "cadence.evaluate": 0, "cadence.checkpoint": 0}),
            trial.group,
        )
        for trial in falling[:3]
    ]
    stopped = _run(
        trials,
        trial_cluster,
        tmp_path,
        watch=lambda board: not any(max(_losses(board.run_dir(each)), default=0) >= 3 for each in board.snapshot()),
    )
    assert {result.status for result in stopped} == {"interrupted"} and 1 <= len(stopped) <= 2
    for result in stopped:
        assert committed(result.run_dir / "checkpoints")[0].name == f"step-{max(_losses(result.run_dir), default=0):08}"
        assert 0 < result.images_seen < 400 * 16
