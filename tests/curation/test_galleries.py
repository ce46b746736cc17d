"""Which pairs are shown: the doubtful ones, and some of every kind."""

import numpy as np
import pytest

from raydino.curation import galleries
from raydino.curation.report import Shown, ShownPair

IMAGE = Shown(bytes(16), "a.png", 1, 1, 1, b"")


def pair(value: float, *, accepted: bool, unit="bits") -> ShownPair:
    return ShownPair(IMAGE, IMAGE, "same picture", value, unit, accepted)


@pytest.mark.parametrize("accepted", [True, False])
@pytest.mark.parametrize("unit", ["bits", "cosine"])
def test_ranked__each_side_keeps_those_nearest_to_the_other(unit, accepted):
    values = np.random.default_rng(1).permutation(np.linspace(0.1, 0.9, 500))
    pairs = [pair(float(value), accepted=accepted, unit=unit) for value in values]
    kept = [one.value for one in galleries.ranked(pairs)]
    # few bits and great cosines are joined, so the doubtful joined ones have many bits and small cosines
    largest_first = (unit == "bits") == accepted
    assert kept == sorted(values.tolist(), reverse=largest_first)[: galleries.PAIRS]


def test_ranked__no_side_crowds_out_another():
    pairs = [pair(1, accepted=True)] * 5000 + [pair(60, accepted=False)] * 3
    sides = [one.accepted for one in galleries.ranked(pairs)]
    assert sides.count(True) == galleries.PAIRS // 2 and sides.count(False) == 3
