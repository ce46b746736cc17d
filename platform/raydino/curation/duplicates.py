"""Duplicates: which fingerprints show the same picture.

Candidates are pairs whose hashes lie within a radius: up to 100,000 images found by comparing all of them (FAISS, 10 · N²
comparisons of 2 to 5 ns), above among the nearest cells of a k-means. A candidate counts only if a second look at the thumbnails
agrees. The search is cut into pieces, which threads or a cluster do alike.
"""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raydino.curation.fingerprint import KEYS, PICTURE
from raydino.curation.second_look import AGREEMENT, agreement, seen
from raydino.curation.spread import Spread, here
from raydino.curation.table import Table
from raydino.keyed import generator

RADIUS = 48  # bits of 256: recompression, resizing, tone, small crops and logos lie below, other photographs from about 80 on
QUERIES = 1024  # hashes compared at once
PIECE = 16 * QUERIES  # of the queries; seconds of work, and never a function of who does it
HITS = 16_384  # thumbnails compared at once: 200 MB
EXACT = 1_000_000  # hashes; 110,000 images then take five to eight minutes of one core, by cells a quarter of that
CELL = 2_000  # hashes of a cell
PROBES = 64  # cells looked into for each image; 99.2 % of planted copies are met among 10⁶ rows; by 32 cells 98.0, by 128 99.8 %
POINTS = 16  # hashes for each centre of a cell, to train on: 64 find no more copies and take four times as long
ADDED = 1 << 18  # hashes added at once, copied for it
_FOUND = pa.schema([("first", pa.int64()), ("second", pa.int64()), ("bits", pa.int64()), ("agreement", pa.float32())])


@dataclass(frozen=True)
class Edges:
    """Pairs of rows that show the same picture; `first` is a row of one table, `second` of the other."""

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    distance: NDArray[np.int64]
    """Bits of 256 between the hashes that met; 0 for equal pixels."""

    def __len__(self) -> int:
        return len(self.first)

    @property
    def columns(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """first, second, distance."""
        return self.first, self.second, self.distance


@dataclass(frozen=True)
class Pairs:
    """Pairs of rows whose hashes met, each once, in order; whether they show the same picture is for thresholds to say."""

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    bits: NDArray[np.int64]
    """Least bits of 256 between hashes of the two, of those under which the second look agrees if there are any."""
    agreement: NDArray[np.float32]
    """Of the thumbnails, under the same hashes."""

    def __len__(self) -> int:
        return len(self.first)

    def joined(self, radius: int) -> Edges:
        """Those that show the same picture."""
        same = (self.bits <= radius) & (self.agreement >= AGREEMENT)
        return Edges(self.first[same], self.second[same], self.bits[same])


def within(table: Table, *, radius: int = RADIUS) -> Edges:
    """All pairs of one table that show the same picture, first < second, each once with its least distance."""
    return search(table, None, radius=radius).joined(radius)


def between(one: Table, other: Table, *, radius: int = RADIUS) -> Edges:
    """All pairs of a row of `one` and a row of `other` that show the same picture, each once with its least distance."""
    return search(one, other, radius=radius).joined(radius)


def search(one: Table, other: Table | None, *, radius: int, new: int = 0, spread: Spread | None = None) -> Pairs:
    """Pairs of rows up to `radius` bits apart, or of equal pixels: of `one` and `other`, or within `one`, then first < second.

    The whole image, and the picture without its border, of either side are compared with every key of the other, so it does not
    matter which of two is the crop. Of rows of one table with equal pixels only pairs with the first of them are sure to be here:
    remove such copies before.

    Args:
        one: fingerprints.
        other: fingerprints; None searches within `one`.
        radius: bits of 256.
        new: of a search within `one`: pairs of two of its first rows, as many as this, are known and not sought.
        spread: where it is done; None takes a thread here.
    """
    spread = spread or here(1)
    passes = (
        [_Search(one, one, radius, new)]
        if other is None
        else [_Search(one, other, radius), _Search(other, one, radius)]
    )
    equal = _equal_pixels(one, one if other is None else other)
    parts = [Pairs(*equal, np.ones(len(equal[0]), np.float32))]
    for turned, part in enumerate(passes):
        for table in spread(part, part.pieces):
            first, second, bits, agreed = (table[name].to_numpy() for name in _FOUND.names)
            parts.append(Pairs(second, first, bits, agreed) if turned else Pairs(first, second, bits, agreed))
    first, second, bits, agreed = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("first", "second", "bits", "agreement")
    )
    if other is None:
        apart = (first != second) & (np.maximum(first, second) >= new)
        low, high = np.minimum(first, second)[apart], np.maximum(first, second)[apart]
        return _least(low, high, bits[apart], agreed[apart])
    return _least(first, second, bits, agreed)


