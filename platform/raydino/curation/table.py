"""Fingerprints of many images as columns."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raydino.curation.fingerprint import KEYS, THUMB, Fingerprint


@dataclass(frozen=True)
class Table:
    """Fingerprints as columns; row i is the same image everywhere."""

    pixels: NDArray[np.void]
    """[N] 16 bytes."""
    hashes: NDArray[np.uint8]
    """[N, 10, 32]."""
    thumbs: NDArray[np.uint8]
    """[N, 32, 32]."""
    pictures: NDArray[np.uint8]
    """[B, 32, 32], thumbnails without the border, of the images that have one."""
    bordered: NDArray[np.int64]
    """[N], the row of `pictures` of each image; -1 without a border."""
    comparable: NDArray[np.bool_]
    """[N]."""

    def __len__(self) -> int:
        return len(self.comparable)

    @classmethod
    def of(cls, found: Sequence[Fingerprint]) -> "Table":
        """A table of fingerprints, in their order."""
        square = (-1, THUMB, THUMB)
        inner = [one.picture for one in found]
        return cls(
            np.array([np.void(one.pixels) for one in found], dtype="V16"),
            np.array([one.hashes for one in found], np.uint8).reshape(-1, len(KEYS), 32),
            np.array([one.thumb for one in found], np.uint8).reshape(square),
            np.array([one for one in inner if one is not None], np.uint8).reshape(square),
            numbered([one is not None for one in inner]),
            np.array([one.comparable for one in found], bool),
        )

    def take(self, rows: NDArray[np.int64]) -> "Table":
        """The table of some rows."""
        inner = self.bordered[rows]
        pictures, bordered = self.pictures[inner[inner >= 0]], numbered(inner >= 0)
        return Table(self.pixels[rows], self.hashes[rows], self.thumbs[rows], pictures, bordered, self.comparable[rows])


def numbered(chosen: Sequence[bool] | NDArray[np.bool_]) -> NDArray[np.int64]:
    """[N], running numbers of those that are True, -1 for the others."""
    marked = np.asarray(chosen, bool)
    return np.where(marked, np.cumsum(marked) - 1, -1)
