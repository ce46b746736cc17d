"""Components: from pairs of duplicates to groups, and from groups to the one copy that stays.

Pairs alone mislead: a chain of small changes joins pictures that have nothing in common. So every member of a group must match
the copy that represents it; those that do not are released and grouped again among themselves. Which copy represents a group is
decided by a total order without chance, so the outcome does not depend on the order of the input, on partitions or on machines.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from raydino.curation.duplicates import Edges

LARGE = 1000  # members from which a group is reported: a template, a placeholder, or thresholds too loose


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

    @property
    def large(self) -> NDArray[np.int64]:
        """Representatives of groups of `LARGE` members or more."""
        rows, count = np.unique(self.representative, return_counts=True)
        return rows[count >= LARGE]


def groups(edges: Edges, rank: NDArray[np.int64]) -> Groups:
    """Groups of the rows 0 to N - 1 that `edges` join; the member of least `rank` [N] represents each.

    `rank` is a permutation: two rows of equal rank would leave the choice to chance.

    Raises:
        ValueError: `rank` is no permutation of the rows.
    """
    count = len(rank)
    if not np.array_equal(np.sort(rank), np.arange(count)):
        raise ValueError("rank must be a permutation of the rows, so that no two copies tie")
    representative, distance = np.arange(count), np.zeros(count, dtype=np.int64)
    first, second, bits = edges.first, edges.second, edges.distance
    while len(first):
        labels = connected_components(coo_matrix((np.ones(len(first)), (first, second)), (count, count)))[1]
        best = np.full(labels.max() + 1, count, dtype=np.int64)
        np.minimum.at(best, labels, rank)
        head = np.argsort(rank)[best[labels]]  # the best member of each row's group
        # a member is settled if an edge joins it to its head
        for member, other in ((first, second), (second, first)):
            direct = head[member] == other
            representative[member[direct]], distance[member[direct]] = other[direct], bits[direct]
        settled = (representative != np.arange(count)) | (head == np.arange(count))
        left = ~settled[first] & ~settled[second]
        first, second, bits = first[left], second[left], bits[left]
    return Groups(representative, distance)
