"""Balance: water-filling against unit steps, trees that hold together, and planted long tails that come out even."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from raydino.config import ConfigError
from raydino.curation.balance import Hierarchy, hierarchy, rule_of_thumb, water_fill, weights

SIZES = (900, 400, 220, 140, 90, 70, 50, 40, 34, 30, 26, 24, 22, 20, 18, 16, 15, 14, 13, 12)


def unit_steps(sizes: list[int], target: int) -> list[int]:
    """One at a time to a cell that has least of those not yet full."""
    amounts = [0] * len(sizes)
    for _ in range(target):
        amounts[min((n for n, size in enumerate(sizes) if amounts[n] < size), key=amounts.__getitem__)] += 1
    return amounts


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=12), st.data())
def test_water_fill__equals_unit_steps(sizes, data):
    target = data.draw(st.integers(0, sum(sizes)))
    amounts = water_fill(np.array(sizes), target, seed=3)
    assert sorted(amounts) == sorted(unit_steps(sizes, target)) and (amounts <= sizes).all()
    order = np.argsort(sizes, kind="stable")
    assert sum(amounts) == target and (np.diff(amounts[order]) >= -1).all()  # less than one apart above the cut


def test_water_fill__the_remainder_goes_to_other_cells_by_key():
    got = [tuple(water_fill(np.full(8, 10), 20, seed=seed)) for seed in range(12)]
    assert len(set(got)) > 6 and got[3] == tuple(water_fill(np.full(8, 10), 20, seed=3))
    assert {sum(amounts) for amounts in got} == {20}
    assert (np.sum(got, axis=0) > 12 * 2).all()  # each cell at some time


def test_water_fill__of_as_much_as_there_is_in_units_of_weight():
    sizes = np.array([740_000_000, 3_000_000]) << 24
    assert water_fill(sizes, int(sizes.sum()) - 1, seed=0).tolist() == [int(sizes[0]) - 1, int(sizes[1])]
    with pytest.raises(ConfigError, match="target = 21 of 20"):
        water_fill(np.array([15, 5]), 21, seed=0)


def long_tail(*, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of twenty clusters, the largest 75 times the smallest, and the cluster of each."""
    rng = np.random.default_rng(seed)
    truth = rng.permutation(np.repeat(np.arange(len(SIZES)), SIZES))
    centres = rng.normal(size=(len(SIZES), 12)) * 4
    return (centres[truth] + rng.normal(size=(len(truth), 12))).astype(np.float32), truth


def variation(truth: np.ndarray, weight: np.ndarray) -> float:
    """Total variation between what is seen of each cluster and the same of all."""
    seen = np.bincount(truth, weights=weight)
    return float(np.abs(seen / seen.sum() - 1 / len(seen)).sum() / 2)


def tree_of(vectors: np.ndarray, **changes) -> Hierarchy:
    levels, steps, points = rule_of_thumb(len(vectors))
    return hierarchy(
        vectors, **{"levels": levels, "resampling_steps": steps, "points_per_cell": points, "seed": 0, **changes}
    )


def test_weights__a_planted_long_tail_comes_out_even():
    vectors, truth = long_tail()
    before = variation(truth, np.ones(len(truth)))
    target = len(truth) // 10
    tree = tree_of(vectors)
    flat = tree_of(vectors, levels=[215], resampling_steps=[0], points_per_cell=[1])
    after, plain = variation(truth, weights(tree, target, seed=0)), variation(truth, weights(flat, target, seed=0))
    assert before > 0.5
    assert after < 0.2 and after < 0.6 * plain  # plain k-means follows the crowd


def test_weights__real_digits_with_a_planted_long_tail_come_out_more_even():
    images, labels = load_digits(return_X_y=True)
    kept = np.concatenate([np.flatnonzero(labels == digit)[: max(6, 170 >> digit)] for digit in range(10)])
    tree = tree_of(images[kept], levels=[60, 12], resampling_steps=[0, 10], points_per_cell=[1, 2])
    before = variation(labels[kept], np.ones(len(kept)))
    assert before > 0.5 and variation(labels[kept], weights(tree, 60, seed=0)) < 0.6 * before


@pytest.mark.parametrize("target", [1, 7, 200, 2000, 2153, 2154])
def test_weights__add_up_to_the_target_exactly_and_are_within_bounds(target: int):
    vectors, _ = long_tail()
    assert len(vectors) == 2154
    found = weights(tree_of(vectors), target, seed=1)
    assert found.dtype == np.float32 and found.shape == (2154,) and (found > 0).all() and (found <= 1).all()
    assert found.astype(np.float64).sum() == target
    assert sum(map(Fraction, found.tolist())) == target


def test_weights__follow_the_tree_from_the_top():
    """Two branches of 8 and 100 rows; the second has cells of 2, 8 and 90. Of 48 rows 8 come from the first; of the other 40 the
    small cells give 2 and 8, the large one 30."""
    rows = np.repeat([0, 1, 2, 3, 4], [5, 3, 2, 8, 90])
    centroids = (np.zeros((5, 2), np.float32), np.zeros((2, 2), np.float32))
    tree = Hierarchy((rows, np.array([0, 0, 1, 1, 1])), centroids)
    assert [sizes.tolist() for sizes in tree.sizes()] == [[5, 3, 2, 8, 90], [8, 100]]
    found = weights(tree, 48, seed=0)
    assert (found[rows < 4] == 1).all()
    np.testing.assert_allclose(found[rows == 4], 1 / 3, atol=1e-7)
    found = weights(tree, 8, seed=0)  # 4 to each branch: 2 and 2; 4/3 to each of three cells
    for cell, amount in enumerate([2, 2, 4 / 3, 4 / 3, 4 / 3]):
        np.testing.assert_allclose(found[rows == cell].sum(dtype=np.float64), amount, atol=1e-6)


