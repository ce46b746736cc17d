"""Pairs for people to look at, and what their answers are worth."""

import csv
import io

import numpy as np
import pytest
from scipy.stats import binom

from raydino.config import ConfigError
from raydino.curation.report import Shown, ShownPair
from raydino.curation.review import NEAR, Z, judged, label_table, stratified, wilson

VALUES = np.concatenate([np.arange(257), np.arange(257)])
KEYS = [f"{index:03d}".encode() for index in range(len(VALUES))]


def one(path: str) -> Shown:
    return Shown(b"\x01" * 16, path, 1, 1, 1, b"")


@pytest.mark.parametrize(("right", "total"), [(1, 2), (48, 50), (95, 100), (3, 1000), (999, 1000)])
def test_wilson__ends_are_the_roots_of_its_equation(right, total):
    # (right/total - p)² = Z² p (1 - p) / total, as a polynomial in p
    share, spread = right / total, Z**2 / total
    roots = np.sort(np.roots([1 + spread, -2 * share - spread, share**2]))
    assert wilson(right, total) == pytest.approx(tuple(roots), abs=1e-9)


def test_wilson__ends_where_all_or_none_were_right():
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(20, 20) == (pytest.approx(20 / (20 + Z**2)), 1.0)
    assert wilson(0, 20) == (0.0, pytest.approx(Z**2 / (20 + Z**2)))
    with pytest.raises(ValueError, match="right = 3"):
        wilson(3, 2)


def test_wilson__holds_the_truth_about_as_often_as_it_says():
    # exact over all outcomes of 100 draws, averaged over truths: the mean coverage of the interval is close to 95 %
    truths = np.linspace(0.02, 0.98, 97)
    ends = np.array([wilson(right, 100) for right in range(101)])
    covered = [
        binom.pmf(np.arange(101), 100, truth)[(ends[:, 0] <= truth) & (truth <= ends[:, 1])].sum() for truth in truths
    ]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.01)


@pytest.mark.parametrize(("unit", "threshold", "values"), [("bits", 48, VALUES), ("cosine", 0.5, VALUES / 256)])
def test_stratified__takes_both_sides_of_the_threshold_and_nothing_far(unit, threshold, values):
    rows = stratified(values, threshold, each=5, keys=KEYS, unit=unit)
    drawn = values[rows]
    joined = drawn <= threshold if unit == "bits" else drawn >= threshold
    assert joined.sum() == (~joined).sum() == 5
    assert (np.abs(drawn - threshold) <= NEAR[unit] + 1e-9).all()
    assert (np.diff(drawn) >= 0).all() and len(set(rows.tolist())) == 10


def test_stratified__takes_all_where_there_are_few():
    rows = stratified([39, 40, 48, 49, 56, 57], 48, each=100, keys=KEYS[:6], unit="bits")
    assert rows.tolist() == [1, 2, 3, 4]
    assert stratified([0.449, 0.45, 0.5, 0.55, 0.551], 0.5, each=9, keys=KEYS[:5], unit="cosine").tolist() == [1, 2, 3]


def test_stratified__the_order_of_the_input_does_not_matter_and_the_seed_does():
    order = np.random.default_rng(0).permutation(len(VALUES))
    there = stratified(VALUES, 48, each=4, keys=KEYS, unit="bits")
    again = stratified(VALUES[order], 48, each=4, keys=[KEYS[row] for row in order], unit="bits")
    assert [KEYS[row] for row in there] == [KEYS[order[row]] for row in again]
    assert there.tolist() != stratified(VALUES, 48, each=4, keys=KEYS, unit="bits", seed=1).tolist()


def test_stratified__every_pair_has_the_same_chance():
    times = np.zeros(len(VALUES))
    for seed in range(1500):
        times[stratified(VALUES, 48, each=4, keys=KEYS, unit="bits", seed=seed)] += 1
    near = (VALUES > 48) & (VALUES <= 56)
    expected = 1500 * 4 / near.sum()
    # a sum of 1,500 draws: within five standard deviations
    assert np.abs(times[near] - expected).max() < 5 * np.sqrt(expected)


def test_labels__come_back_from_a_filled_table():
    awkward = ['a,b".png', "=HYPERLINK(1)", "a\nb.png", "y" * 900]
    pairs = [ShownPair(one(path), one("b"), "same picture", 47, "bits", True) for path in awkward]
    pairs += [ShownPair(one("c"), one("d"), "leaked", 0.5, "cosine", False, "bench")] * 3
    rows = list(csv.reader(io.StringIO(label_table(pairs))))
    assert [row[0] for row in rows[1:]] == list("1234567")
    first_path = rows[0].index("first_path")
    assert [row[first_path] for row in rows[1:4]] == ['a,b".png', "'=HYPERLINK(1)", "a\nb.png"]
    assert rows[4][first_path].startswith("…y") and len(rows[4][first_path]) == 240
    for row, answer in zip(rows[1:], ["yes", " No ", "YES", "", "no", "no", "yes"], strict=True):
        row[rows[0].index("same")] = answer
    filled = io.StringIO()
    csv.writer(filled).writerows(rows)
    assert judged(filled.getvalue()) == {
        ("leaked", "bench", "apart"): (1, 3),
        ("same picture", "train", "joined"): (2, 3),
    }


def test_labels__other_answers_and_other_tables_are_refused():
    table = label_table([ShownPair(one("a"), one("b"), "leaked", 1, "bits", True)])
    with pytest.raises(ConfigError, match=r"same = 'maybe' in row 2; write yes or no"):
        judged(table.replace("yes,,", "yes,maybe,"))
    with pytest.raises(ConfigError, match=r"no column 'tier'"):
        judged("a,b\n1,2\n")
