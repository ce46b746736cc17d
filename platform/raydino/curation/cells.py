"""Cells: pairs of images by the cosine of their descriptors, over all pairs of a set or within cells of like ones.

Up to `EXACT_BELOW` rows every pair is compared. Above, spherical k-means makes cells of about `CELL` rows, every row enters its
two nearest cells, and pairs are compared inside cells: two rows across a border meet in the cell next door, where assignment to
one cell alone, as in SemDeDup (Abbas et al. 2023, section 3), loses many. Only pairs come out and nothing is removed, so what is
removed later cannot have removed others.

The result is the same for any number of threads and any order of rows: cosines are exact but for their rounding (cosine.py),
k-means works with multiples of 2⁻¹¹, whose products sum without error in 32 bits, and everything goes by the order of the rows'
content.
"""

from collections.abc import Iterator

import faiss
import numpy as np
from numpy.typing import NDArray

from raydino.curation.cosine import BLOCK, CosinePairs, Places, Rows, Rule, Vectors, close, joined, measured, ordered
from raydino.curation.features import Progress
from raydino.keyed import generator

EXACT_BELOW = 100_000
"""Rows of a set up to which all pairs are compared. With 512 dimensions that takes under three minutes of a core, where embedding
so many images takes an hour and a half of it, and cells lose pairs."""
CELL = 2000  # rows to a centroid: a row then meets 4,000 others, and finding its cells costs about as much at 8 million rows
LARGEST = 20_000  # rows of a cell; larger ones are cut again
SHRINKS = 0.9  # of a cell, that a part may have to be cut again itself: a crowd of equal vectors has no parts
NEAREST = 2  # cells of a row
POINTS = 256  # of k-means, to a centroid: FAISS's own limit
ITERATIONS = 10  # of k-means; 20 found no more pairs among 50,000 photographs
MERGED = 4_000_000  # pairs found before they are sorted, and those met twice dropped: 250 MB on the way
COARSE = 2.0**11  # steps to 1


def _silent(_stage: str, _done: int, _total: int) -> None:
    pass


def pairs_within(
    vectors: Vectors,
    *,
    least: float,
    neighbours: int | None = None,
    seed: int = 0,
    exact_below: int = EXACT_BELOW,
    progress: Progress = _silent,
) -> CosinePairs:
    """Pairs of rows of one set whose cosine is at least `least`.

    Args:
        vectors: The rows.
        least: Least cosine, above 0.
        neighbours: A pair counts only if one of the two is among the so many nearest of the other; of equally near ones, those
            whose content comes first. None for all pairs.
        seed: Key of the rows that k-means sees.
        exact_below: Up to so many rows all pairs are compared.
        progress: Told of rows done.

    Raises:
        ConfigError: `least` or `neighbours` is out of range, or more than `MOST` pairs are found.
        ValueError: `vectors` is of another shape or type, or a row is neither zero nor of unit norm.
    """
    one = Rows.of(vectors, "vectors")
    rule = Rule(least, neighbours, seed, exact=len(one) <= exact_below)
    found = _pairs(one, one, rule, progress)
    low, high = np.minimum(found.first, found.second), np.maximum(found.first, found.second)
    return ordered(low, high, found.cosine)


def pairs_between(
    one: Vectors,
    other: Vectors,
    *,
    least: float,
    neighbours: int | None = None,
    seed: int = 0,
    exact_below: int = EXACT_BELOW,
    progress: Progress = _silent,
) -> CosinePairs:
    """Pairs of a row of `one` (`first`) and a row of `other` (`second`) whose cosine is at least `least`.

    As `pairs_within`; all pairs are compared if they are no more than those of one set of `exact_below` rows. The nearest of a
    row are rows of the other set, and a pair counts for either of its two.

    Raises:
        ConfigError: `least` or `neighbours` is out of range, or more than `MOST` pairs are found.
        ValueError: a set is of another shape or type, the two differ in dimension, or a row is neither zero nor of unit norm.
    """
    mine, theirs = Rows.of(one, "one"), Rows.of(other, "other")
    if one.shape[1] != other.shape[1]:
        raise ValueError(f"descriptors of {one.shape[1]} and {other.shape[1]} dimensions cannot be compared")
    rule = Rule(least, neighbours, seed, exact=2 * len(mine) * len(theirs) <= exact_below**2)
    found = _pairs(mine, theirs, rule, progress)
    return ordered(found.first, found.second, found.cosine)


