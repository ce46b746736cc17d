"""Fingerprints of a million pictures that nobody took, for timing the search for duplicates.

A row is the fingerprint, by the published rule, of a grey picture of 32 × 32 whose spectrum is that of a photograph's thumbnail,
with signs drawn anew about their mean; every tenth has a border. Hashes of such pictures lie as far apart as those of photographs
(mean 124.0, standard deviation 8.1 bits; cifar10 123.9 and 8.4, caltech101 125.1 and 8.4), and so do their keys (medians 0, 40,
76, 76, 76, 76, 76, 114; cifar10 0, 37, 76, 76, 75, 75, 71, 113). What they lack is likeness beyond chance, so it is planted: one
row of a hundred is a copy, moved from its original by as many bits as real changes move photographs; and as many rows as
photographs would have are twins, near in hash and told apart by the second look.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dctn, idctn

from raydino.curation.fingerprint import _MIRROR, CROPS, KEYS, LOW, MIRROR, PICTURE, THUMB, _axis, _bits
from raydino.curation.table import numbered
from raydino.keyed import generator

COPIES = 0.01  # of the rows
BORDERED = 0.1  # of the rows; 0.11 of imagenet-sample, 0.07 of cifar10
BLOCK = 20_000  # rows made at once
REJECTED = 9e-8  # of all pairs meet and are rejected: 18 in 20,000 rows of cifar10
TWIN = 44  # bits: as far as still meets, and of another thumbnail
# Bits between a photograph and its changed version, least over the keys: share of 108 photographs × 25 changes of
# near_duplicates.py up to so many bits, without the 3 % that lie beyond the radius.
BITS, SHARES = (0, 4, 8, 16, 24, 32, 40, 48), (0.23, 0.53, 0.67, 0.76, 0.83, 0.90, 0.97, 1.0)
# Another picture added with this weight moves the hash by so many bits (median of 3,000).
MOVED, WEIGHT = (0, 5, 9, 17, 25, 32, 39, 45, 55), (0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8)


class Pictures:
    """Grey pictures with spectra of photographs."""

    def __init__(self, thumbs: NDArray[np.uint8]) -> None:
        spectra = np.asarray(dctn(thumbs.astype(np.float32), axes=(1, 2), norm="ortho"))
        spectra[:, 0, 0] = 0
        self.energy = np.sqrt(np.square(spectra).sum((1, 2), keepdims=True))
        self.spectra = (spectra / self.energy)[self.energy[:, 0, 0] > 20 * THUMB]  # of a contrast to be compared
        self.mean = self.spectra.mean(0)

    def drawn(self, rng: np.random.Generator, count: int) -> NDArray[np.float32]:
        """[count, 32, 32], spectra of energy 1."""
        chosen = self.spectra[rng.integers(0, len(self.spectra), count)]
        signs = 2 * rng.integers(0, 2, chosen.shape, dtype=np.int8) - 1
        return self.mean + (chosen - self.mean) * signs


def grey(spectra: NDArray[np.float32]) -> NDArray[np.uint8]:
    """[N, 32, 32], the pictures with these spectra, of standard deviation 45."""
    spectra = spectra / np.sqrt(np.square(spectra).sum((1, 2), keepdims=True))
    pictures = np.asarray(idctn(spectra * (45 * THUMB), axes=(1, 2), norm="ortho"))
    return np.rint(pictures + 120).clip(0, 255).astype(np.uint8)


def hashed(whole: NDArray[np.uint8], picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[N, 10, 32], what `fingerprint` gives for grey pictures of 32 × 32, many at once."""
    axis = _axis(THUMB)
    out = np.empty((len(whole), len(KEYS), LOW, LOW), np.float32)
    half = whole.astype(np.float32) @ axis.T
    for key, (v, h) in enumerate(CROPS):
        out[:, key] = axis[v * LOW : (v + 1) * LOW] @ half[:, :, h * LOW : (h + 1) * LOW]
    out[:, PICTURE] = axis[:LOW] @ (picture.astype(np.float32) @ axis[:LOW].T)
    out[:, MIRROR] = out[:, PICTURE] * _MIRROR
    return _bits(out.reshape(-1, LOW, LOW)).reshape(len(whole), len(KEYS), 32)


def framed(pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The pictures, smaller, in a white border of 2 pixels."""
    at = (np.arange(28) + 0.5) / 28 * THUMB - 0.5
    weights = (1 - np.abs(at.clip(0, THUMB - 1)[:, None] - np.arange(THUMB)[None])).clip(0, 1).astype(np.float32)
    out = np.full_like(pictures, 250)
    out[:, 2:30, 2:30] = np.rint(weights @ pictures.astype(np.float32) @ weights.T)
    return out


def made(folder: Path, pictures: Pictures, count: int) -> None:
    """Writes a table of `count` rows, and which are copies of which: the last rows, twins before them."""
    copies, twins = round(COPIES * count), round(REJECTED * count**2 / 2)
    fresh = count - copies - twins
    source = generator(0, "sources", count).choice(fresh, copies + twins, replace=False)
    rng = generator(0, "changes", count)
    moved = np.interp(rng.random(copies + twins), SHARES, BITS)
    aimed = np.where(np.arange(copies + twins) < twins, TWIN, moved)
    weights = np.interp(aimed, MOVED, WEIGHT).astype(np.float32)
    columns = {
        "pixels": generator(0, "pixels").integers(0, 1 << 62, (count, 2)).view("V16").reshape(-1),
        "hashes": np.empty((count, len(KEYS), 32), np.uint8),
        "thumbs": np.empty((count, THUMB, THUMB), np.uint8),
        "comparable": np.ones(count, bool),
    }
    framing, inner = generator(0, "borders", count).random(count) < BORDERED, []
    spectra = np.empty((copies + twins, THUMB, THUMB), np.float32)
    for start in range(0, count, BLOCK):
        block = slice(start, min(start + BLOCK, count))
        drawn = pictures.drawn(generator(0, "rows", count, start), block.stop - start)
        kept = np.flatnonzero((source >= start) & (source < block.stop))
        spectra[kept] = drawn[source[kept] - start]
        changed = np.arange(max(start, fresh), block.stop) - fresh
        if len(changed):
            other = drawn[-len(changed) :]
            drawn[-len(changed) :] = spectra[changed] + weights[changed, None, None] * other
        shown = grey(drawn)
        whole = np.where(framing[block, None, None], framed(shown), shown)
        columns["hashes"][block], columns["thumbs"][block] = hashed(whole, shown), whole
        inner.append(shown[framing[block]])
    columns |= {"pictures": np.concatenate(inner), "bordered": numbered(framing)}
    for name, column in columns.items():
        np.save(folder / f"{name}.npy", column)
    np.save(folder / "source.npy", source[twins:])
