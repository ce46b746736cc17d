"""Logistic regression against Newton's method, and the choice of C on images that were held back."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_info, threadpool_limits

from raydino.evals import logistic
from raydino.evals.config import LogisticConfig
from raydino.evals.linear import held_back_rows
from raydino.evals.logistic import Logistic

SMALL = LogisticConfig(strengths=7, iterations=200)


def sample(count: int = 80) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, count)
    return generator.normal(size=(count, 4)) + 1.2 * np.eye(3, 4)[labels], labels


@pytest.mark.parametrize("strength", [1e-3, 1.0, 30.0])
def test_fit__minimises_the_published_objective(strength: float) -> None:
    x, y = sample()

    def objective(flat: np.ndarray) -> float:
        weights, bias = flat[:12].reshape(4, 3), flat[12:]
        return (
            -strength * log_softmax(x @ weights + bias, axis=1)[np.arange(len(y)), y].sum() + 0.5 * (weights**2).sum()
        )

    expected = minimize(objective, np.zeros(15), method="BFGS", options={"gtol": 1e-7, "maxiter": 3000}).x
    model = Logistic(LogisticConfig()).fit(x, y, strength)
    found = np.concatenate([model.coef_.T.ravel(), model.intercept_ - model.intercept_.mean()])
    expected[12:] -= expected[12:].mean()  # a constant added to all biases changes nothing
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_sweep__scores_what_no_fit_has_seen() -> None:
    x, y = sample()
    evaluation = Logistic(SMALL.override({"holdout": 0.25}))
    found = evaluation.sweep(x, y, seed=3)
    assert list(found) == pytest.approx(np.logspace(-6, 5, 7).tolist())
    learn, held = held_back_rows(len(x), share=0.25, seed=3)
    for strength, score in found.items():
        right = evaluation.fit(x[learn], y[learn], strength).predict(x[held]) == y[held]
        assert score == pytest.approx(right.mean())
    assert len(set(found.values())) > 1


def test_fit__small_products_are_not_shared_out_among_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[set[int]] = []
    fit = LogisticRegression.fit

    def spied(self: LogisticRegression, x: np.ndarray, y: np.ndarray) -> LogisticRegression:
        seen.append({pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"})
        return fit(self, x, y)

    monkeypatch.setattr(LogisticRegression, "fit", spied)
    x, y = np.random.default_rng(0).normal(size=(20, 5)), np.arange(20) % 3
    with threadpool_limits(2, user_api="blas"):
        for least in (20 * 5 * 3 + 1, 20 * 5 * 3):
            monkeypatch.setattr(logistic, "SHARED_OUT", least)
            Logistic(LogisticConfig()).fit(x, y, 1.0)
    assert seen == [{1}, {2}]


def test_run__two_classes_and_many(colours: Any, small_vit: Any) -> None:
    many = Logistic(SMALL).run(small_vit(), colours(bank=60, queries=30))
    assert many["top1"] == 1.0 and many["top5"] == 1.0 and many["held_back_top1"] == 1.0
    two = Logistic(SMALL).run(small_vit(), colours(bank=40, queries=20, classes=2))
    assert two["top1"] == 1.0 and "top5" not in two


@pytest.mark.slow
def test_run__two_ranks_find_what_one_finds(
    gloo: Callable[[Callable[[int], Any], int], list[Any]], colours: Any, small_vit: Any
) -> None:
    data = colours(bank=60, queries=30)
    alone = Logistic(SMALL).run(small_vit(), data)
    for found in gloo(lambda rank: Logistic(SMALL).run(small_vit(), data), 2):
        assert found == pytest.approx(alone)
