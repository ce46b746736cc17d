"""k-means against plain loops, and the same cells for any order of rows and number of threads."""

import faiss
import numpy as np
import pytest

from raydino.config import ConfigError
from raydino.curation.kmeans import _means, kmeans, members, nearest
from raydino.keyed import generator


def vectors(count: int, *, seed: int = 0, spread: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.integers(0, 5, size=(count, 1)) * spread + rng.normal(size=(count, 8))).astype(np.float32)


def slow_nearest(points: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    apart = points[:, None].astype(np.float64) - centroids[None].astype(np.float64)
    return (apart**2).sum(axis=2)


def test_nearest__equals_all_distances():
    points, centroids = vectors(700), vectors(30, seed=1)
    cell, distance = nearest(points, centroids)
    slow = slow_nearest(points, centroids)
    assert (cell == slow.argmin(axis=1)).all()
    np.testing.assert_allclose(distance, slow.min(axis=1), rtol=1e-5)


def test_nearest__far_from_the_origin_small_differences_still_decide():
    """All lie within 2 of a point 2400 away, whose square has 23 bits: sums of 32-bit squares cannot tell them apart."""
    rng = np.random.default_rng(0)
    points, centroids = (
        (rng.normal(size=(n, 64)) * 0.1 + 300).astype(np.float32) for n in (3000, 200)
    )  # FAISS expands squares for so many
    expanded = (points**2).sum(1)[:, None] - 2 * points @ centroids.T + (centroids**2).sum(1)
    slow = np.stack([slow_nearest(points, one[None])[:, 0] for one in centroids]).argmin(axis=0)
    assert (expanded.argmin(axis=1) != slow).mean() > 0.9
    assert (nearest(points, centroids)[0] == slow).all()


def test_kmeans__centroids_are_the_means_of_their_cells_when_it_has_come_to_rest():
    points = vectors(400, spread=3)
    centroids = kmeans(points, 12, rng=generator(0, "k"), iterations=200)
    cell = slow_nearest(points, centroids).argmin(axis=1)
    means = [points[cell == number].mean(axis=0, dtype=np.float64) for number in range(len(centroids))]
    np.testing.assert_allclose(centroids, means, atol=1e-5)


def test_kmeans__finds_clusters_far_apart():
    centres = np.random.default_rng(3).normal(size=(40, 8)).astype(np.float32) * 100
    points = np.repeat(centres, 10, axis=0) + vectors(400) * np.float32(0.01)
    centroids = kmeans(points, 40, rng=generator(0, "k"))
    assert sorted(slow_nearest(centres, centroids).argmin(axis=1)) == list(range(40))


def test_kmeans__same_centroids_for_any_order_of_rows_and_number_of_threads():
    points, threads = vectors(3000), faiss.omp_get_max_threads()
    first = kmeans(points, 60, rng=generator(0, "k"), iterations=8)
    try:
        faiss.omp_set_num_threads(1)
        other = kmeans(points[np.random.default_rng(5).permutation(3000)], 60, rng=generator(0, "k"), iterations=8)
    finally:
        faiss.omp_set_num_threads(threads)
    assert first.tobytes() == other.tobytes()


def test_kmeans__fewer_different_vectors_than_cells_give_fewer_centroids():
    points = np.repeat(vectors(5), 20, axis=0)
    centroids = kmeans(points, 9, rng=generator(0, "k"))
    np.testing.assert_allclose(sorted(centroids[:, 0]), sorted(points[::20, 0]), atol=1e-6)
    assert nearest(points, centroids)[1].max() < 1e-10


@pytest.mark.parametrize("cells", [1, 250])
def test_kmeans__a_cell_for_all_and_one_for_each(cells: int):
    points = vectors(250)
    centroids = kmeans(points, cells, rng=generator(0, "k"))
    expected = points if cells == 250 else points.mean(axis=0, keepdims=True)
    np.testing.assert_allclose(np.sort(centroids, axis=0), np.sort(expected, axis=0), atol=1e-5)


def test_means__an_empty_cell_moves_to_the_vector_farthest_from_its_own_centroid():
    points, distance = vectors(50), np.arange(50.0)
    means = _means(points, np.arange(50) % 2, distance, cells=4)
    expected = [points[::2].mean(axis=0), points[1::2].mean(axis=0), points[49], points[48]]
    np.testing.assert_allclose(means, expected, atol=1e-6)


def test_members__rows_of_each_cell_empty_ones_included():
    assert [rows.tolist() for rows in members(np.array([2, 0, 2, 3]), 5)] == [[1], [], [0, 2], [3], []]


@pytest.mark.parametrize(
    ("points", "cells", "message"),
    [
        (np.zeros((3, 2), np.float32), 4, "cells = 4 for 3 vectors"),
        (np.zeros((3, 2), np.float32), 0, "cells = 0"),
        (np.zeros(3, np.float32), 1, r"shape \[3\]"),
        (np.array([[0, 1], [np.nan, 0]], np.float32), 1, "row 1 is not finite"),
    ],
)
def test_kmeans__bad_input_is_named(points: np.ndarray, cells: int, message: str):
    with pytest.raises(ConfigError, match=message):
        kmeans(points, cells, rng=generator(0, "k"))
