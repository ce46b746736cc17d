"""Calibration against a loop over bins, closed cases and a temperature that is known."""

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.metrics import log_loss

from raydino.evals.calibration import MOST, calibration_error, fit_temperature, negative_log_likelihood


def drawn(*, count: int, classes: int, seed: int = 0, scale: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels drawn from their own probabilities: perfectly calibrated."""
    rng = np.random.default_rng(seed)
    logits = scale * rng.standard_normal((count, classes))
    return logits, (softmax(logits, axis=1).cumsum(1) < rng.random((count, 1))).sum(1).clip(max=classes - 1)


def slow_error(probabilities: np.ndarray, labels: np.ndarray, bins: int) -> float:
    total = 0.0
    for b in range(bins):
        rows = [
            i
            for i, row in enumerate(probabilities)
            if b / bins < row.max() <= (b + 1) / bins or (b == 0 and row.max() == 0)
        ]
        if rows:
            right = np.mean([probabilities[i].argmax() == labels[i] for i in rows])
            total += len(rows) / len(labels) * abs(right - np.mean([probabilities[i].max() for i in rows]))
    return total


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_calibration_error__equals_the_loop_over_bins(bins: int) -> None:
    logits, labels = drawn(count=400, classes=4)
    probabilities = softmax(3 * logits, axis=1)
    assert calibration_error(probabilities, labels, bins=bins) == pytest.approx(slow_error(probabilities, labels, bins))


def test_calibration_error__closed_cases() -> None:
    sure = np.eye(4)[[0, 1, 2, 3]]
    assert calibration_error(sure, np.array([0, 1, 2, 3])) == 0
    assert calibration_error(sure, np.array([1, 2, 3, 0])) == 1
    half = np.tile([0.75, 0.25], (4, 1))
    assert calibration_error(half, np.array([0, 0, 0, 1])) == pytest.approx(0)
    assert calibration_error(half, np.array([0, 1, 1, 1])) == pytest.approx(0.5)
    # Two bins that are wrong in opposite directions do not make up for each other.
    two = np.array([[0.9, 0.1], [0.6, 0.4]])
    assert calibration_error(two, np.array([1, 0])) == pytest.approx((0.9 + 0.4) / 2)
    with pytest.raises(ValueError, match="each summing to 1"):
        calibration_error(np.ones((2, 2)), np.array([0, 1]))
    with pytest.raises(ValueError, match="0 rows"):
        calibration_error(np.ones((0, 2)), np.array([], dtype=int))


def test_negative_log_likelihood__equals_scikit_learns() -> None:
    logits, labels = drawn(count=300, classes=5)
    found = negative_log_likelihood(logits, labels, temperature=1.7)
    assert found == pytest.approx(log_loss(labels, softmax(logits / 1.7, axis=1), labels=range(5)))


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_fit_temperature__finds_the_one_that_logits_were_multiplied_by(temperature: float) -> None:
    logits, labels = drawn(count=40_000, classes=5)
    found = fit_temperature(logits * temperature, labels)
    assert found == pytest.approx(temperature, rel=0.03)
    scaled = softmax(logits * temperature / found, axis=1)
    assert calibration_error(scaled, labels) < 0.01


def test_fit_temperature__leaves_unknown_classes_out_and_stops_at_its_bound() -> None:
    logits, labels = drawn(count=2000, classes=4)
    with_unknown = np.vstack([np.hstack([logits, np.full((2000, 1), -np.inf)]), [[0, 0, 0, 0, -np.inf]] * 7])
    found = fit_temperature(with_unknown, np.concatenate([labels, [4] * 7]))
    assert found == pytest.approx(fit_temperature(logits, labels), rel=1e-3)
    assert fit_temperature(np.array([[9.0, 0.0]] * 4), np.array([1, 1, 1, 1])) == pytest.approx(MOST, rel=1e-3)
    with pytest.raises(ValueError, match="none of 1 held-back images is of a known class"):
        fit_temperature(np.array([[0.0, -np.inf]]), np.array([1]))