class _Search:
    """Compares the pictures of one table with all keys of another, in pieces. Travels without its index."""

    def __init__(self, whole: Table, keyed: Table, radius: int, new: int = 0) -> None:
        self.whole, self.keyed, self.radius, self.new = whole, keyed, radius, new
        asking = _uses(whole)
        asking[:, 1:PICTURE] = False
        self.queries, self.views = np.nonzero(asking)
        self.targets, self.keys = np.nonzero(_uses(keyed))
        self.size = PIECE
        self.pieces = -(-len(self.queries) // self.size) if len(self.targets) else 0
        self.cells = _cells(keyed.hashes[self.targets, self.keys])
        self._lock, self._found = threading.Lock(), None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_lock": None, "_found": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._lock = threading.Lock()

    def __call__(self, number: int) -> Iterator[pa.Table]:
        """Pairs of a piece of the queries: rows of `whole` and `keyed`, bits, agreement; each pair once."""
        with self._lock:
            self._found = self._found or _index(self.keyed.hashes[self.targets, self.keys], self.cells)
        parts = []
        for start in range(number * self.size, min((number + 1) * self.size, len(self.queries)), QUERIES):
            here_ = slice(start, min(start + QUERIES, (number + 1) * self.size))
            for rows, view, others, key, bits in self._near(self._found, self.queries[here_], self.views[here_]):
                agreed = agreement(seen(self.whole, rows, view), seen(self.keyed, others, key))
                found = _least(rows, others, bits, agreed)
                parts.append(pa.table([found.first, found.second, found.bits, found.agreement], schema=_FOUND))
        yield pa.concat_tables([_FOUND.empty_table(), *parts])

    def _near(
        self, index: faiss.IndexBinary, rows: NDArray[np.int64], view: NDArray[np.int64]
    ) -> Iterator[tuple[NDArray[np.int64], ...]]:
        """Rows and key (all of it, or without its border) of `whole`, rows and key of `keyed`, and distance."""
        asked = np.ascontiguousarray(self.whole.hashes[rows, view])
        limits, bits, found = index.range_search(asked, self.radius + 1)  # pyright: ignore[reportCallIssue] it takes what lies below
        hits = np.repeat(np.arange(len(rows)), np.diff(limits.astype(np.int64)))
        columns = (rows[hits], view[hits], self.targets[found], self.keys[found], bits.astype(np.int64))
        if self.whole is self.keyed:  # an image has met itself, and old ones each other
            other = (columns[0] != columns[2]) & (np.maximum(columns[0], columns[2]) >= self.new)
            columns = tuple(column[other] for column in columns)
        for block in range(0, len(columns[0]), HITS):  # thousands of equal images make millions of hits
            yield tuple(column[block : block + HITS] for column in columns)


def _uses(table: Table) -> NDArray[np.bool_]:
    """[N, keys], which hashes count: those of comparable images, the picture's only if there is a border around it."""
    use = np.repeat(table.comparable[:, None], len(KEYS), axis=1)
    use[:, PICTURE] &= table.bordered >= 0
    return use


def _cells(hashes: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
    """Centres of the cells of hashes [M, 32]; None where there are few enough to compare with all of them."""
    if len(hashes) <= EXACT:
        return None
    cells = 2 ** round(np.log2(len(hashes) / CELL))
    index = faiss.IndexBinaryIVF(quantizer := faiss.IndexBinaryFlat(256), 256, cells)
    index.cp.niter, index.cp.min_points_per_centroid, index.cp.max_points_per_centroid = 10, 1, POINTS
    chosen = generator(0, "cells of hashes").choice(len(hashes), min(len(hashes), POINTS * cells), replace=False)
    index.train(np.ascontiguousarray(hashes[np.sort(chosen)]))  # pyright: ignore[reportCallIssue] SWIG's own signature
    centres: Any = quantizer  # SWIG's own signature
    return faiss.vector_to_array(centres.xb).reshape(-1, 32).copy()


def _index(hashes: NDArray[np.uint8], cells: NDArray[np.uint8] | None) -> faiss.IndexBinary:
    """Of hashes [M, 32]: compared with all of them or, where there are cells, with those in the nearest ones."""
    index: Any = faiss.IndexBinaryFlat(256)
    if cells is not None:
        index.add(cells)
        index.this.disown()  # FAISS keeps a bare pointer to it; the other index owns it from here on
        index = faiss.IndexBinaryIVF(index, 256, len(cells))
        index.own_fields, index.is_trained, index.nprobe = True, True, PROBES
    for start in range(0, len(hashes), ADDED):
        index.add(np.ascontiguousarray(hashes[start : start + ADDED]))
    return index


def _equal_pixels(one: Table, other: Table) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of equal pixels; of many equal ones each is paired with the first, which keeps them connected."""
    _, first = np.unique(other.pixels, return_index=True)
    values = other.pixels[first]
    place = np.searchsorted(values, one.pixels)
    place[place == len(values)] = 0
    same = values[place] == one.pixels if len(values) else np.zeros(len(one), dtype=bool)
    rows = np.flatnonzero(same)
    return rows, first[place[same]].astype(np.int64), np.zeros(len(rows), dtype=np.int64)


def _least(
    first: NDArray[np.int64], second: NDArray[np.int64], bits: NDArray[np.int64], agreed: NDArray[np.float32]
) -> Pairs:
    """Each pair once, in order: under the nearest hashes of those under which the second look agrees, else of all."""
    order = np.lexsort((-agreed, bits, agreed < AGREEMENT, second, first))
    first, second = first[order], second[order]
    new = np.ones(len(first), dtype=bool)
    new[1:] = (first[1:] != first[:-1]) | (second[1:] != second[:-1])
    return Pairs(first[new], second[new], bits[order][new], agreed[order][new])
