"""Duplicates: which fingerprints show the same picture.

Candidates are pairs whose hashes lie within a radius, found by exact search over all of them (FAISS, 5 · N² comparisons at about
10⁹ a second and core). A candidate counts only if a second look agrees: the two thumbnails, brought to the same crop and mirror,
must correlate. Scene twins, such as two shots of one document, may pass the hash and fail here.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import faiss
import numpy as np
from numpy.typing import NDArray

from raydino.curation.fingerprint import KEYS, SHARES, THUMB, Fingerprint

RADIUS = 48  # bits of 256: recompression, resizing, tone, small crops and logos lie below, other photographs from about 80 on
CORRELATION = 0.9  # of the thumbnails
QUERIES = 1024  # hashes compared at once
HITS = 16_384  # thumbnails compared at once: 130 MB
FLIP = len(KEYS) - 1


@dataclass(frozen=True)
class Table:
    """Fingerprints as columns; row i is the same image everywhere."""

    pixels: NDArray[np.void]
    """[N] 16 bytes."""
    hashes: NDArray[np.uint8]
    """[N, 5, 32]."""
    thumbs: NDArray[np.uint8]
    """[N, 32, 32]."""
    comparable: NDArray[np.bool_]
    """[N]."""

    def __len__(self) -> int:
        return len(self.comparable)

    @classmethod
    def of(cls, found: Sequence[Fingerprint]) -> "Table":
        """A table of fingerprints, in their order."""
        if not found:
            empty = np.empty((0, len(KEYS), 32), np.uint8)
            return cls(np.empty(0, "V16"), empty, np.empty((0, THUMB, THUMB), np.uint8), np.empty(0, bool))
        return cls(
            np.array([np.void(one.pixels) for one in found], dtype="V16"),
            np.stack([one.hashes for one in found]),
            np.stack([one.thumb for one in found]),
            np.array([one.comparable for one in found]),
        )


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


def within(table: Table, *, radius: int = RADIUS) -> Edges:
    """All pairs of one table that show the same picture, first < second, each once with its least distance.

    Of rows with equal pixels only pairs with the first of them are sure to be here: remove such copies before.
    """
    pairs = _pairs(table, table, [(table, table)], radius=radius)
    apart = pairs.first != pairs.second
    low, high = np.minimum(pairs.first, pairs.second), np.maximum(pairs.first, pairs.second)
    return _least(low[apart], high[apart], pairs.distance[apart])


def between(one: Table, other: Table, *, radius: int = RADIUS) -> Edges:
    """All pairs of a row of `one` and a row of `other` that show the same picture, each once with its least distance.

    The whole image of either side is compared with every key of the other, so it does not matter which of two is the crop.
    """
    return _pairs(one, other, [(one, other), (other, one)], radius=radius)


def _pairs(one: Table, other: Table, passes: Sequence[tuple[Table, Table]], *, radius: int) -> Edges:
    """Each pass compares the whole images of its first table with all keys of its second; the second pass is turned round."""
    parts = [Edges(*_equal_pixels(one, other))]
    for turned, (whole, keyed) in enumerate(passes):
        for rows, others, key, distance in _near(whole, keyed, radius=radius):
            same = correlation(whole.thumbs[rows], keyed.thumbs[others], key) >= CORRELATION
            ends = (others[same], rows[same]) if turned else (rows[same], others[same])
            parts.append(_least(*ends, distance[same]))
    return _least(*(np.concatenate(column) for column in zip(*(part.columns for part in parts), strict=True)))


def correlation(whole: NDArray[np.uint8], keyed: NDArray[np.uint8], key: NDArray[np.int64]) -> NDArray[np.float64]:
    """Zero-mean normalised correlation of thumbnails [M, 32, 32]: of `whole`, and of `keyed` cropped or mirrored by `key` [M]."""
    out = np.empty(len(key))
    for number in range(len(KEYS)):
        chosen = key == number
        if chosen.any():
            out[chosen] = _correlation(whole[chosen], _aligned(keyed[chosen], number))
    return out


def _aligned(thumbs: NDArray[np.uint8], key: int) -> NDArray[np.uint8]:
    """Thumbnails as key `key` sees the image: mirrored, or the centre crop brought back to full size."""
    if key == FLIP:
        return thumbs[:, :, ::-1]
    if SHARES[key] == 1:
        return thumbs
    share = SHARES[key]
    shift = (1 - share) * THUMB / 2
    move = np.array([[share, 0, shift + (share - 1) / 2], [0, share, shift + (share - 1) / 2]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    moved = [np.asarray(cv2.warpAffine(thumb, move, (THUMB, THUMB), flags=flags), dtype=np.uint8) for thumb in thumbs]
    return np.stack(moved)


def _correlation(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> NDArray[np.float64]:
    a, b = (part.reshape(len(part), -1).astype(np.float32) for part in (one, other))
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    return (a * b).sum(1) / np.maximum(np.sqrt((a**2).sum(1) * (b**2).sum(1)), 1e-9)


def _near(
    whole: Table, keyed: Table, *, radius: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]]:
    """Rows of `whole`, rows and key of `keyed`, and distance, of comparable images up to `radius` bits apart."""
    queries, targets = np.flatnonzero(whole.comparable), np.flatnonzero(keyed.comparable)
    if not len(queries) or not len(targets):
        return
    index = faiss.IndexBinaryFlat(256)
    index.add(np.ascontiguousarray(keyed.hashes[targets].reshape(-1, 32)))  # pyright: ignore[reportCallIssue] SWIG's own signature
    for start in range(0, len(queries), QUERIES):
        rows = queries[start : start + QUERIES]
        asked = np.ascontiguousarray(whole.hashes[rows, 0])
        limits, bits, found = index.range_search(asked, radius + 1)  # pyright: ignore[reportCallIssue] it takes what lies below
        hits, others, key = (
            np.repeat(rows, np.diff(limits.astype(np.int64))),
            targets[found // len(KEYS)],
            found % len(KEYS),
        )
        if whole is keyed:  # an image has met itself
            other = hits != others
            hits, others, key, bits = hits[other], others[other], key[other], bits[other]
        for block in range(0, len(hits), HITS):  # thousands of equal images make millions of hits
            part = slice(block, block + HITS)
            yield hits[part], others[part], key[part], bits[part].astype(np.int64)


def _equal_pixels(one: Table, other: Table) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of equal pixels; of many equal ones each is paired with the first, which keeps them connected."""
    _, first = np.unique(other.pixels, return_index=True)
    values = other.pixels[first]
    place = np.searchsorted(values, one.pixels)
    place[place == len(values)] = 0
    same = values[place] == one.pixels if len(values) else np.zeros(len(one), dtype=bool)
    rows = np.flatnonzero(same)
    return rows, first[place[same]].astype(np.int64), np.zeros(len(rows), dtype=np.int64)


def _least(first: NDArray[np.int64], second: NDArray[np.int64], distance: NDArray[np.int64]) -> Edges:
    """Each pair once, with its least distance, in order."""
    order = np.lexsort((distance, second, first))
    first, second, distance = first[order], second[order], distance[order]
    new = np.ones(len(first), dtype=bool)
    new[1:] = (first[1:] != first[:-1]) | (second[1:] != second[:-1])
    return Edges(first[new], second[new], distance[new])
