"""The second look: whether two images whose hashes met show the same picture, by their thumbnails.

It is independent evidence, since hashes of other pictures meet by chance, and those of scene twins, such as two shots of one
document, by nature.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray

from raydino.curation.fingerprint import CROPS, MIRROR, SPANS, THUMB
from raydino.curation.table import Table

AGREEMENT = 0.9  # of the thumbnails
SHIFTED = 0.02  # by how much more thumbnails must correlate that were moved,
COVERED = 0.04  # or of which a strip was left out: the best of several looks is better by chance, too
STRIP = 7  # pixels of 32: a bar of text covers a seventh to a fifth


def seen(table: Table, rows: NDArray[np.int64], key: NDArray[np.int64]) -> NDArray[np.float32]:
    """float32 [M, 32, 32], thumbnails of `rows` [M] as the keys [M] see them: cropped, or without the border and mirrored."""
    thumbs = table.thumbs[rows].astype(np.float32)
    for crop in np.unique(key[key < len(CROPS)]):
        vertical, horizontal = CROPS[crop]
        thumbs[key == crop] = _samples(vertical) @ thumbs[key == crop] @ _samples(horizontal).T
    inner = np.flatnonzero((key >= MIRROR) & (table.bordered[rows] >= 0))
    thumbs[inner] = table.pictures[table.bordered[rows[inner]]]
    mirrored = key == MIRROR
    thumbs[mirrored] = thumbs[mirrored][:, :, ::-1]
    return thumbs


@cache
def _samples(span: int) -> NDArray[np.float32]:
    """[32, 32], linear interpolation that brings stretch `span` of a side to the whole of it."""
    begin, length = SPANS[span]
    at = (begin + (np.arange(THUMB) + 0.5) / THUMB * length) * THUMB - 0.5
    weights = 1 - np.abs(at.clip(0, THUMB - 1)[:, None] - np.arange(THUMB)[None])
    return weights.clip(0, 1).astype(np.float32)


def agreement(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float32]:
    """[M], how far thumbnails [M, 32, 32] show the same: their correlation, at best 1.

    Where that is too low, the best of two more looks, each with a handicap since it is the best of several: moved by a pixel,
    which a crop between two keys needs; and without a strip along one side, where a bar of text may lie.
    """
    out = correlation(one, other)
    unsure = np.flatnonzero(out < AGREEMENT)
    a, b = one[unsure], other[unsure]
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            moved = correlation(_moved(a, down, right), _moved(b, -down, -right)) - SHIFTED
            out[unsure] = np.maximum(out[unsure], moved)
    for part in (np.s_[:, STRIP:], np.s_[:, :-STRIP], np.s_[:, :, STRIP:], np.s_[:, :, :-STRIP]):
        out[unsure] = np.maximum(out[unsure], correlation(a[part], b[part]) - COVERED)
    return out


def _moved(thumbs: NDArray[np.float32], down: int, right: int) -> NDArray[np.float32]:
    """What is left of thumbnails that lie moved over others."""
    return thumbs[:, max(0, down) : THUMB + min(0, down), max(0, right) : THUMB + min(0, right)]


def correlation(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float32]:
    """[M], zero-mean normalised correlation of pictures [M, H, W]; 0 for flat ones."""
    a, b = (part.reshape(len(part), np.prod(part.shape[1:], dtype=int)) for part in (one, other))
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    return (a * b).sum(1) / np.maximum(np.sqrt((a**2).sum(1) * (b**2).sum(1)), 1e-9)
