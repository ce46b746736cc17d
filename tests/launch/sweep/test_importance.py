"""What mattered, on functions whose shares of variance are known."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest

from raydino.launch.sweep.importance import importances, seen_equally
from raydino.launch.sweep.space import choice, uniform
from raydino.launch.trials.trial import Evaluation, Trial, TrialResult
from raydino.recipe import Recipe

SPACE = {"a": uniform(0.0, 1.0), "b": uniform(0.0, 1.0), "c": choice("x", "y", "z")}


def _trials(value, points) -> tuple[list[TrialResult], dict]:
    results, params = [], {}
    for number, (a, b, c) in enumerate(points):
        history = (Evaluation(0, 0, {"m": 9.0}), Evaluation(1, 100, {"m": value(a, b, c)}))
        results.append(
            TrialResult(Trial(f"{number}", Recipe(), f"{number}"), "finished", history, {}, Path(), 1.0, 100)
        )
        params[f"{number}"] = {"a": a, "b": b, "c": c}
    return results, params


GRID = [(a, b, c) for a, b, c in product(np.linspace(0, 1, 7).tolist(), np.linspace(0, 1, 7).tolist(), "xyz")]


def test_importances__are_the_shares_of_variance_of_an_additive_function():
    """3a + b + 0·c on a grid: variances 9 and 1 times the same."""
    seen = seen_equally(*_trials(lambda a, b, c: 3 * a + b, GRID), SPACE, "m")
    found = {each.key: each for each in importances(seen, list(SPACE))}
    assert found["a"].share == pytest.approx(0.9, abs=0.04)
    assert found["b"].share == pytest.approx(0.1, abs=0.04)
    assert found["c"].share < 0.01
    assert found["a"].spread < 0.05
    assert [each.key for each in importances(seen, list(SPACE))][:2] == ["a", "b"]


def test_importances__of_few_trials_have_a_spread_that_says_so():
    few = [GRID[index] for index in (0, 40, 77, 90, 120, 140)]
    rough = importances(seen_equally(*_trials(lambda a, b, c: 3 * a + b, few), SPACE, "m"), list(SPACE))
    fine = importances(seen_equally(*_trials(lambda a, b, c: 3 * a + b, GRID), SPACE, "m"), list(SPACE))
    assert max(each.spread for each in rough) > 3 * max(each.spread for each in fine)


def test_importances__none_where_nothing_can_be_told():
    assert importances(seen_equally(*_trials(lambda a, b, c: a, GRID[:3]), SPACE, "m"), list(SPACE)) == []
    assert importances(seen_equally(*_trials(lambda a, b, c: 0.5, GRID), SPACE, "m"), list(SPACE)) == []


def test_seen_equally__compares_where_all_were_and_leaves_out_who_has_no_place():
    results, params = _trials(lambda a, b, c: a, [(0.0, 0.0, "x"), (0.5, 0.5, "y"), (1.0, 1.0, "z")])
    longer = (*results[2].history, Evaluation(2, 200, {"m": 7.0}))
    results[2] = TrialResult(results[2].trial, "finished", longer, {}, Path(), 1.0, 200)
    params["1"] = {"a": 2.0, "b": 0.5, "c": "y"}  # outside
    seen = seen_equally(results, params, SPACE, "m")
    assert seen.images == 100
    np.testing.assert_array_equal(seen.values, [0.0, 1.0])
    np.testing.assert_allclose(seen.places, [[0, 0, 1 / 6], [1, 1, 5 / 6]])
