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


@dataclass(frozen=True)
class Groups:
    """For every row the row that represents it; itself where it is alone or the best copy."""

    representative: NDArray[np.int64]
    """[N]."""
    edge: NDArray[np.int64]
    """[N], the number of the edge between the row and its representative; -1 for representatives."""

    @property
    def kept(self) -> NDArray[np.bool_]:
        """bool [N], True for representatives."""
        return self.representative == np.arange(len(self.representative))


def groups(first: NDArray[np.int64], second: NDArray[np.int64], rank: NDArray[np.int64]) -> Groups:
    """Groups of the rows 0 to N - 1 that edges [E] join: by ascending `rank` [N] each free row takes its free neighbours.

    Raises:
        ValueError: `rank` is no permutation of the rows, so that two copies would tie.
    """
    count = len(rank)
    if not np.array_equal(np.sort(rank), np.arange(count)):
        raise ValueError("rank must be a permutation of the rows, so that no two copies tie")
    neighbours: dict[int, list[tuple[int, int]]] = {}
    for edge, (one, other) in enumerate(zip(first.tolist(), second.tolist(), strict=True)):
        neighbours.setdefault(one, []).append((other, edge))
        neighbours.setdefault(other, []).append((one, edge))
    representative, by = np.arange(count), np.full(count, -1)
    taken = np.zeros(count, dtype=bool)
    for row in sorted(neighbours, key=rank.__getitem__):
        if not taken[row]:
            for other, edge in neighbours[row]:
                if not taken[other] and rank[other] > rank[row]:
                    representative[other], by[other], taken[other] = row, edge, True
    return Groups(representative, by)


def components(first: NDArray[np.int64], second: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """[count], the number of the connected component of each row under edges [E]: chains and all."""
    graph = coo_matrix((np.ones(len(first)), (first, second)), (count, count))
    return connected_components(graph, directed=False)[1].astype(np.int64)
