"""Who is stopped, against the paper's rule worked out by hand."""

import pytest

from raydino.config import ConfigError
from raydino.launch.trials.halving import Halving, Judge


def _judge(reduction: float = 3.0) -> Judge:
    return Judge(Halving(grace=100, most=1000, reduction=reduction), objective="knn/top1")


def test_rungs__grow_by_the_factor_and_end_before_the_end():
    assert Halving(100, 1000, 3.0).rungs == [100, 300, 900]
    assert Halving(100, 900, 3.0).rungs == [100, 300]
    assert Halving(250, 1000, 2.0).rungs == [250, 500]
    assert Halving(1000, 1000, 2.0).rungs == []


@pytest.mark.parametrize(("grace", "most", "reduction"), [(0, 10, 2.0), (11, 10, 2.0), (1, 10, 1.0)])
def test_halving__refuses_what_stops_nobody_or_all(grace: int, most: int, reduction: float):
    with pytest.raises(ConfigError, match="grace"):
        Halving(grace, most, reduction)


def test_judge__the_best_third_of_those_that_came_there_goes_on():
    judge = _judge()
    assert judge.see("a", 100, 0.5) is None  # the first to come
    assert judge.see("b", 100, 0.4) is not None
    assert judge.see("c", 100, 0.6) is None
    # 0.4, 0.5, 0.6: the cut is two thirds of the way up, at 0.533
    assert judge.see("d", 100, 0.53) is not None
    # 0.4, 0.5, 0.53, 0.6: at 0.53
    assert judge.see("e", 100, 0.54) is None


def test_judge__says_rung_value_and_place():
    judge = _judge()
    judge.see("a", 300, 0.5)
    reason = judge.see("b", 310, 0.25)
    assert reason == "stopped by ASHA at rung 2 of 3: knn/top1 0.25 after 310 images, place 2 of 2 there"


def test_judge__is_not_asked_before_the_grace_nor_at_the_end_nor_without_a_value():
    judge = _judge()
    for trial, images, value in (
        ("a", 99, 0.9),
        ("b", 99, 0.1),
        ("c", 1000, 0.1),
        ("d", 100, None),
        ("e", 100, float("nan")),
    ):
        assert judge.see(trial, images, value) is None
    assert judge.see("f", 100, 0.01) is None  # none of them counts at the rung


def test_judge__compares_at_a_rung_once():
    judge = _judge()
    judge.see("a", 100, 0.5)
    judge.see("b", 100, 0.9)
    assert judge.see("a", 100, 0.1) is None  # a restarted trial is evaluated there again
    assert judge.see("a", 200, 0.1) is None  # between rungs


def test_replay__a_judge_told_of_before_says_what_the_first_would_have_said():
    first, second = _judge(), _judge()
    seen = [(1.0, "a", 100, 0.5), (2.0, "b", 100, 0.4), (3.0, "a", 300, 0.6), (4.0, "c", 100, 0.7)]
    for _, trial, images, value in seen:
        first.see(trial, images, value)
    second.replay(reversed(seen))
    verdicts = [
        [judge.see(f"{value}", 100, value) for value in (0.1, 0.45, 0.6, 0.65, 0.8)] for judge in (first, second)
    ]
    assert verdicts[0] == verdicts[1]
    # Of 0.4, 0.5, 0.7 and those before it in this row, the cut is at 0.567, 0.5, 0.483, 0.533 and 0.6.
    assert [verdict is None for verdict in verdicts[0]] == [False, False, True, True, True]
