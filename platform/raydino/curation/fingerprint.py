"""Fingerprint: what curation knows of an image, computed in the one decode that also judges it.

Two images are compared by their fingerprints alone, never by their bytes again: a 256-bit hash of low frequencies that survives
recompression, resizing and changes of tone; the same hash of three centre crops and of the mirror image, which meets small crops,
borders and flips; and a thumbnail as second evidence. Scores of quality are stored beside them and judged later, if at all.
The exact specification, with test vectors, stands in docs/curation.md; whatever changes a bit of it changes `SPEC`.
"""

import hashlib
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

SPEC = "dct256-1"
"""Name of this specification; hashes of different specifications are never compared."""
SIDE = 64  # pixels of the square that is transformed
LOW = 16  # frequencies kept in each direction
SHARES = (1.0, 0.95, 0.9, 0.8)  # of each side, the centre crops that are hashed
KEYS = (*(f"centre {share:g}" for share in SHARES), "flip")
"""What each hash is of; the first is the whole image."""
THUMB = 32  # side of the thumbnail, pixels
LEAST_STD = 12.0  # grey levels; flatter images have no structure to compare
LEAST_ENERGY = 4.0  # rms of the kept frequencies without the mean, grey levels: less, and noise decides the bits
MARGIN = 0.25  # of the rms of the kept frequencies
REDUCED = 256  # shorter side to which larger images are reduced first: scores then do not depend on resolution, and it is faster

Hash = NDArray[np.uint8]
"""uint8 [32], 256 bits."""


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """One image, about 1.3 kB."""

    pixels: bytes
    """16 bytes of the sha256 of size and RGB pixels: equal for images that differ in metadata or lossless coding only."""
    hashes: NDArray[np.uint8]
    """uint8 [5, 32], one hash for each of `KEYS`."""
    thumb: NDArray[np.uint8]
    """uint8 [32, 32], the whole image in grey, squeezed to a square."""
    comparable: bool
    """Whether there is enough structure for hashes to mean anything; others meet by `pixels` only."""
    mean: float
    """Mean grey, 0 to 255."""
    std: float
    """Standard deviation of grey, 0 to 255."""
    entropy: float
    """Entropy of the grey histogram, bits, 0 to 8."""
    sharpness: float
    """Variance of the Laplacian, at a shorter side of at most 256 pixels as all scores."""


def fingerprint(image: NDArray[np.uint8]) -> Fingerprint:
    """The fingerprint of RGB uint8 [H, W, 3]. A pure function of the pixels. Raises ValueError for another shape or type."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"an image must be uint8 [H, W, 3] with pixels, not {image.dtype} {list(image.shape)}.")
    height, width = image.shape[:2]
    whole = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)
    scale = min(1.0, REDUCED / min(height, width))
    grey = _shrunk(np.asarray(whole, dtype=np.uint8), max(1, round(height * scale)), max(1, round(width * scale)))
    coefficients = [_low_frequencies(_centre(grey, share)) for share in SHARES]
    hashes = [_bits(values) for values in coefficients]
    mirrored = coefficients[0] * np.where(
        np.arange(LOW) % 2, -1.0, 1.0
    )  # a mirror image negates odd horizontal frequencies
    energy = _energy(coefficients[0])
    std = float(grey.std())
    histogram = np.bincount(grey.reshape(-1), minlength=256) / grey.size
    filled = histogram[histogram > 0]
    return Fingerprint(
        pixels=hashlib.sha256(f"{width}x{height}:".encode() + np.ascontiguousarray(image).tobytes()).digest()[:16],
        hashes=np.stack([*hashes, _bits(mirrored)]),
        thumb=_shrunk(grey, THUMB, THUMB),
        comparable=std >= LEAST_STD and energy >= LEAST_ENERGY,
        mean=float(grey.mean()),
        std=std,
        entropy=float(-(filled * np.log2(filled)).sum()),
        sharpness=float(cv2.Laplacian(grey, cv2.CV_64F).var()),
    )


def _centre(grey: NDArray[np.uint8], share: float) -> NDArray[np.uint8]:
    """The centre crop with `share` of each side, at least a pixel."""
    height, width = (max(1, round(side * share)) for side in grey.shape)
    top, left = (grey.shape[0] - height) // 2, (grey.shape[1] - width) // 2
    return grey[top : top + height, left : left + width]


def _shrunk(grey: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """To [height, width]: averaged over areas where it shrinks, bilinear where it grows."""
    least = (min(grey.shape[1], width), min(grey.shape[0], height))
    averaged = cv2.resize(grey, least, interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(averaged, (width, height), interpolation=cv2.INTER_LINEAR), dtype=np.uint8)


def _cosines() -> NDArray[np.float64]:
    """[LOW, SIDE], rows of the orthonormal DCT-II."""
    frequency, place = np.arange(LOW)[:, None], np.arange(SIDE)[None]
    rows = np.sqrt(2 / SIDE) * np.cos(np.pi * frequency * (2 * place + 1) / (2 * SIDE))
    rows[0] /= np.sqrt(2)
    return rows


_DCT = _cosines()


def _low_frequencies(grey: NDArray[np.uint8]) -> NDArray[np.float64]:
    """float64 [LOW, LOW], vertical by horizontal frequency."""
    return _DCT @ _shrunk(grey, SIDE, SIDE).astype(np.float64) @ _DCT.T


def _bits(coefficients: NDArray[np.float64]) -> Hash:
    """A bit for each coefficient, row by row: whether it is clearly above the median of all but the mean.

    Clearly: by `MARGIN` of their rms. Symmetric pictures have many coefficients near 0, whose bits noise would decide.
    """
    flat = coefficients.reshape(-1)
    return np.packbits(flat > np.median(flat[1:]) + MARGIN * _energy(coefficients))


def _energy(coefficients: NDArray[np.float64]) -> float:
    """Rms over the image of what the kept frequencies but the mean make of it, grey levels."""
    flat = coefficients.reshape(-1)[1:]
    return float(np.sqrt((flat**2).sum()) / SIDE)