def _pairs(one: Rows, other: Rows, rule: Rule, progress: Progress) -> CosinePairs:
    mine, theirs = np.arange(len(one)), np.arange(len(other))
    found, more, count = CosinePairs(mine[:0], mine[:0], np.empty(0, np.float32)), list[CosinePairs](), 0
    by = _by_rows if rule.exact else _by_cells
    for some, others in by(one, mine, other, theirs, (rule.seed,), progress):
        for first, second in close(one, some, other, others, rule):
            more.append(measured(one, first, other, second, least=rule.least))
            count += len(more[-1])
            if count > max(MERGED, len(found)):
                found, more, count = joined([found, *more], rule, within=one is other), [], 0
    found = joined([found, *more], rule, within=one is other)
    return CosinePairs(one.rows[found.first], other.rows[found.second], found.cosine)


def _by_rows(
    one: Rows, mine: Places, other: Rows, theirs: Places, _key: tuple[int, ...], progress: Progress
) -> Iterator[tuple[Places, Places]]:
    """All pairs: places of some rows of `one`, and of all that they have to be compared with."""
    for start in range(0, len(mine), BLOCK):
        yield mine[start : start + BLOCK], theirs[start if one is other else 0 :]
        progress("pairs by cosine", min(start + BLOCK, len(mine)), len(mine))


def _by_cells(
    one: Rows, mine: Places, other: Rows, theirs: Places, key: tuple[int, ...], progress: Progress
) -> Iterator[tuple[Places, Places]]:
    """Of the rows at `mine` and `theirs`, the places of those in each cell, ascending; large cells are cut again."""
    parts = [(one, mine)] if one is other else [(one, mine), (other, theirs)]
    size = sum(len(places) for _, places in parts)
    count = size // CELL
    if count <= NEAREST:  # every row would be nearly everywhere
        yield mine, theirs
        return
    index = _centroids(parts, count, key)
    cells, done = [_members(rows, places, index) for rows, places in parts], 0
    for number, (some, others) in enumerate(zip(cells[0], cells[-1], strict=True)):
        if LARGEST < max(len(some), len(others)) <= SHRINKS * size:
            yield from _by_cells(one, some, other, others, (*key, number), _silent)
        else:
            yield some, others
        done += len(some)
        progress("pairs by cosine", done // NEAREST, len(mine))


def _centroids(parts: list[tuple[Rows, Places]], count: int, key: tuple[int, ...]) -> faiss.IndexFlatIP:
    """`count` centroids of rows by spherical k-means, as an index by inner product."""
    draw, points, start = generator(key[0], "cells", *key[1:]), list[NDArray[np.float32]](), 0
    size = sum(len(places) for _, places in parts)
    chosen = np.sort(draw.choice(size, min(count * POINTS, size), replace=False))
    for rows, places in parts:
        here = chosen[(chosen >= start) & (chosen < start + len(places))]
        points.append(_coarse(rows.unit(places[here - start])))
        start += len(places)
    seen = np.concatenate(points)
    centroids = seen[draw.choice(len(seen), count, replace=False)]
    for _ in range(ITERATIONS):  # one at a time, since centroids go back to the grid between
        kmeans = faiss.Kmeans(seen.shape[1], count, niter=1, spherical=True, min_points_per_centroid=1)
        kmeans.train(seen, init_centroids=centroids)
        centroids = _coarse(np.asarray(kmeans.centroids))
    index = faiss.IndexFlatIP(seen.shape[1])
    index.add(centroids)  # pyright: ignore[reportCallIssue] SWIG's own signature
    return index


def _members(rows: Rows, places: Places, index: faiss.IndexFlatIP) -> list[Places]:
    """By cell, which of `places` are in it, ascending."""
    nearest = [np.empty((0, NEAREST), np.int64)]
    for start in range(0, len(places), BLOCK):
        points = _coarse(rows.unit(places[start : start + BLOCK]))
        nearest.append(index.search(points, NEAREST)[1])  # pyright: ignore[reportCallIssue] SWIG's own signature
    cell = np.concatenate(nearest).reshape(-1)
    order = np.argsort(cell, kind="stable")
    ends = np.cumsum(np.bincount(cell, minlength=index.ntotal))
    return [places[part // NEAREST] for part in np.split(order, ends[:-1])]


def _coarse(units: NDArray[np.float32]) -> NDArray[np.float32]:
    """Multiples of 2⁻¹¹: a sum of their products below 2 has at most 23 bits, and 32-bit floats keep 24."""
    return (np.rint(units * COARSE) / COARSE).astype(np.float32)
