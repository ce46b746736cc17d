"""Retrieval against full tables of cosines, and planted pools of which the asked-for part comes back."""

import numpy as np
import pytest

from raydino.config import ConfigError
from raydino.curation.retrieve import CLUSTER, SAMPLE, in_cells_of_queries, near_queries, pool_cells


def cosines(pool: np.ndarray, queries: np.ndarray) -> np.ndarray:
    return directions(pool.astype(np.float64)) @ directions(queries.astype(np.float64)).T


def vectors(count: int, *, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(count, 6)) * rng.uniform(0.1, 9, size=(count, 1))).astype(np.float32)


@pytest.mark.parametrize("neighbours", [1, 4, 500])
def test_near_queries__equals_sorted_cosines(neighbours: int):
    pool, queries = vectors(300, seed=0), vectors(40, seed=1)
    found, table = near_queries(pool, queries, neighbours=neighbours), cosines(pool, queries)
    asked = {}
    for query in range(40):
        for row in np.argsort(-table[:, query])[:neighbours].tolist():
            asked.setdefault(row, []).append(query)
    assert found.reason == SAMPLE and found.rows.tolist() == sorted(asked)
    assert found.query.tolist() == [max(asked[row], key=lambda query: table[row, query]) for row in sorted(asked)]
    np.testing.assert_allclose(found.similarity, table[found.rows, found.query], atol=1e-6)
    assert found.mask(300).sum() == len(asked) and found.mask(300)[found.rows].all()


def topics(*, images: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ten directions, `images` pool vectors around each, and its topic for every one."""
    rng = np.random.default_rng(seed)
    centres, topic = rng.normal(size=(10, 16)) * 5, rng.permutation(np.repeat(np.arange(10), images))
    return (centres[topic] + rng.normal(size=(10 * images, 16))).astype(np.float32), topic, centres.astype(np.float32)


def directions(part: np.ndarray) -> np.ndarray:
    return part / np.linalg.norm(part, axis=1, keepdims=True)


def queries_of(centres: np.ndarray, counts: dict[int, int]) -> np.ndarray:
    rng = np.random.default_rng(8)
    return np.concatenate([centres[t] + rng.normal(size=(n, 16)) for t, n in counts.items()]).astype(np.float32)


def test_in_cells_of_queries__cells_with_more_than_three_queries_give_their_images():
    pool, topic, centres = topics(images=50)
    queries = queries_of(centres, {2: 4, 5: 9, 7: 3})
    found = in_cells_of_queries(pool, queries, seed=0, centroids=directions(centres))
    assert found.reason == CLUSTER and set(found.rows) == set(np.flatnonzero(np.isin(topic, [2, 5])))
    table = cosines(pool, queries)
    same = {2: range(4), 5: range(4, 13)}
    assert found.query.tolist() == [max(same[topic[row]], key=lambda query: table[row, query]) for row in found.rows]


def test_in_cells_of_queries__takes_no_more_than_asked_of_a_cell_and_in_all():
    pool, topic, centres = topics(images=50)
    queries = queries_of(centres, {2: 4, 5: 9, 7: 4})
    given = {"per_cell": 20, "centroids": directions(centres)}
    found = in_cells_of_queries(pool, queries, **given, seed=0)
    assert np.bincount(topic[found.rows], minlength=10).tolist() == [0, 0, 20, 0, 0, 20, 0, 20, 0, 0]
    fewer = in_cells_of_queries(pool, queries, **given, most=33, seed=0)
    assert len(fewer.rows) == 33 and set(fewer.rows) < set(found.rows) and len(set(topic[fewer.rows])) == 3
    other = in_cells_of_queries(pool, queries, **given, seed=1)
    assert set(other.rows) != set(found.rows)


def test_in_cells_of_queries__shared_centroids_give_the_same():
    pool, _, centres = topics(images=30)
    queries, centroids = queries_of(centres, {1: 6}), pool_cells(pool, cells=12, seed=4)
    own = in_cells_of_queries(pool, queries, cells=12, seed=4)
    shared = in_cells_of_queries(pool, queries, seed=4, centroids=centroids)
    assert len(own.rows) and own.rows.tolist() == shared.rows.tolist()


def test_in_cells_of_queries__nothing_asked_for_gives_nothing():
    pool, _, centres = topics(images=20)
    found = in_cells_of_queries(pool, queries_of(centres, {1: 3}), cells=10, seed=0)
    assert len(found.rows) == len(found.query) == len(found.similarity) == found.mask(200).sum() == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"queries": np.ones((3, 5), np.float32)}, "queries has 5 dimensions and pool 6"),
        ({"queries": np.ones((0, 6), np.float32)}, r"queries has the shape \[0, 6\]"),
        ({"pool": np.full((3, 6), np.nan, np.float32)}, "pool: row 0 is not finite"),
        ({"neighbours": 0}, "neighbours = 0"),
    ],
)
def test_near_queries__bad_input_is_named(changes: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        near_queries(**{"pool": vectors(20, seed=0), "queries": vectors(3, seed=1), **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"per_cell": 0}, "per_cell = 0"), ({"most": 0}, "most = 0"), ({}, "cells = 100,000 for 20")],
)
def test_in_cells_of_queries__bad_settings_are_named(changes: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        in_cells_of_queries(vectors(20, seed=0), vectors(3, seed=1), seed=0, **changes)
