"""Fingerprint: what curation knows of an image, computed in the one decode that also judges it.

Two images are compared by their fingerprints alone, never by their bytes again: a 256-bit hash of low frequencies that survives
recompression, resizing and changes of tone; the same hash of the picture without its border, of crops and of the mirror image,
which meets borders, small crops and flips; and a thumbnail as second evidence. Scores of quality are stored beside them and
judged later, if at all. The exact specification, with test vectors, stands in docs/curation.md; whatever changes a bit of it
changes `SPEC`.
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

SPEC = "dct256-2"
"""Name of this specification; hashes of different specifications are never compared."""
LOW = 16  # frequencies kept in each direction
SPANS = ((0.0, 1.0), (0.025, 0.95), (0.0, 0.95), (0.05, 0.95), (0.05, 0.9), (0.1, 0.8))
"""Stretches of a side that crops take: where they begin and how long they are, as shares of the side."""
CROPS = ((0, 0), (1, 1), (2, 2), (2, 3), (3, 2), (3, 3), (4, 4), (5, 5))
"""Crops that are hashed, as their vertical and horizontal stretch: all of it, 5 % less in five places, and two smaller ones."""
KEYS = (*(f"rows {SPANS[v]}, columns {SPANS[h]}" for v, h in CROPS), "mirror", "picture")
"""What each hash is of; `picture` is the image without its border, `mirror` the mirror image of that."""
PICTURE, MIRROR = len(KEYS) - 1, len(KEYS) - 2
THUMB = 32  # side of the thumbnail, pixels
LEAST_STD = 6.0  # grey levels; flatter images have no structure to compare
LEAST_ENERGY = 3.0  # rms of the kept frequencies without the mean, grey levels: less, and noise decides the bits
MARGIN = 1 / 256  # of the energy below: a sixteenth of the rms of the coefficients
WORKING = 128  # least shorter side, pixels, to which an image is averaged down first: a factor of 1 to 2 above it
FLAT = 10  # grey levels that a row of a border may span: compression rings beside an edge
MOST_BORDER = 64  # 256ths of a side that count as border at each end: more, and little of the thumbnail would be left
GRID = 64  # pixels by pixels at least, of which colours are counted
PATCH = 128  # side of the centre patch whose fineness is measured, pixels
SIZES_AT_HAND = 512  # sides whose basis is kept, about 100 kB each; an image is averaged down to few different ones

_MIRROR = np.where(np.arange(LOW) % 2, -1, 1).astype(np.float32)  # a mirror image negates odd horizontal frequencies


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """One image, about 1.4 kB."""

    pixels: bytes
    """16 bytes of the sha256 of size and RGB pixels: equal for images that differ in metadata or lossless coding only."""
    hashes: NDArray[np.uint8]
    """uint8 [10, 32], one hash for each of `KEYS`."""
    thumb: NDArray[np.uint8]
    """uint8 [32, 32], the whole image in grey, squeezed to a square."""
    picture: NDArray[np.uint8] | None
    """uint8 [32, 32], the same without the border; None where there is no border."""
    comparable: bool
    """Whether there is enough structure for hashes to mean anything; others meet by `pixels` only."""
    mean: float
    """Mean grey, 0 to 255."""
    std: float
    """Standard deviation of grey, 0 to 255."""
    entropy: float
    """Entropy of the grey histogram, bits, 0 to 8."""
    sharpness: float
    """Variance of the Laplacian, at a shorter side of at most 128 pixels."""
    fineness: float
    """Energy of second differences of neighbours over that of every other pixel, in a centre patch: about 0.1 after
    enlarging to double size, 0.2 to 0.8 in photographs as taken, 1 for noise and for flat patches."""
    colours: int
    """Different colours among at least 64 × 64 pixels of an even grid: at most 256 where colour was lost to grey or a palette,
    as a rule more than 1,000 in photographs."""
    inside: float
    """Share of the area that the picture has, without the image's border."""


