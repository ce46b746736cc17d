"""Ranking with repeats against numbers worked out by hand, and the cost."""

from pathlib import Path

import pytest

from raydino.launch.sweep.ranking import device_hours, no_gain, rank
from raydino.launch.trials.trial import Evaluation, Status, Trial, TrialResult
from raydino.recipe import Recipe


def result(
    group: str, *values: float, seed: int = 0, status: Status = "finished", seconds: float = 60.0, reason: str = ""
) -> TrialResult:
    """A trial evaluated every 64 images."""
    history = [Evaluation(i, 64 * i, {"knn/top1": value}) for i, value in enumerate(values)]
    trial = Trial(f"{group}-{seed}", Recipe(seed=seed), group)
    return TrialResult(trial, status, tuple(history), {}, Path("/nowhere"), seconds, 64 * (len(values) - 1), reason)


def test_rank__means_and_spreads_over_seeds_are_those_of_the_last_evaluations():
    rows = rank(
        [
            result("a", 0.1, 0.9, 0.50, seed=0),  # its best was 0.9: chance, and not its worth
            result("a", 0.1, 0.2, 0.56, seed=1),
            result("a", 0.1, 0.3, 0.53, seed=2),
            result("b", 0.1, 0.4, 0.54, seed=0),
            result("b", 0.1, 0.4, 0.60, seed=1),
        ],
        {"a": {"optim.lr": 1.0}, "b": {"optim.lr": 2.0}},
        "knn/top1",
    )
    assert [row.group for row in rows] == ["b", "a"]
    assert rows[0].value == pytest.approx(0.57)
    assert rows[0].spread == pytest.approx(0.0424264)
    assert rows[1].value == pytest.approx(0.53)
    assert rows[1].spread == pytest.approx(0.03)
    assert rows[1].values == (0.50, 0.56, 0.53)
    assert rows[1].params == {"optim.lr": 1.0}
    assert rows[1].seconds == 180
    assert rows[1].untrained == pytest.approx(0.1)
    assert no_gain(rows) == ""


def test_rank__the_stopped_come_after_the_finished_by_how_far_they_came_and_the_failed_last():
    rows = rank(
        [
            result("failed", 0.1, 0.99, status="failed", reason="ZeroDivisionError"),
            result("early", 0.1, 0.9, status="stopped", reason="at rung 1"),
            result("late", 0.1, 0.2, 0.3, status="stopped", reason="at rung 2"),
            result("low", 0.1, 0.2, 0.1, 0.2),
            result("mute", status="failed", reason="it could not be prepared"),
        ],
        {},
        "knn/top1",
    )
    assert [row.group for row in rows] == ["low", "late", "early", "failed", "mute"]
    assert rows[0].spread is None
    assert [row.failed for row in rows] == [0, 0, 0, 1, 1]
    assert rows[-1].value is None and rows[-1].reason == "it could not be prepared"


def test_rank__a_failed_seed_is_counted_and_not_averaged():
    rows = rank([result("a", 0.1, 0.5), result("a", 0.1, seed=1, status="failed", reason="killed")], {}, "knn/top1")
    assert (rows[0].value, rows[0].status, rows[0].failed, rows[0].values) == (0.5, "finished", 1, (0.5,))
    assert rows[0].reason == "killed"


def test_device_hours__are_what_workers_held():
    assert device_hours([result("a", 0.1, seconds=1800), result("b", 0.1, seconds=5400)], workers=2, each=0.25) == 1.0


def test_no_gain__is_said_of_the_best_whose_value_is_not_above_that_of_its_start():
    rows = rank(
        [result("a", 0.4, 0.3), result("b", 0.4, 0.39), result("c", 0.4, 0.5, status="stopped")], {}, "knn/top1"
    )
    assert "no configuration is better than the untrained network (0.4000)" in no_gain(rows)
    assert no_gain(rank([result("a", 0.4, 0.41)], {}, "knn/top1")) == ""
    assert no_gain([]) == ""
