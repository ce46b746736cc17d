"""A population of real runs: the copy is trained on, and with the changed schedule."""

import json
from pathlib import Path

import pytest

from raydino.launch.cluster import ClusterConfig
from raydino.launch.sweep.population import evolve
from raydino.launch.sweep.space import uniform
from raydino.launch.trials.run import run_trials
from raydino.launch.trials.trial import Trial
from raydino.recipe import Recipe
from raydino.tracking.run import LOSS_TOTAL, TEACHER_MOMENTUM
from raydino.tracking.spool import METRICS_FILE, read_metrics
from raydino.train.checkpoint import load, path_of

pytestmark = [pytest.mark.ray, pytest.mark.slow]
KEY = "method.teacher_momentum.start"
DISTANCE = "health/teacher_distance"


def test_population__the_worse_member_goes_on_from_the_better_one_with_the_changed_schedule(
    trial_cluster: ClusterConfig, small: Recipe, tmp_path: Path
):
    """A higher momentum leaves the teacher further behind, so "high" wins by this objective, and "low" is to become its copy."""
    recipe = small.override({"method.teacher_momentum": {"start": 0.9, "end": 0.9}, "optim": {"lr": 1e-2, "warmup": 0}})
    recipe = recipe.override({"cadence": {"evaluate": 6, "checkpoint": 6}})
    space = {KEY: uniform(0.0, 0.99)}
    seen: list[list[Trial]] = []

    def run(trials):
        seen.append(list(trials))
        return run_trials(trials, cluster=trial_cluster, folder=tmp_path, objective=DISTANCE)

    results, exploits = evolve(
        {"low": {KEY: 0.1}, "high": {KEY: 0.9}},
        recipe=recipe,
        space=space,
        segments=2,
        folder=tmp_path,
        objective=DISTANCE,
        run=run,
        vet=lambda recipe: None,
    )
    (exploit,) = exploits
    assert (exploit.loser, exploit.winner, exploit.step) == ("low", "high", 6)
    assert exploit.after[KEY] in (pytest.approx(0.72), pytest.approx(0.99))  # 0.9 less a fifth, or more, within bounds
    low = next(result for result in results if result.trial.name == "low")
    assert low.status == "finished" and low.trial.ancestors == ("high",)

    # The schedule that its second half was trained with is that of the changed recipe, its first half that of its own.
    rows = read_metrics(low.run_dir / METRICS_FILE)
    for step in range(1, 13):
        start = 0.1 if step <= 6 else exploit.after[KEY]
        schedule = recipe.override({KEY: start}).method.teacher_momentum
        assert rows[step][TEACHER_MOMENTUM] == pytest.approx(schedule.at(step - 1, steps=12), abs=1e-6), step

    # Trained on from the winner's weights: its step 7 is the one that the winner takes with this momentum, not its own.
    copied = load(path_of(low.run_dir / "checkpoints", 6))
    original = load(path_of(tmp_path / "trials" / "high" / "checkpoints", 6))
    assert copied.meta["run"] == "high"
    assert all((copied.model[name] == value).all() for name, value in original.model.items())
    high = read_metrics(tmp_path / "trials" / "high" / METRICS_FILE)
    assert rows[7][LOSS_TOTAL] == high[7][LOSS_TOTAL]  # the loss of a step comes before its momentum acts
    assert rows[8][LOSS_TOTAL] != high[8][LOSS_TOTAL]
    history = json.loads((low.run_dir / "run.json").read_text())["history"]
    assert history[0]["changes"][KEY] == [0.1, exploit.after[KEY]]
