"""Balance: weights that even out what a collection shows, by hierarchical k-means (Vo et al. 2024, "Automatic Data Curation for
Self-Supervised Learning: A Clustering-Based Approach").

Plain k-means spends most of its cells where most images are, so sampling evenly over cells still follows the collection.
k-means of the centroids, repeated, spreads cells evenly over what there is to see, the more so if each level is clustered
again on the few points nearest to each centroid. A budget of images is then handed down the tree, at each node as evenly as
the sizes of its children allow (all section 3).

Where the paper draws images, this gives weights: the share of epochs in which a row is seen. So nothing is thrown away for good,
no image is copied, and cells too small or too many for the budget get their fraction instead of nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raydino.config import ConfigError
from raydino.curation.kmeans import ITERATIONS, Vectors, check_vectors, kmeans, members, nearest
from raydino.keyed import generator, key64

GRAIN = 1 << 24  # units of weight 1: all float32 has, so every weight is exact and they add up to the target exactly

# Published for 743 million images: 10 million, 500,000, 50,000 and 10,000 cells; 1, 10, 5 and 3 points a cell to cluster again,
# about half of what a cell has, in 1, 10, 10 and 10 steps. (One point a cell leaves as many points as cells, so the first level's
# one step only moves each centroid to a point; it is left out here.)
CHILDREN = (74, 20, 10, 5)  # points per cell, by level
STEPS = (0, 10, 10, 10)
POINTS = (1, 10, 5, 3)
# Points per cell where the published ones give a single level. Of (20, 10), (10, 10), (20, 5) and (10, 20) none evens out three
# planted long tails of 10, 30 and 100 clusters best; this one is worst at none.
SMALL = (10, 10)
LEAST_CELLS = 20  # at the top: cells that hold several things each cannot even them out


@dataclass(frozen=True)
class Hierarchy:
    """A tree of cells: rows in cells of level 1, those in cells of level 2, and so on. No cell is empty."""

    parents: tuple[NDArray[np.int64], ...]
    """By level: the cell of each row [N], then the cell of each cell of the level below."""
    centroids: tuple[Vectors, ...]
    """By level: [cells, D]."""

    def sizes(self) -> list[NDArray[np.int64]]:
        """By level: rows in each cell [cells]."""
        sizes, below = [], np.ones(len(self.parents[0]), dtype=np.int64)
        for parents, centroids in zip(self.parents, self.centroids, strict=True):
            below = _sums(below, parents, len(centroids))
            sizes.append(below)
        return sizes


def rule_of_thumb(rows: int) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """levels, resampling_steps and points_per_cell for so many rows: the published proportions, as many levels as make sense.

    5,000 rows get 500 and 50 cells; 50,000 get 675 and 33; a million 13,513, 675 and 67.
    """
    levels = _shrunk(rows, CHILDREN)
    if len(levels) < 2:
        levels = _shrunk(rows, SMALL)
        return levels, STEPS[: len(levels)], (1, SMALL[1] // 2)[: len(levels)]
    return levels, STEPS[: len(levels)], POINTS[: len(levels)]


def hierarchy(
    vectors: Vectors,
    *,
    levels: Sequence[int],
    resampling_steps: Sequence[int],
    points_per_cell: Sequence[int],
    iterations: int = ITERATIONS,
    seed: int,
) -> Hierarchy:
    """Cells of the rows, cells of those cells, and so on (Vo et al. 2024, section 3).

    Args:
        vectors: [N, D], finite; what is alike should be near in Euclidean distance, so normalise where cosine is meant.
        levels: cells of each level, from the rows up, descending; fewer come out where there are fewer different points.
        resampling_steps: by level: how often the points nearest to each centroid are clustered again.
        points_per_cell: by level: how many of them from each cell; about half of what it has.
        iterations: of each k-means.
        seed: of the first centroids.

    Raises:
        ConfigError: the levels do not descend from N, a list is of another length, or a vector is not finite.
    """
    check_vectors(vectors, "vectors")
    _check_levels(len(vectors), levels, resampling_steps, points_per_cell)
    points, parents, centroids = np.asarray(vectors, dtype=np.float32), [], []
    for level, (cells, steps, share) in enumerate(zip(levels, resampling_steps, points_per_cell, strict=True)):
        cells = min(cells, len(points))  # the level below may have come out smaller
        found = kmeans(points, cells, rng=generator(seed, "hierarchy", level, 0), iterations=iterations)
        for step in range(steps):
            again = points[_nearest_of_each(*nearest(points, found), share)]
            rng = generator(seed, "hierarchy", level, step + 1)
            found = kmeans(again, min(cells, len(again)), rng=rng, iterations=iterations)
        parents.append(nearest(points, found)[0])
        centroids.append(found)
        points = found
    return Hierarchy(tuple(parents), tuple(centroids))


def water_fill(sizes: NDArray[np.int64], target: int, *, seed: int) -> NDArray[np.int64]:
    """int64 [K]: `target` spread over cells as evenly as their sizes [K] allow, `sum` exactly.

    Each gets min(cut, size) with one cut for all (Vo et al. 2024, section 3; in closed form); what is left, less than one for
    each cell above the cut, goes to some of these by key. Raises ConfigError if the target is not within 0 and the sum of sizes.
    """
    total = int(sizes.sum())
    if not 0 <= target <= total:
        raise ConfigError(f"target = {target:,} of {total:,}; give at most what there is.")
    order = np.argsort(sizes, kind="stable")
    ascending = sizes[order]
    below = np.concatenate([[0], np.cumsum(ascending)])
    filled = below[:-1] + ascending * np.arange(len(sizes), 0, -1)  # given out if the cut is at this size
    whole = int(np.searchsorted(filled, target, side="right"))  # cells that are taken whole
    above = order[whole:]
    if not len(above):
        return sizes.copy()
    cut, left = divmod(target - int(below[whole]), len(above))
    amounts = np.minimum(sizes, cut)
    amounts[generator(seed, "water").permutation(np.sort(above))[:left]] += 1
    return amounts


def weights(tree: Hierarchy, target: int, *, seed: int) -> NDArray[np.float32]:
    """float32 [N], in (0, 1]: the share of epochs in which a row is seen, so that an epoch has `target` rows, balanced.

    Rows of a cell have the same weight but for 2⁻²⁴; together they have what the cell gets. The float64 sum of all is `target`
    exactly. Raises ConfigError if the target is not within 1 and N, or too small for weights of 2⁻²⁴ and more.
    """
    rows = len(tree.parents[0])
    if not 1 <= target <= rows:
        raise ConfigError(
            f"target = {target:,} of {rows:,} rows; give 1 to {rows:,}: no row is seen twice in an epoch."
        )
    sizes = tree.sizes()
    amounts = water_fill(sizes[-1] * GRAIN, target * GRAIN, seed=seed)
    for level in range(len(sizes) - 1, 0, -1):
        below = np.empty(len(sizes[level - 1]), dtype=np.int64)
        for cell, children in enumerate(members(tree.parents[level], len(sizes[level]))):
            key = key64(seed, "cell", level, cell)
            below[children] = water_fill(sizes[level - 1][children] * GRAIN, int(amounts[cell]), seed=key)
        amounts = below
    each, left = np.divmod(amounts, sizes[0])
    if (starved := (each == 0) & (left < sizes[0])).any():
        raise ConfigError(
            f"target = {target:,} of {rows:,} rows: those of a cell of {int(sizes[0][starved].max()):,} would be seen once in "
            f"over {GRAIN:,} epochs; give a larger target."
        )
    cell = tree.parents[0]
    units = each[cell] + (_place(cell) < left[cell])
    return (units / GRAIN).astype(np.float32)


def _shrunk(rows: int, children: Sequence[int]) -> tuple[int, ...]:
    """Cells by level, with so many children each, up to the last level that still has enough; at least one level."""
    cells = rows // np.cumprod(children)
    return tuple(max(1, int(number)) for number in cells[: max(1, int((cells >= LEAST_CELLS).sum()))])


def _check_levels(rows: int, levels: Sequence[int], steps: Sequence[int], points: Sequence[int]) -> None:
    if not levels or not len(levels) == len(steps) == len(points):
        raise ConfigError(
            f"levels = {list(levels)}, resampling_steps = {list(steps)}, points_per_cell = {list(points)}; "
            "give one of each for every level, and at least one level."
        )
    if list(levels) != sorted(levels, reverse=True) or levels[0] > rows or min(levels) < 1:
        raise ConfigError(f"levels = {list(levels)}; give descending numbers of cells from at most {rows:,} rows to 1.")
    if min(steps) < 0 or min(points) < 1:
        raise ConfigError(
            f"resampling_steps = {list(steps)}, points_per_cell = {list(points)}; give at least 0 steps and 1 point."
        )


def _nearest_of_each(cell: NDArray[np.int64], distance: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """The `count` points of each cell that lie nearest to its centroid, ascending."""
    order = np.lexsort((distance, cell))
    return np.sort(order[_place(cell[order]) < count])


def _place(cell: NDArray[np.int64]) -> NDArray[np.int64]:
    """[N], how many of the same cell stand before."""
    order = np.argsort(cell, kind="stable")
    starts = np.searchsorted(cell[order], cell[order], side="left")
    place = np.empty(len(cell), dtype=np.int64)
    place[order] = np.arange(len(cell)) - starts
    return place


def _sums(values: NDArray[np.int64], cell: NDArray[np.int64], cells: int) -> NDArray[np.int64]:
    sums = np.zeros(cells, dtype=np.int64)
    np.add.at(sums, cell, values)
    return sums
