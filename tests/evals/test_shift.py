"""Corruption errors on a table done by hand, and the line of effective robustness on networks that lie on one."""

import numpy as np
import pytest
from scipy.special import expit, logit

from raydino.evals.shift import (
    corruption_error,
    effective_robustness,
    fit_line,
    mean_of,
    relative_corruption_error,
)

BASE = {"fog": [0.4, 0.6], "jpeg": [0.2, 0.3]}
FOUND = {"fog": [0.3, 0.5], "jpeg": [0.3, 0.3]}


def test_corruption_error__by_hand() -> None:
    errors = corruption_error(FOUND, BASE)
    assert errors == pytest.approx({"fog": 0.8, "jpeg": 1.2})
    assert mean_of(errors) == pytest.approx(1.0)
    assert mean_of(corruption_error(BASE, BASE)) == pytest.approx(1)
    rise = relative_corruption_error(FOUND, BASE, clean=0.2, baseline_clean=0.1)
    # Fog rises by 0.4 in all where the baseline rises by 0.8, JPEG by 0.2 where it rises by 0.3.
    assert rise == pytest.approx({"fog": 0.5, "jpeg": 2 / 3})


def test_corruption_error__does_not_exist_where_the_baseline_has_none() -> None:
    assert corruption_error({"fog": [0.1]}, {"fog": [0.0]}) == {"fog": None}
    rise = relative_corruption_error(FOUND, BASE, clean=0.2, baseline_clean=0.3)  # jpeg: 0.2 + 0.3 is below 2 × 0.3
    assert rise["jpeg"] is None and rise["fog"] is not None
    assert mean_of(rise) is None
    assert mean_of({}) is None


def test_fit_line__networks_on_a_line_and_one_above() -> None:
    clean = [0.2, 0.3, 0.4, 0.55, 0.7]
    line = fit_line(clean, [float(expit(0.8 * logit(a) - 0.3)) for a in clean])
    assert not isinstance(line, str)
    assert (line.slope, line.intercept) == pytest.approx((0.8, -0.3))
    on = float(expit(0.8 * logit(0.5) - 0.3))
    assert effective_robustness(line, clean=0.5, shifted=on) == pytest.approx(0, abs=1e-9)
    assert effective_robustness(line, clean=0.5, shifted=on + 0.07) == pytest.approx(0.07)
    assert effective_robustness(line, clean=0.71, shifted=0.5) is None


def test_fit_line__says_why_there_is_none() -> None:
    assert "4 networks of the baseline, and a line wants 5" in str(fit_line([0.1, 0.3, 0.5, 0.7], [0.1] * 4))
    close = np.linspace(0.50, 0.54, 6).tolist()
    assert "0.500 to 0.540, too close for a line" in str(fit_line(close, close))
