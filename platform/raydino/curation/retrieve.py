"""Retrieval: from a large pool, what resembles a curated set of queries (DINOv2, Oquab et al. 2023, section 3 and appendix A).

LVD-142M was made so, from 744 million images left after deduplication, in either of two ways for each query set:

- sample-based, for sets of over a million images: the k = 4 nearest pool images of each query, by cosine (ImageNet-22k, Google
  Landmarks v2), or k = 32 (ImageNet-1k, the smaller set). The larger k, the more images several queries share.
- cluster-based, for small sets: k-means with 100,000 cells over the pool; each cell that holds more than 3 queries gives 10,000
  of its images, and a set at most a million in all, so that no set outweighs the others.

A warning. Those query sets were the training splits of benchmarks by which the model was then judged. Such a pool favours these
benchmarks over others: where evaluation data come from the same source as queries, say so beside every score. Leaks are another
matter: screen the pool against the evaluation splits first, since what lies nearest to a query is its copy.
"""

from dataclasses import dataclass

import faiss
import numpy as np
from numpy.typing import NDArray

from raydino.config import ConfigError
from raydino.curation.kmeans import ITERATIONS, Vectors, check_vectors, kmeans, members, nearest
from raydino.keyed import generator

NEIGHBOURS = 4  # published for sets of over 10 million and of 4 million images
NEIGHBOURS_FEW = 32  # published for one of 1.3 million
CELLS = 100_000  # of the pool, 7,440 images each for LVD-142M
QUERIES_LEAST = 4  # in a cell that gives: "more than 3"
PER_CELL = 10_000
MOST = 1_000_000  # for each query set
BLOCK = 1024  # queries compared at once
SAMPLE, CLUSTER = "near a query", "in a cell of queries"


@dataclass(frozen=True)
class Retrieved:
    """Rows of the pool that a query set asked for, each once, ascending."""

    reason: str
    """SAMPLE or CLUSTER."""
    rows: NDArray[np.int64]
    """[M]."""
    query: NDArray[np.int64]
    """[M] the query that asked for the row: of several the most similar."""
    similarity: NDArray[np.float32]
    """[M] cosine between the two."""

    def mask(self, rows: int) -> NDArray[np.bool_]:
        """bool [rows], True for rows of the pool that were asked for; those of several query sets are joined by `|`."""
        mask = np.zeros(rows, dtype=bool)
        mask[self.rows] = True
        return mask


def near_queries(pool: Vectors, queries: Vectors, *, neighbours: int = NEIGHBOURS) -> Retrieved:
    """Sample-based retrieval: the rows of the pool most similar to each query. The search is exact: 2 · N · Q · D operations.

    Args:
        pool: [N, D] embeddings.
        queries: [Q, D] embeddings by the same network.
        neighbours: for each query; published 4, and 32 (NEIGHBOURS_FEW) for a small query set.

    Raises:
        ConfigError: vectors of different length, none, or not finite; neighbours below 1.
    """
    pool, queries = _directions(pool, queries)
    if neighbours < 1:
        raise ConfigError(f"neighbours = {neighbours}; give at least 1, or {NEIGHBOURS} as published.")
    index = faiss.IndexFlatIP(pool.shape[1])
    index.add(pool)  # pyright: ignore[reportCallIssue] SWIG's own signature
    found = [
        index.search(queries[start : start + BLOCK], min(neighbours, len(pool)))[1]  # pyright: ignore[reportCallIssue]
        for start in range(0, len(queries), BLOCK)
    ]
    rows = np.concatenate(found)
    asking = np.repeat(np.arange(len(queries)), rows.shape[1])
    return _retrieved(SAMPLE, rows.reshape(-1), asking, pool, queries)


def in_cells_of_queries(
    pool: Vectors,
    queries: Vectors,
    *,
    cells: int = CELLS,
    queries_least: int = QUERIES_LEAST,
    per_cell: int = PER_CELL,
    most: int = MOST,
    iterations: int = ITERATIONS,
    seed: int,
    centroids: Vectors | None = None,
) -> Retrieved:
    """Cluster-based retrieval: images of the pool's cells that hold at least `queries_least` queries.

    Which images of a cell, and which of those above `most`, is not published: they are drawn by key.

    Args:
        pool: [N, D] embeddings.
        queries: [Q, D] embeddings by the same network.
        cells: of the pool; scale them with it, as with the other numbers: LVD-142M has 7,440 images a cell.
        queries_least: queries in a cell that gives images.
        per_cell: images from each such cell, at most.
        most: images in all, at most.
        iterations: of k-means.
        seed: of cells and draws.
        centroids: [cells, D] from `pool_cells`, to share them between query sets; None makes them.

    Raises:
        ConfigError: vectors of different length, none, or not finite; more cells than images; a number below 1.
    """
    for name, value in (("queries_least", queries_least), ("per_cell", per_cell), ("most", most)):
        if value < 1:
            raise ConfigError(f"{name} = {value}; give at least 1.")
    if centroids is None:
        centroids = pool_cells(pool, cells=cells, iterations=iterations, seed=seed)
    pool, queries = _directions(pool, queries)
    held, asking = (members(nearest(part, centroids)[0], len(centroids)) for part in (pool, queries))
    rows, query = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for number, (inside, asked) in enumerate(zip(held, asking, strict=True)):
        if len(asked) >= queries_least:
            rows.append(generator(seed, "retrieve", number).permutation(inside)[:per_cell])
            query.append(asked[_most_similar(pool[rows[-1]], queries[asked])])
    together = np.concatenate(rows)
    chosen = generator(seed, "retrieve").permutation(len(together))[:most]
    return _retrieved(CLUSTER, together[chosen], np.concatenate(query)[chosen], pool, queries)


def pool_cells(pool: Vectors, *, cells: int = CELLS, iterations: int = ITERATIONS, seed: int) -> Vectors:
    """[cells, D] centroids of the directions of the pool. Raises ConfigError as `in_cells_of_queries` does."""
    directions = _directions(pool, pool)[0]
    return kmeans(directions, cells, rng=generator(seed, "pool"), iterations=iterations)


def _directions(pool: Vectors, queries: Vectors) -> tuple[Vectors, Vectors]:
    """Both as vectors of length 1."""
    for name, vectors in (("pool", pool), ("queries", queries)):
        check_vectors(vectors, name)
    if pool.shape[1] != queries.shape[1]:
        raise ConfigError(
            f"queries has {queries.shape[1]} dimensions and pool {pool.shape[1]}; embed both with the same network."
        )
    pool, queries = (
        (part / np.maximum(np.linalg.norm(part.astype(np.float64), axis=1, keepdims=True), 1e-12)).astype(np.float32)
        for part in (pool, queries)
    )
    return pool, queries


def _most_similar(pool: Vectors, queries: Vectors) -> NDArray[np.int64]:
    """[N], the most similar query of each row of the pool."""
    parts = [(pool[start : start + BLOCK] @ queries.T).argmax(axis=1) for start in range(0, len(pool), BLOCK)]
    return np.concatenate([np.empty(0, np.int64), *parts])


def _retrieved(
    reason: str, rows: NDArray[np.int64], query: NDArray[np.int64], pool: Vectors, queries: Vectors
) -> Retrieved:
    """Each row once, with the most similar of the queries that asked for it, the first of equal ones."""
    similarity = np.einsum("md,md->m", pool[rows].astype(np.float64), queries[query].astype(np.float64))
    order = np.lexsort((query, -similarity, rows))
    _, first = np.unique(rows[order], return_index=True)
    kept = order[first]
    return Retrieved(reason, rows[kept], query[kept], similarity[kept].astype(np.float32))