def fingerprint(image: NDArray[np.uint8]) -> Fingerprint:
    """The fingerprint of RGB uint8 [H, W, 3]. A pure function of the pixels. Raises ValueError for another shape or type."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"an image must be uint8 [H, W, 3] with pixels, not {image.dtype} {list(image.shape)}.")
    image = np.ascontiguousarray(image)
    full = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), dtype=np.uint8)
    grey = averaged(full)
    border = _border(grey)
    crops, thumb = _projections(grey)
    inner, inner_thumb = _picture(grey, border) if border.any() else (crops[0], None)
    mirrored = inner * _MIRROR
    mean, deviation = (float(value[0, 0]) for value in cv2.meanStdDev(grey))
    return Fingerprint(
        pixels=_pixel_digest(image),
        hashes=_bits(np.stack([*crops, mirrored, inner])),
        thumb=thumb,
        picture=inner_thumb,
        comparable=deviation >= LEAST_STD and float(_energy(inner[None])[0]) >= LEAST_ENERGY,
        mean=mean,
        std=deviation,
        entropy=_entropy(grey),
        sharpness=_sharpness(grey),
        fineness=_fineness(full),
        colours=_colours(image),
        inside=float((256 - border[:2].sum(dtype=int)) * (256 - border[2:].sum(dtype=int))) / 256**2,
    )


def averaged(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Means of k × k blocks of grey [H, W], k the largest that leaves `WORKING` pixels to the shorter side; what does not fill
    a block is left off evenly.
    """
    block = min(grey.shape) // WORKING
    if block < 2:
        return grey
    height, width = (side // block for side in grey.shape)
    top, left = (grey.shape[0] - height * block) // 2, (grey.shape[1] - width * block) // 2
    whole = grey[top : top + height * block, left : left + width * block]
    return np.asarray(cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _projections(grey: NDArray[np.uint8]) -> tuple[list[NDArray[np.float32]], NDArray[np.uint8]]:
    """Low frequencies [LOW, LOW] of each of `CROPS`, and the thumbnail."""
    down, across = _axis(grey.shape[0]), _axis(grey.shape[1])
    half = _product(grey.astype(np.float32), across.T)
    places = [slice(number * LOW, (number + 1) * LOW) for number in range(len(SPANS))]
    crops = [down[places[v]] @ half[:, places[h]] for v, h in CROPS]
    return crops, np.rint(down[-THUMB:] @ half[:, -THUMB:]).astype(np.uint8)


def _picture(grey: NDArray[np.uint8], border: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Low frequencies [LOW, LOW] and thumbnail of the image without its border."""
    top, bottom, left, right = (border / 256).tolist()
    sides = ((grey.shape[0], top, 1 - top - bottom), (grey.shape[1], left, 1 - left - right))
    down, across = (np.concatenate([_cosines(*side), _means(*side)]).astype(np.float32) for side in sides)
    both = down @ _product(grey.astype(np.float32), across.T)
    return both[:LOW, :LOW], np.rint(both[LOW:, LOW:]).astype(np.uint8)


@lru_cache(SIZES_AT_HAND)
def _axis(pixels: int) -> NDArray[np.float32]:
    """[len(SPANS) · LOW + THUMB, pixels]: the cosines of each stretch of a side, then the means of its `THUMB` equal parts."""
    parts = [_cosines(pixels, begin, length) for begin, length in SPANS]
    return np.concatenate([*parts, _means(pixels, 0.0, 1.0)]).astype(np.float32)


def _means(pixels: int, begin: float, length: float) -> NDArray[np.float64]:
    """[THUMB, pixels]: weights of the pixels in the mean of each of `THUMB` equal parts of a stretch of a side."""
    x = (np.arange(pixels + 1) / pixels - begin) / length * THUMB
    return np.diff((x[None] - np.arange(THUMB)[:, None]).clip(0, 1), axis=1)


def _cosines(pixels: int, begin: float, length: float) -> NDArray[np.float64]:
    """[LOW, pixels]: integrals over each pixel of √2 cos(π f x), x from 0 to 1 along the stretch; of 1 for frequency 0.

    So a crop is projected as the piecewise constant function that it is, with no resampling and at any size.
    """
    x = ((np.arange(pixels + 1) / pixels - begin) / length).clip(0, 1)
    frequency = np.arange(1, LOW)[:, None] * np.pi
    waves = np.sqrt(2) * np.sin(frequency * x[None]) / frequency
    return np.diff(np.concatenate([x[None], waves]), axis=1)


def _border(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 [4], top, bottom, left, right in 256ths of the side: rows, then columns of the rest, that are flat and alike."""
    top, bottom = _margins(grey)
    left, right = _margins(grey[top : grey.shape[0] - bottom].T)
    height, width = grey.shape
    shares = np.array([top / height, bottom / height, left / width, right / width])
    return np.rint(shares * 256).astype(np.uint8)


def _margins(grey: NDArray[np.uint8]) -> tuple[int, int]:
    """Rows at the beginning and at the end that are of one colour, none of them if they reach beyond `MOST_BORDER`."""
    most = grey.shape[0] * MOST_BORDER // 256
    if most < 1:
        return 0, 0
    return _flat_rows(grey[: most + 1]), _flat_rows(grey[::-1][: most + 1])


def _flat_rows(rows: NDArray[np.uint8]) -> int:
    """How many of the first rows lie within `FLAT` grey levels, all together; 0 if the last is among them."""
    low = np.minimum.accumulate(rows.min(axis=1)).astype(np.int16)
    high = np.maximum.accumulate(rows.max(axis=1)).astype(np.int16)
    flat = int(np.searchsorted(high - low, FLAT, side="right"))
    return flat + 1 if 0 < flat < len(rows) else 0


def _product(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float32]:
    """A matrix product in this thread alone: numpy would spread these small ones over cores that have images of their own."""
    nothing = np.empty((0, 0), np.float32)
    return np.asarray(cv2.gemm(one, np.ascontiguousarray(other, np.float32), 1.0, nothing, 0.0), dtype=np.float32)


def _bits(coefficients: NDArray[np.float32]) -> NDArray[np.uint8]:
    """uint8 [K, 32] for coefficients [K, LOW, LOW], row by row: whether each is clearly above the median of all but the mean.

    Clearly: by `MARGIN` of their energy. Symmetric pictures have many coefficients near 0, whose bits noise would decide.
    """
    flat = coefficients.reshape(len(coefficients), -1)
    median = np.partition(flat[:, 1:], (LOW**2 - 1) // 2, axis=1)[:, (LOW**2 - 1) // 2]
    return np.packbits(flat > (median + MARGIN * _energy(coefficients))[:, None], axis=1)


def _energy(coefficients: NDArray[np.float32]) -> NDArray[np.float32]:
    """[K], rms over the image of what the kept frequencies but the mean make of it, grey levels."""
    flat = coefficients.reshape(len(coefficients), -1)[:, 1:]
    return np.sqrt(np.square(flat).sum(axis=1))


def _pixel_digest(image: NDArray[np.uint8]) -> bytes:
    digest = hashlib.sha256(f"{image.shape[1]}x{image.shape[0]}:".encode())
    digest.update(image.data)
    return digest.digest()[:16]


def _entropy(grey: NDArray[np.uint8]) -> float:
    share = np.bincount(grey.reshape(-1), minlength=256) / grey.size
    filled = share[share > 0]
    return float(-(filled * np.log2(filled)).sum())


def _sharpness(grey: NDArray[np.uint8]) -> float:
    scale = min(1.0, WORKING / min(grey.shape))
    size = tuple(max(1, round(side * scale)) for side in reversed(grey.shape))
    small = cv2.resize(grey, size, interpolation=cv2.INTER_LINEAR)
    return float(cv2.meanStdDev(cv2.Laplacian(small, cv2.CV_16S))[1][0, 0] ** 2)


def _colours(image: NDArray[np.uint8]) -> int:
    down, across = (max(1, side // GRID) for side in image.shape[:2])
    seen = image[::down, ::across].astype(np.uint32)
    return len(np.unique(seen[..., 0] << 16 | seen[..., 1] << 8 | seen[..., 2]))


def _fineness(grey: NDArray[np.uint8]) -> float:
    top, left = (max(0, (side - PATCH) // 2) for side in grey.shape)
    patch = grey[top : top + PATCH, left : left + PATCH].astype(np.float32)
    fine = coarse = 0.0
    for part in (patch, patch.T):
        fine += float(np.square(part[1:-3] - 2 * part[2:-2] + part[3:-1]).sum())
        coarse += float(np.square(part[:-4] - 2 * part[2:-2] + part[4:]).sum())
    return fine / coarse if coarse > 0 else 1.0
