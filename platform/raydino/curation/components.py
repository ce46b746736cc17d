"""Groups: from pairs of duplicates to the one copy of each picture that stays.

Pairs alone mislead: a chain of small changes joins pictures that have nothing in common. So every member of a group matches the
copy that represents it; what only matches another member may represent itself. Which copy that is follows from an order without
chance, so the outcome does not depend on the order of the input, on partitions or on machines.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from raydino.curation.duplicates import Edges


@dataclass(frozen=True)
class Groups:
    """For every row the row that represents it; itself where it is alone or the best copy."""

    representative: NDArray[np.int64]
    """[N]."""
    distance: NDArray[np.int64]
    """[N] bits between the row and its representative, 0 for representatives."""

    @property
    def kept(self) -> NDArray[np.bool_]:
        """bool [N], True for representatives."""
        return self.representative == np.arange(len(self.representative))


def groups(edges: Edges, rank: NDArray[np.int64]) -> Groups:
    """Groups of the rows 0 to N - 1 that `edges` join: by ascending `rank` [N] each free row takes its free neighbours.

    Raises:
        ValueError: `rank` is no permutation of the rows, so that two copies would tie.
    """
    count = len(rank)
    if not np.array_equal(np.sort(rank), np.arange(count)):
        raise ValueError("rank must be a permutation of the rows, so that no two copies tie")
    neighbours: dict[int, list[tuple[int, int]]] = {}
    for first, second, bits in zip(*(column.tolist() for column in edges.columns), strict=True):
        neighbours.setdefault(first, []).append((second, bits))
        neighbours.setdefault(second, []).append((first, bits))
    representative, distance = np.arange(count), np.zeros(count, dtype=np.int64)
    taken = np.zeros(count, dtype=bool)
    for row in sorted(neighbours, key=rank.__getitem__):
        if not taken[row]:
            for other, bits in neighbours[row]:
                if not taken[other] and rank[other] > rank[row]:
                    representative[other], distance[other], taken[other] = row, bits, True
    return Groups(representative, distance)


def components(edges: Edges, count: int) -> NDArray[np.int64]:
    """[count], the number of the connected component of each row: chains and all."""
    graph = coo_matrix((np.ones(len(edges)), (edges.first, edges.second)), (count, count))
    return connected_components(graph, directed=False)[1].astype(np.int64)
