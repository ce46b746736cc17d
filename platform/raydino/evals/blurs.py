"""The four blurs among the corruptions, and what they share with others: kernels and resampling.

Functions take an image (float64 [H, W, C], 0 to 1), its side / 224, the level's index (0 to 4) and a generator. Beyond its
edges an image goes on mirrored.
"""

import numpy as np
from scipy import ndimage, signal

Rng = np.random.Generator
Scene = np.ndarray
"""float64 [H, W, C], 0 to 1."""

EDGE_SIGMA = 0.5  # pixels; a disk of less than a pixel would change nothing else
SUBPIXELS = 8  # a side, of a kernel's pixel that an edge of the disk crosses


def defocus(image: Scene, scale: float, level: int, _rng: Rng) -> Scene:
    """The disk that a point becomes out of focus, its edge softened."""
    return convolved(image, disk((3, 4, 6, 8, 10)[level] * scale))


def glass(image: Scene, scale: float, level: int, rng: Rng) -> Scene:
    """Frosted glass: blurred, pixels taken from random places near by, several times, and blurred again.

    At 224 pixels a step is uniform over the whole numbers of -d to d; lengths in between are reached by rounding.
    """
    sigma, reach, times = ((0.7, 1, 1), (0.9, 1, 2), (1.0, 2, 2), (1.1, 3, 2), (1.5, 4, 2))[level]
    height, width = image.shape[:2]
    smooth = (sigma * scale, sigma * scale, 0)
    found = ndimage.gaussian_filter(image, smooth, mode="reflect")
    for _ in range(times):
        step = np.rint(rng.uniform(-0.5 - reach * scale, 0.5 + reach * scale, (2, height, width))).astype(int)
        rows, columns = np.indices((height, width)) + step
        found = found[rows.clip(0, height - 1), columns.clip(0, width - 1)]
    return ndimage.gaussian_filter(found, smooth, mode="reflect")


def motion(image: Scene, scale: float, level: int, rng: Rng) -> Scene:
    """The trail of a moving camera, at an angle of -45° to 45°."""
    length, sigma = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))[level]
    return convolved(image, trail(length * scale, sigma * scale, rng.uniform(-45, 45)))


def zoom(image: Scene, _scale: float, level: int, _rng: Rng) -> Scene:
    """The mean of the image at 11 enlargements from 1 on, as it moves towards the camera."""
    height, width = image.shape[:2]
    centre = np.array([(height - 1) / 2, (width - 1) / 2])[:, None, None]
    away = np.indices((height, width)) - centre
    factors = np.linspace(1, (1.10, 1.15, 1.20, 1.25, 1.30)[level], 11)
    return np.mean([sampled(image, centre + away / factor) for factor in factors], axis=0)


def disk(radius: float) -> np.ndarray:
    """The share of each pixel that a disk of `radius` pixels covers, softened by EDGE_SIGMA; sums to 1, odd sides."""
    half = int(np.ceil(radius + 4 * EDGE_SIGMA))
    fine = (np.arange((2 * half + 1) * SUBPIXELS) + 0.5) / SUBPIXELS - half - 0.5
    inside = (fine[:, None] ** 2 + fine[None] ** 2 <= radius**2).astype(np.float64)
    cells = inside.reshape(2 * half + 1, SUBPIXELS, 2 * half + 1, SUBPIXELS).mean((1, 3))
    soft = ndimage.gaussian_filter(cells, EDGE_SIGMA, mode="constant")
    return soft / soft.sum()


def trail(length: float, sigma: float, angle: float) -> np.ndarray:
    """A line from the centre over `length` pixels at `angle` degrees, fading as a Gaussian of `sigma`; sums to 1, odd sides."""
    half = int(np.ceil(length)) + 1
    kernel = np.zeros((2 * half + 1, 2 * half + 1))
    along = np.linspace(0, length, 4 * half)
    weight = np.exp(-0.5 * (along / max(sigma, 1e-6)) ** 2)
    rows, columns = half + along * np.sin(np.deg2rad(angle)), half + along * np.cos(np.deg2rad(angle))
    top, left = np.floor(rows).astype(int), np.floor(columns).astype(int)
    for down in (0, 1):  # each point shared among the four pixels around it
        for right in (0, 1):
            share = np.abs(1 - down - (rows - top)) * np.abs(1 - right - (columns - left))
            np.add.at(kernel, (top + down, left + right), weight * share)
    return kernel / kernel.sum()


def convolved(image: Scene, kernel: np.ndarray) -> Scene:
    """Every channel convolved with a kernel of odd sides."""
    high, wide = kernel.shape[0] // 2, kernel.shape[1] // 2
    padded = np.pad(image, ((high, high), (wide, wide), (0, 0)), mode="symmetric")
    return signal.oaconvolve(padded, kernel[:, :, None], mode="valid", axes=(0, 1))


def sampled(image: Scene, places: np.ndarray) -> Scene:
    """The image at rows and columns [2, H, W], between pixels bilinear."""
    bands = [ndimage.map_coordinates(band, places, order=1, mode="reflect") for band in np.moveaxis(image, 2, 0)]
    return np.stack(bands, axis=2)