def test_hierarchy__rows_and_cells_belong_to_the_nearest_centroid_above():
    vectors, _ = long_tail()
    tree = tree_of(vectors, levels=[80, 20, 6], resampling_steps=[1, 3, 0], points_per_cell=[5, 2, 1])
    assert [len(one) for one in tree.centroids] == [80, 20, 6]
    for points, parents, centroids in zip([vectors, *tree.centroids], tree.parents, tree.centroids, strict=False):
        apart = points[:, None].astype(np.float64) - centroids[None]
        assert (parents == (apart**2).sum(axis=2).argmin(axis=1)).all()
        assert set(parents) == set(range(len(centroids)))


def test_hierarchy__resampling_clusters_the_points_nearest_to_each_centroid():
    """On a line, with ever wider gaps, so that the two points nearest to a mean have another one."""
    crowds = np.geomspace(0.01, 1, 40), 10 + np.geomspace(0.01, 1, 12)
    points = np.concatenate(crowds).astype(np.float32)[:, None]
    tree = hierarchy(points, levels=[2], resampling_steps=[1], points_per_cell=[2], seed=0)
    expected = [crowd[np.argsort(np.abs(crowd - crowd.mean()))[:2]].mean() for crowd in crowds]
    assert all(abs(mean - crowd.mean()) > 1e-3 for mean, crowd in zip(expected, crowds, strict=True))
    np.testing.assert_allclose(np.sort(tree.centroids[0][:, 0]), expected, atol=1e-6)


def test_hierarchy__resampling_moves_centroids_out_of_the_crowd():
    vectors, truth = long_tail()
    share = []
    for steps in (0, 5):
        tree = tree_of(vectors, levels=[60], resampling_steps=[steps], points_per_cell=[3])
        clusters = truth[((vectors[:, None] - tree.centroids[0]) ** 2).sum(axis=2).argmin(axis=0)]
        share.append((clusters == 0).mean())
    assert share[1] < 0.8 * share[0]  # of all centroids, those within the largest cluster


def test_hierarchy__the_same_cells_whatever_the_order_of_the_rows():
    vectors, _ = long_tail()
    order = np.random.default_rng(9).permutation(len(vectors))
    one, other = tree_of(vectors), tree_of(vectors[order])
    assert (one.parents[0][order] == other.parents[0]).all()
    assert all(a.tobytes() == b.tobytes() for a, b in zip(one.centroids, other.centroids, strict=True))
    assert (tree_of(vectors, seed=1).parents[0] != one.parents[0]).any()


def test_hierarchy__copies_of_few_vectors_give_few_cells():
    vectors = np.repeat(np.eye(4, dtype=np.float32), [90, 5, 3, 2], axis=0)
    tree = tree_of(vectors, levels=[20, 10], resampling_steps=[2, 2], points_per_cell=[2, 2])
    assert [len(one) for one in tree.centroids] == [4, 4]
    found = weights(tree, 12, seed=0)
    shares = [found[part].sum(dtype=np.float64) for part in np.split(np.arange(100), [90, 95, 98])]
    np.testing.assert_allclose(shares, [3.5, 3.5, 3, 2], atol=1e-6)


def test_rule_of_thumb__published_proportions_and_few_rows():
    levels, steps, points = rule_of_thumb(743_000_000)
    np.testing.assert_allclose(levels, [10e6, 500e3, 50e3, 10e3], rtol=0.01)
    assert (steps, points) == ((0, 10, 10, 10), (1, 10, 5, 3))
    assert rule_of_thumb(50_000)[0] == (675, 33) and rule_of_thumb(5000) == ((500, 50), (0, 10), (1, 5))
    for rows in (1, 9, 150, 3000, 20_000, 10**7):
        levels, steps, points = rule_of_thumb(rows)
        assert rows >= levels[0] and list(levels) == sorted(levels, reverse=True) and min(levels) >= 1
        assert len(levels) == len(steps) == len(points)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"levels": [3, 5]}, r"levels = \[3, 5\]; give descending numbers of cells from at most 40 rows"),
        ({"levels": [41, 5]}, "from at most 40 rows"),
        ({"levels": [5]}, "one of each for every level"),
        ({"resampling_steps": [0, -1]}, "at least 0 steps"),
        ({"points_per_cell": [0, 1]}, "1 point"),
    ],
)
def test_hierarchy__bad_levels_are_named(changes: dict, message: str):
    settings = {"levels": [8, 4], "resampling_steps": [0, 1], "points_per_cell": [1, 2], **changes}
    with pytest.raises(ConfigError, match=message):
        hierarchy(np.random.default_rng(0).normal(size=(40, 3)), **settings, seed=0)


def test_weights__targets_out_of_range_are_named():
    tree = Hierarchy((np.zeros(20_000_000, np.int64),), (np.zeros((1, 2), np.float32),))
    for target in (0, 20_000_001):
        with pytest.raises(ConfigError, match=f"target = {target:,} of 20,000,000 rows"):
            weights(tree, target, seed=0)
    with pytest.raises(ConfigError, match="a cell of 20,000,000 would be seen once in over 16,777,216 epochs"):
        weights(tree, 1, seed=0)
