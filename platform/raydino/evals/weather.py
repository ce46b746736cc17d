"""The four kinds of weather among the corruptions. Functions as in blurs.py.

Snow, frost and fog are drawn, not photographed: the published frost lays photographs of frozen windows over an image, ours a
generated texture of crystals, so its errors are not those of that set.
"""

import numpy as np
from scipy import ndimage

from raydino.evals.blurs import Rng, Scene, convolved, trail

ICE = np.array([0.80, 0.92, 1.0])  # colour of frost, red green blue


def snow(image: Scene, scale: float, level: int, rng: Rng) -> Scene:
    """The scene paler, and flakes with the trails of their fall over it, in two layers of opposite directions.

    Density, length of trails and paleness all grow with the level, as the published strengths do not.
    """
    share, length, keep = ((0.01, 8, 0.9), (0.02, 10, 0.8), (0.03, 12, 0.7), (0.045, 14, 0.6), (0.06, 16, 0.5))[level]
    height, width = image.shape[:2]
    flake = max(1.0, 3 * scale)
    coarse = rng.random((int(np.ceil(height / flake)) + 1, int(np.ceil(width / flake)) + 1)) < share
    places = np.indices((height, width)) / flake
    flakes = ndimage.map_coordinates(coarse.astype(np.float64), places, order=1)
    fallen = trail(length * scale, length * scale / 2, rng.uniform(45, 135))
    layer = np.clip(convolved(flakes[:, :, None], fallen) * 2, 0, 1)  # trails are longer than flakes and so fainter
    gray = image.mean(axis=2, keepdims=True)
    pale = keep * image + (1 - keep) * np.maximum(image, 0.5 + 0.5 * gray)
    return pale + layer + layer[::-1, ::-1]


def frost(image: Scene, _scale: float, level: int, rng: Rng) -> Scene:
    """The scene darker under a layer of ice crystals."""
    keep, ice = ((0.9, 0.3), (0.8, 0.45), (0.7, 0.6), (0.65, 0.7), (0.6, 0.8))[level]
    texture = crystals(*image.shape[:2], rng=rng)[:, :, None]
    return keep * image + ice * texture * (ICE if image.shape[2] == 3 else ICE.mean())


def fog(image: Scene, _scale: float, level: int, rng: Rng) -> Scene:
    """A bank of fog by diamond-square over the scene, the whole scaled back so that the brightest value stays."""
    thickness, decay = ((0.5, 2.0), (0.8, 2.0), (1.2, 1.7), (1.7, 1.5), (2.4, 1.4))[level]
    cloud = diamond_square(*image.shape[:2], decay=decay, rng=rng)[:, :, None]
    brightest = max(float(image.max()), 1 / 255)
    return (image + thickness * cloud) * brightest / (brightest + thickness)


def brightness(image: Scene, _scale: float, level: int, _rng: Rng) -> Scene:
    """The value of HSV raised, hue and saturation as they were: every pixel scaled so that its largest channel rises."""
    value = image.max(axis=2, keepdims=True)
    raised = np.minimum(1.0, value + (0.1, 0.2, 0.3, 0.4, 0.5)[level])
    return np.where(value > 0, image * raised / np.where(value > 0, value, 1), raised)


def crystals(height: int, width: int, *, rng: Rng) -> np.ndarray:
    """A texture of ice of 0 to 1, float64 [height, width]: needles in six directions, denser where a cloud is."""
    cloud = diamond_square(height, width, decay=1.8, rng=rng)
    side = min(height, width)
    seeds = (rng.random((height, width, 1)) < 0.02 + 0.06 * cloud[:, :, None]).astype(np.float64)
    turn = rng.uniform(0, 60)
    trails = [trail(0.12 * side, 0.06 * side, turn + 60 * k) for k in range(6)]
    needles = [convolved(seeds, each)[:, :, 0] for each in trails]
    sharp = np.max(needles, axis=0)
    return np.clip(0.5 * cloud + 0.7 * sharp / max(float(sharp.max()), 1e-12), 0, 1)


def diamond_square(height: int, width: int, *, decay: float, rng: Rng) -> np.ndarray:
    """A random landscape of 0 to 1, float64 [height, width] (Fournier, Fussell & Carpenter 1982).

    On a square of a power of two whose edges meet: the middles of squares, then of their sides, are the mean of their four
    neighbours and a uniform number, whose range falls by `decay` each time the grid gets finer.
    """
    size = 1 << max(1, (max(height, width) - 1).bit_length())
    field = np.zeros((size, size))
    step, reach = size, 1.0
    while step >= 2:
        half = step // 2
        corners = field[::step, ::step]
        across = corners + np.roll(corners, -1, 0) + np.roll(corners, -1, 1) + np.roll(corners, (-1, -1), (0, 1))
        middles = across / 4 + rng.uniform(-reach, reach, corners.shape)
        field[half::step, half::step] = middles
        for axis in (0, 1):  # the middles of sides lie between two corners and two middles of squares
            around = corners + np.roll(corners, -1, axis) + middles + np.roll(middles, 1, 1 - axis)
            place = (slice(half, None, step), slice(None, None, step))
            field[place if axis == 0 else place[::-1]] = around / 4 + rng.uniform(-reach, reach, corners.shape)
        step, reach = half, reach / decay
    top, left = rng.integers(0, size - height + 1), rng.integers(0, size - width + 1)
    field = field[top : top + height, left : left + width]
    low, high = float(field.min()), float(field.max())
    return (field - low) / max(high - low, 1e-12)
