"""k-means: cells of vectors, the same whatever the order of the rows and the number of threads.

FAISS finds the two nearest centroids of each vector with 32-bit sums; which of the two it is, the distance and the means are
computed with 64 bits, since differences of large sums decide at the edges of cells. An iteration costs 2 · N · cells · D
operations.
"""

import faiss
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from raydino.config import ConfigError

Vectors = NDArray[np.float32]

ITERATIONS = 50  # of Lloyd, as published for hierarchical k-means
ROWS = 4096  # compared at once: 64 MB of differences at 1024 dimensions
ROUND = 4  # k-means++ proposes a quarter of the seeds there are at once: most are accepted, and rounds are few
PROPOSALS = 2048  # at most, since they are compared with each other one by one


def kmeans(vectors: Vectors, cells: int, *, rng: np.random.Generator, iterations: int = ITERATIONS) -> Vectors:
    """Centroids [at most cells, D] of Lloyd's k-means from k-means++ seeds; fewer where there are fewer different vectors.

    Args:
        vectors: [N, D], finite.
        cells: centroids asked for, at most N.
        rng: draws the seeds.
        iterations: of Lloyd, unless no vector changes its cell before.

    Raises:
        ConfigError: there are fewer vectors than cells, or one is not finite.
    """
    check_vectors(vectors, "vectors")
    if not 1 <= cells <= len(vectors):
        raise ConfigError(f"cells = {cells:,} for {len(vectors):,} vectors; give 1 to {len(vectors):,}.")
    whole = vectors[_by_content(vectors)]
    middle = whole.mean(axis=0, dtype=np.float64)
    whole = (whole - middle).astype(np.float32)  # a common offset would use up the 32 bits of the search
    centroids = whole[_seeds(whole, cells, rng)]
    before = np.full(len(whole), -1)
    for _ in range(iterations):
        cell, distance = _nearest(whole, centroids)
        if (cell == before).all():
            break
        before, centroids = cell, _means(whole, cell, distance, cells=len(centroids))
    met = np.unique(_nearest(whole, centroids)[0])
    return (centroids[met] + middle).astype(np.float32)


def nearest(vectors: Vectors, centroids: Vectors) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Nearest centroid of each vector, the first of equal ones: its number [N] and the squared distance [N]."""
    middle = centroids.mean(axis=0, dtype=np.float64)
    return _nearest((vectors - middle).astype(np.float32), (centroids - middle).astype(np.float32))


def members(cell: NDArray[np.int64], cells: int) -> list[NDArray[np.int64]]:
    """By cell: its rows, ascending."""
    return np.split(np.argsort(cell, kind="stable"), np.cumsum(np.bincount(cell, minlength=cells))[:-1])


def check_vectors(vectors: Vectors, name: str) -> None:
    """Raise ConfigError unless `vectors` is a table of finite numbers with a row and a column."""
    if vectors.ndim != 2 or not vectors.size:
        raise ConfigError(f"{name} has the shape {list(vectors.shape)}; it must be [N, D], with N and D at least 1.")
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        raise ConfigError(
            f"{name}: row {int(np.argmin(finite))} is not finite; embed that image again or leave it out."
        )


def _by_content(vectors: Vectors) -> NDArray[np.int64]:
    """An order of the rows that follows from their bytes alone."""
    whole = np.ascontiguousarray(vectors)
    return np.argsort(whole.view(f"V{whole.itemsize * whole.shape[1]}").reshape(-1), kind="stable")


def _seeds(vectors: Vectors, cells: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Rows drawn one after another by their squared distance to those drawn before: k-means++ (Arthur and Vassilvitskii 2007).

    Proposals are drawn many at a time by the distances before the round, and each is accepted with the share of its distance that
    the seeds accepted meanwhile have left of it. That gives the same probabilities as passing over all rows for each seed.
    """
    chosen = np.array([rng.integers(len(vectors))])
    distance = _nearest(vectors, vectors[chosen])[1]
    while len(chosen) < cells and distance.any():
        count = min(max(1, len(chosen) // ROUND), PROPOSALS)
        upto = np.cumsum(distance)
        proposals = np.searchsorted(upto, rng.random(count) * upto[-1], side="right")  # never a row of distance 0
        new: list[int] = []
        for row, chance in zip(proposals.tolist(), rng.random(count), strict=True):
            apart = vectors[new].astype(np.float64) - vectors[row]
            left = np.einsum("nd,nd->n", apart, apart).min(initial=distance[row])
            if chance * distance[row] < left:
                new.append(row)
        new = new[: cells - len(chosen)]
        chosen = np.concatenate([chosen, new])
        distance = np.minimum(distance, _nearest(vectors, vectors[new])[1])
    return chosen


def _nearest(vectors: Vectors, centroids: Vectors) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    index = faiss.IndexFlatL2(vectors.shape[1])
    index.add(np.ascontiguousarray(centroids))  # pyright: ignore[reportCallIssue] SWIG's own signature
    cell, distance = np.empty(len(vectors), dtype=np.int64), np.empty(len(vectors))
    for start in range(0, len(vectors), ROWS):
        part = np.ascontiguousarray(vectors[start : start + ROWS])
        found = index.search(part, min(2, len(centroids)))[1]  # pyright: ignore[reportCallIssue]
        found = np.sort(found, axis=1)
        apart = part[:, None].astype(np.float64) - centroids[found]
        exact = np.einsum("nkd,nkd->nk", apart, apart)
        best = exact.argmin(axis=1)[:, None]
        cell[start : start + ROWS] = np.take_along_axis(found, best, axis=1)[:, 0]
        distance[start : start + ROWS] = np.take_along_axis(exact, best, axis=1)[:, 0]
    return cell, distance


def _means(vectors: Vectors, cell: NDArray[np.int64], distance: NDArray[np.float64], *, cells: int) -> Vectors:
    """[cells, D] means of the cells; an empty one moves to a vector that lies farthest from its own centroid."""
    sums, counts = np.zeros((cells, vectors.shape[1])), np.bincount(cell, minlength=cells)
    step = max(ROWS, cells)  # each part adds a whole table of sums
    for start in range(0, len(vectors), step):
        part = cell[start : start + step]
        table = csr_matrix((np.ones(len(part)), (part, np.arange(len(part)))), shape=(cells, len(part)))
        sums += table @ vectors[start : start + step].astype(np.float64)
    means = (sums / np.maximum(counts, 1)[:, None]).astype(np.float32)
    empty = np.flatnonzero(counts == 0)
    means[empty] = vectors[np.argsort(-distance, kind="stable")[: len(empty)]]
    return means
