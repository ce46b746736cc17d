"""Which rows are in which epoch, against exact fractions, and the frequencies that weights promise."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raydino.data.turns import STRIDE, UNIT, PlanError, Turns
from raydino.keyed import generator, key64


def slow_turns(row_groups, keep, weights, *, seed, epoch):
    """The rows of an epoch by exact fractions: lay the kept rows on a line, shrink it to an integer, look for marks."""
    line, start = [], 0
    for group, rows in enumerate(row_groups):
        kept = [row for row in range(start, start + rows) if keep[row]]
        line += [kept[place] for place in generator(seed, "turns", group).permutation(len(kept)).tolist()]
        start += rows
    total = sum((Fraction(float(weights[row])) for row in line), Fraction(0))
    offset = Fraction(key64(seed, "turns") + epoch * STRIDE, UNIT) % 1
    taken, at = [], offset
    for row in line:
        end = at + Fraction(float(weights[row])) * math.floor(total) / total
        if math.floor(end) > math.floor(at):
            taken.append(row)
        at = end
    return sorted(taken)


def rows_of(turns, epoch):
    groups = range(len(turns.starts) - 1)
    return np.concatenate([turns.starts[group] + turns.inside(epoch, group) for group in groups])


@st.composite
def cases(draw):
    row_groups = np.array(draw(st.lists(st.integers(0, 12), min_size=1, max_size=25)))
    seed = draw(st.integers(0, 1000))
    rng = np.random.default_rng(seed)
    keep = rng.random(row_groups.sum()) < draw(st.sampled_from([0.3, 0.8, 1.1]))
    steep = draw(st.sampled_from([0.2, 1, 4]))
    weights = (1 - rng.random(row_groups.sum(), dtype=np.float32)) ** np.float32(steep)
    weights[rng.random(len(weights)) < draw(st.sampled_from([0, 0.5]))] = 1
    return row_groups, keep, weights.clip(1e-6), seed


@settings(max_examples=100, deadline=None)
@given(cases())
def test_inside__equals_exact_fractions(case):
    row_groups, keep, weights, seed = case
    turns = Turns(row_groups, seed=seed, keep=keep, weights=weights)
    for epoch in (0, 1, 7, 1000):
        assert rows_of(turns, epoch).tolist() == slow_turns(row_groups, keep, weights, seed=seed, epoch=epoch)


@settings(max_examples=100, deadline=None)
@given(cases())
def test_counts__the_same_number_of_kept_rows_in_every_epoch(case):
    row_groups, keep, weights, seed = case
    turns = Turns(row_groups, seed=seed, keep=keep, weights=weights)
    assert turns.kept == keep.sum()
    assert turns.per_epoch == math.floor(sum(Fraction(float(weight)) for weight in weights[keep]) + Fraction(1, 2**20))
    for epoch in range(5):
        rows = rows_of(turns, epoch)
        assert keep[rows].all() and len(np.unique(rows)) == len(rows) == turns.per_epoch
        assert turns.counts(epoch).tolist() == [len(turns.inside(epoch, group)) for group in range(len(row_groups))]


def test_inside__each_row_is_seen_as_often_as_its_weight_says_and_evenly():
    """Within 4 of 610 epochs: independent draws would miss by 12 for a weight of 1/2, and by more for some row of many."""
    rng, groups, epochs = np.random.default_rng(1), np.full(20, 16), 610
    weights = rng.uniform(0.02, 1, size=320)
    weights[:40] = 1
    turns = Turns(groups, seed=5, weights=weights)
    seen = np.zeros((epochs, 320), dtype=bool)
    for epoch in range(epochs):
        seen[epoch, rows_of(turns, epoch)] = True
    share = weights * math.floor(weights.sum()) / weights.sum()
    assert np.abs(seen.sum(axis=0) - epochs * share).max() < 4
    for row in range(40, 320):
        gaps = np.diff(np.flatnonzero(seen[:, row]))
        assert len(np.unique(gaps)) <= 3 and gaps.max() <= 3 / share[row]


def test_inside__weight_one_is_always_seen_where_the_weights_add_up_to_an_integer():
    weights = np.tile(np.array([1, 0.25, 0.5, 0.25], dtype=np.float32), 50)
    turns = Turns(np.full(10, 20), seed=0, weights=weights)
    assert turns.per_epoch == 100
    assert all(set(range(0, 200, 4)) <= set(rows_of(turns, epoch).tolist()) for epoch in range(40))


def test_inside__a_pattern_in_storage_does_not_make_one_sided_epochs():
    turns = Turns(np.full(50, 20), seed=0, weights=np.full(1000, 0.5))
    left = [int((rows_of(turns, epoch) % 2 == 0).sum()) for epoch in range(20)]
    assert min(left) > 180 and max(left) < 320  # of 500; without the keyed order all or none


def test_turns__weights_of_one_change_nothing():
    groups, keep = np.array([7, 0, 12, 3]), np.arange(22) % 5 > 0
    one, none = Turns(groups, seed=1, keep=keep, weights=np.ones(22, np.float32)), Turns(groups, seed=1, keep=keep)
    assert one.per_epoch == none.per_epoch == none.kept
    assert [rows_of(one, epoch).tolist() for epoch in range(9)] == [np.flatnonzero(keep).tolist()] * 9
    assert (one.counts(3) == none.counts(3)).all()


def test_counts__many_groups_are_summed_in_blocks_and_exactly():
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 4, size=40_000)
    weights = rng.random(groups.sum(), dtype=np.float32) * np.float32(0.9) + np.float32(0.1)
    turns = Turns(groups, seed=0, weights=weights)
    assert {int(turns.counts(epoch).sum()) for epoch in range(20)} == {math.floor(math.fsum(weights))}
    assert [len(turns.inside(3, group)) for group in range(39_000, 39_100)] == turns.counts(3)[39_000:39_100].tolist()


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.array([1, 0.5, 0, 1]), "row 2 has weight 0.0; give more than 0 and at most 1"),
        (np.array([1, 0.5, 1, 1.5]), "row 3 has weight 1.5"),
        (np.array([-0.5, 0.5, 1, 1]), "row 0 has weight -0.5"),
        (np.array([1, np.nan, 1, 1]), "row 1 has weight nan"),
        (np.ones(3), r"weights are float64 \[3\] for 4 rows"),
        (np.ones(4, dtype=int), "weights are int64"),
    ],
)
def test_turns__bad_weights_name_row_and_value(weights, message):
    with pytest.raises(PlanError, match=message):
        Turns(np.array([2, 2]), seed=0, weights=weights)


def test_turns__weights_of_rows_left_out_do_not_count():
    turns = Turns(np.array([2, 2]), seed=0, keep=np.array([True, True, True, False]), weights=np.array([1, 1, 1, 0.0]))
    assert turns.per_epoch == 3 and rows_of(turns, 0).tolist() == [0, 1, 2]
