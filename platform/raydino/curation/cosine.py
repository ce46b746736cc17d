"""Cosines: which rows of descriptors are as close as a rule says, a block of rows at a time.

A matrix product in 32 bits only proposes pairs: their cosine is computed again from multiples of 2⁻²⁴, whose products sum without
error in 64 bits in whatever order, so that it depends on the pair alone, not on blocks, threads or the machine.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raydino.config import ConfigError

BLOCK = 2048  # rows compared with as many: 16 MB of cosines
SLACK = 2e-4  # twice the rounding of the result, and far more than the error of a product in 32 bits (10⁻⁶)
CHECKED = 4096  # pairs whose cosine is computed at once: 64 MB at 1,024 dimensions
MOST = 100_000_000  # pairs: 2 GB, and as many as connected components are computed of in one process
FINE = 2.0**24  # steps to 1; every float16 is a multiple of such a step, and a sum of products below 2 has 49 bits

Vectors = NDArray[np.float16] | NDArray[np.float32]
"""[N, D] of unit norm; a row of zeros is in no pair."""
Places = NDArray[np.int64]


@dataclass(frozen=True)
class CosineRule:
    """From which cosine on images count as the same."""

    neighbours: int | None
    """Nearest images that each is compared with; None for all."""
    within: float
    """Least cosine between training images."""
    against: float
    """Least cosine to an evaluation image: lower, since a missed leak raises a score."""


DINOV2 = CosineRule(neighbours=64, within=0.6, against=0.45)
"""As LVD-142M was made, with SSCD descriptors (DINOv2, section 3 and appendix A)."""
SSCD = CosineRule(neighbours=None, within=0.75, against=0.45)
"""0.75: of pairs of DISC21 above it 90 % are copies (SSCD's authors, for disc_mixup); 0.45 as for LVD-142M."""


@dataclass(frozen=True)
class CosinePairs:
    """Pairs of rows, each once, in ascending order; `first` < `second` where both are rows of one set."""

    first: NDArray[np.int64]
    """[E]."""
    second: NDArray[np.int64]
    """[E]."""
    cosine: NDArray[np.float32]
    """[E], rounded to 10⁻⁴."""

    def __len__(self) -> int:
        return len(self.first)


@dataclass(frozen=True)
class Rule:
    """Which pairs are sought, and how."""

    least: float
    neighbours: int | None
    seed: int
    exact: bool

    def __post_init__(self) -> None:
        if not 0 < self.least <= 1:
            raise ConfigError(
                f"least = {self.least}: the least cosine of a pair is above 0 and at most 1, such as 0.75."
            )
        if self.neighbours is not None and self.neighbours < 1:
            raise ConfigError(f"neighbours = {self.neighbours}: give 1 or more (DINOv2: 64), or None for all pairs.")


@dataclass(frozen=True)
class Rows:
    """The rows of a set that are not zero, by place: the order of their content, which no order of the input changes."""

    vectors: Vectors
    rows: NDArray[np.int64]
    """Row at each place."""
    norms: NDArray[np.float64]
    """Norm at each place."""

    def __len__(self) -> int:
        return len(self.rows)

    @classmethod
    def of(cls, vectors: Vectors, name: str) -> "Rows":
        """The rows of `vectors`, which errors call `name`. Raises ValueError: see `pairs_within`."""
        if vectors.ndim != 2 or vectors.dtype not in (np.float16, np.float32):
            raise ValueError(f"{name} must be float16 or float32 [N, D], not {vectors.dtype} {list(vectors.shape)}")
        norms, content = np.empty(len(vectors)), np.empty(len(vectors), dtype=np.uint64)
        for start in range(0, len(vectors), BLOCK):
            part = np.ascontiguousarray(vectors[start : start + BLOCK])
            exact = np.rint(part.astype(np.float64) * FINE) / FINE
            norms[start : start + BLOCK] = np.sqrt(np.einsum("nd,nd->n", exact, exact))
            digests = b"".join(hashlib.blake2b(row, digest_size=8).digest() for row in part)
            content[start : start + BLOCK] = np.frombuffer(digests, dtype=np.uint64)
        if len(wrong := np.flatnonzero(~((norms == 0) | (np.abs(norms - 1) < 0.01)))):
            raise ValueError(
                f"{name}: row {wrong[0]} has a norm of {norms[wrong[0]]:g}; rows must be of unit norm, or zero"
            )
        rows = np.flatnonzero(norms)
        rows = rows[np.argsort(content[rows], kind="stable")]
        return cls(vectors, rows, norms[rows])

    def exact(self, places: Places) -> NDArray[np.float64]:
        """The rows at `places`, of which products can be summed without error."""
        return np.rint(self.vectors[self.rows[places]].astype(np.float64) * FINE) / FINE

    def unit(self, places: Places) -> NDArray[np.float32]:
        """The rows at `places`, of unit norm."""
        return self.vectors[self.rows[places]].astype(np.float32) / self.norms[places, None].astype(np.float32)


def unit(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """[N, D] of unit norm; rows of zeros stay zeros."""
    norms = np.linalg.norm(values, axis=1, keepdims=True)
    return np.divide(values, norms, out=np.zeros_like(values), where=norms > 0)


def centred(vectors: Vectors, mean: NDArray[np.floating]) -> Vectors:
    """Unit vectors again after `mean` [D] has been taken off, as SSCD's authors advise; zeros stay zeros.

    The mean is that of a large set of like images, without its rows of zeros, and the same for all that will be compared.
    """
    out = np.zeros_like(vectors)
    for start in range(0, len(vectors), BLOCK):
        part = vectors[start : start + BLOCK].astype(np.float32)
        shifted = np.where(part.any(axis=1, keepdims=True), part - mean.astype(np.float32), 0)
        out[start : start + BLOCK] = unit(shifted)
    return out


def close(one: Rows, mine: Places, other: Rows, theirs: Places, rule: Rule) -> Iterator[tuple[Places, Places]]:
    """Places of pairs that may satisfy `rule`; within one set the first is the lesser."""
    within = one is other
    for start in range(0, len(mine), BLOCK):
        rows = mine[start : start + BLOCK]
        left = one.unit(rows)
        for begin in range(0, len(theirs), BLOCK):
            columns = theirs[begin : begin + BLOCK]
            if within and columns[-1] <= rows[0]:
                continue
            cosine = left @ other.unit(columns).T
            may = cosine >= rule.least - SLACK
            if within and columns[0] <= rows[-1]:
                may &= rows[:, None] < columns
            if rule.neighbours is not None and may.sum() > rule.neighbours * sum(may.shape):
                may &= _among_nearest(cosine, rule.neighbours + 1)  # a row may be its own nearest here
            i, j = np.nonzero(may)
            if len(i):
                yield rows[i], columns[j]


def _among_nearest(cosine: NDArray[np.float32], count: int) -> NDArray[np.bool_]:
    """Whether a cosine is, but for an error of `SLACK`, one of the `count` greatest of its row or its column."""
    near = np.zeros(cosine.shape, dtype=bool)
    for axis in (0, 1):
        place = max(0, cosine.shape[axis] - count)
        near |= cosine >= np.partition(cosine, place, axis=axis).take([place], axis=axis) - SLACK
    return near


def measured(one: Rows, first: Places, other: Rows, second: Places, *, least: float) -> CosinePairs:
    """Of these pairs those whose cosine, once rounded, is at least `least`."""
    cosine = np.empty(len(first), dtype=np.float32)
    for start in range(0, len(first), CHECKED):
        a, b = first[start : start + CHECKED], second[start : start + CHECKED]
        dots = np.einsum("ed,ed->e", one.exact(a), other.exact(b))
        cosine[start : start + CHECKED] = np.round(dots / (one.norms[a] * other.norms[b]), 4)
    good = cosine >= np.float32(least)
    return CosinePairs(first[good], second[good], cosine[good])


def joined(parts: list[CosinePairs], rule: Rule, *, within: bool) -> CosinePairs:
    """Pairs of several searches, each once, and of these the nearest: what is not among the nearest of some is not of more."""
    pairs = ordered(
        *(np.concatenate([getattr(part, name) for part in parts]) for name in ("first", "second", "cosine"))
    )
    if rule.neighbours is not None:
        owner = np.concatenate([pairs.first, pairs.second if within else ~pairs.second])
        order = np.lexsort((np.concatenate([pairs.second, pairs.first]), -np.tile(pairs.cosine, 2), owner))
        begins = np.flatnonzero(np.diff(owner[order], prepend=owner[order[:1]] - 1))
        rank = np.empty(len(owner), dtype=np.int64)
        rank[order] = np.arange(len(owner)) - np.repeat(begins, np.diff(begins, append=len(owner)))
        keep = (rank < rule.neighbours).reshape(2, -1).any(0)
        pairs = CosinePairs(pairs.first[keep], pairs.second[keep], pairs.cosine[keep])
    if len(pairs) > MOST:
        raise ConfigError(
            f"more than {MOST:,} pairs are as close as {rule.least}; raise it, or keep the nearest neighbours only."
        )
    return pairs


def ordered(first: Places, second: Places, cosine: NDArray[np.float32]) -> CosinePairs:
    """In order, each pair once: its cosine is the same wherever it was found."""
    order = np.lexsort((second, first))
    first, second, cosine = first[order], second[order], cosine[order]
    new = np.ones(len(first), dtype=bool)
    new[1:] = (first[1:] != first[:-1]) | (second[1:] != second[:-1])
    return CosinePairs(first[new], second[new], cosine[new])
