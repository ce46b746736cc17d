"""Average precision against scikit-learn and against the benchmark's rules in plain loops."""

import math

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from raydino.evals.ranking import Judged, average_precision, ranked, revisited, trapezoidal_precision


def test_average_precision__equals_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        scores, relevant = generator.normal(size=(1, 40)), generator.random(40) < 0.2
        relevant[generator.integers(40)] = True
        found = average_precision(relevant[ranked(scores)[0]])
        assert found == pytest.approx(average_precision_score(relevant, scores[0]))
    assert math.isnan(average_precision(np.zeros(5, dtype=bool)))


def test_ranked__among_equals_the_first_comes_first() -> None:
    assert ranked(np.array([[1.0, 3, 1, 3]])).tolist() == [[1, 3, 0, 2]]


def slow_revisited(row: list[int], query: Judged, difficulty: str) -> tuple[float, float]:
    """AP and precision at 5 of one list, walking down it as the benchmark's code does."""
    easy, hard, junk = query.easy.tolist(), query.hard.tolist(), query.junk.tolist()
    good = {"easy": easy, "medium": easy + hard, "hard": hard}[difficulty]
    passed = {"easy": junk + hard, "medium": junk, "hard": junk + easy}[difficulty]
    place, found, total, places = 0, 0, 0.0, []
    for image in row:
        if image in passed:
            continue
        if image in good:
            before = 1.0 if place == 0 else found / place
            found += 1
            total += (before + found / (place + 1)) / 2 / len(good)
            places.append(place + 1)
        place += 1
    end = min(max(places), 5)
    return total, sum(p <= end for p in places) / end


def test_revisited__equals_a_walk_down_the_list() -> None:
    generator = np.random.default_rng(1)
    order = np.stack([generator.permutation(30) for _ in range(6)])
    judged = []
    for _ in range(6):
        mixed = generator.permutation(30)
        judged.append(Judged(easy=mixed[:3], hard=mixed[3:8], junk=mixed[8:12]))
    judged[2] = Judged(easy=np.empty(0, dtype=np.int64), hard=judged[2].hard, junk=judged[2].junk)  # no easy positive
    found = revisited(order, judged)
    for difficulty in ("easy", "medium", "hard"):
        slow = [
            slow_revisited(row, query, difficulty)
            for row, query in zip(order.tolist(), judged, strict=True)
            if difficulty != "easy" or len(query.easy)
        ]
        assert found[f"map_{difficulty}"] == pytest.approx(np.mean([ap for ap, _ in slow]))
        assert found[f"mp5_{difficulty}"] == pytest.approx(np.mean([precision for _, precision in slow]))


def test_revisited__a_perfect_list_scores_one_and_junk_does_not_matter() -> None:
    judged = [Judged(easy=np.array([4]), hard=np.array([2]), junk=np.array([0, 1]))]
    found = revisited(np.array([[0, 1, 4, 2, 3]]), judged)
    assert found["map_easy"] == found["map_medium"] == found["map_hard"] == found["mp1_hard"] == 1.0
    assert trapezoidal_precision(np.array([1]), 1) == pytest.approx((0 + 0.5) / 2)
