"""Corrupted images: the 15 kinds of ImageNet-C at 5 levels each (Hendrycks & Dietterich 2019, section 4 and figure 1).

Written from the paper's descriptions. An image becomes the same whatever was corrupted before it and in whichever process: what
is drawn is keyed by (seed, kind, level, image id). Strengths are the published ones at 224 pixels where those grow with the
level in every part, and ours where they do not or what is drawn is another (glass, snow, frost, fog, elastic). At other sizes
lengths go with side / 224; the amplitudes of pixel noise and of JPEG's rounding with its square root, between leaving a pixel's
noise alone and what shrinking would leave of it, which is near the strengths of CIFAR-10-C at 32 pixels. What has no length
(fog, frost, brightness, contrast, zoom) stays, and is harder than there.
So figures may be compared with each other, not with published mean corruption errors.
Images are uint8 [H, W, C] with 1 or 3 channels; inside, float64 of 0 to 1.
"""

import io
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage

from raydino import keyed
from raydino.evals import blurs, weather
from raydino.evals.blurs import Rng, Scene

LEVELS = (1, 2, 3, 4, 5)
Corruption = Callable[[Scene, float, int, Rng], Scene]
"""Of an image, its side / 224, the level's index (0 to 4) and a generator."""


class Kind(NamedTuple):
    """A kind of corruption and the group that the paper puts it into."""

    group: str
    corruption: Corruption


def corrupt(image: np.ndarray, kind: str, level: int, *, image_id: bytes | str, seed: int = 0) -> np.ndarray:
    """`image` (uint8 [H, W, C]) corrupted, of the same shape.

    Args:
        image: 1 or 3 channels; the shorter side sets the strengths.
        kind: One of KINDS.
        level: 1 to 5.
        image_id: What is drawn differs between ids, and between kinds and levels.
        seed: Of the study.

    Raises:
        ValueError: If there is no such kind or level, or the image is of another form.
    """
    if kind not in KINDS:
        raise ValueError(f"kind = {kind!r}: there is no such corruption; give one of {', '.join(KINDS)}")
    if level not in LEVELS:
        raise ValueError(f"level = {level}: give one of 1 to {len(LEVELS)}")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3) or not image.size:
        raise ValueError(f"image: {image.dtype} {image.shape}; give uint8 [H, W, C] with 1 or 3 channels")
    rng = keyed.generator(seed, "corruption", kind, level, image_id)
    found = KINDS[kind].corruption(image / 255.0, min(image.shape[:2]) / 224, level - 1, rng)
    return np.rint(np.clip(found, 0, 1) * 255).astype(np.uint8)


def gaussian_noise(image: Scene, scale: float, level: int, rng: Rng) -> Scene:
    """Normal noise added to every value, as in poor light."""
    sigma = (0.08, 0.12, 0.18, 0.26, 0.38)[level] * scale**0.5
    return image + sigma * rng.standard_normal(image.shape)


def shot_noise(image: Scene, scale: float, level: int, rng: Rng) -> Scene:
    """Poisson noise: a value is a count of photons, `photons` of them for white."""
    photons = (60, 25, 12, 5, 3)[level] / scale
    return rng.poisson(image * photons) / photons


def impulse_noise(image: Scene, scale: float, level: int, rng: Rng) -> Scene:
    """Salt and pepper: a share of the values becomes 0 or 1, half of it each."""
    share = min(1.0, (0.03, 0.06, 0.09, 0.17, 0.27)[level] * scale**0.5)
    drawn = rng.random(image.shape)
    return np.where(drawn < share / 2, 0.0, np.where(drawn < share, 1.0, image))


def contrast(image: Scene, _scale: float, level: int, _rng: Rng) -> Scene:
    """Every value moved towards the mean of its channel."""
    mean = image.mean(axis=(0, 1), keepdims=True)
    return mean + (0.4, 0.3, 0.2, 0.1, 0.05)[level] * (image - mean)


def elastic(image: Scene, _scale: float, level: int, rng: Rng) -> Scene:
    """Stretched and squeezed by a smooth field of displacements (Simard et al. 2003).

    Its root mean square is a share of the side. The published levels mix large smooth fields with small rough ones, which do not
    grow; ours are one smooth field that does.
    """
    height, width = image.shape[:2]
    side = min(height, width)
    field = rng.uniform(-1, 1, (2, height, width))
    field = np.stack([ndimage.gaussian_filter(part, 0.05 * side, mode="reflect") for part in field])
    field *= (0.008, 0.012, 0.017, 0.023, 0.030)[level] * side / max(1e-12, float(np.sqrt((field**2).mean())))
    return blurs.sampled(image, np.indices((height, width)) + field)


def pixelate(image: Scene, scale: float, level: int, _rng: Rng) -> Scene:
    """Shrunk by averaging and enlarged without smoothing: blocks of one colour.

    Sides of blocks are 1.7 to 4 pixels at 224; at other sizes what exceeds 1 goes with the root, since less than 1 is nothing.
    """
    block = 1 + (1 / (0.6, 0.5, 0.4, 0.3, 0.25)[level] - 1) * scale**0.5
    height, width = image.shape[:2]
    small = max(1, round(width / block)), max(1, round(height / block))
    shrunk = _each_band(image, lambda band: band.resize(small, Image.Resampling.BOX))
    return _each_band(shrunk, lambda band: band.resize((width, height), Image.Resampling.NEAREST))


def jpeg_quality(scale: float, level: int) -> int:
    """Quality whose steps of rounding are those of 25, 18, 15, 10, 7 times √scale (libjpeg's rule between the two)."""
    steps = 5000 / (25, 18, 15, 10, 7)[level] * scale**0.5
    return round(min(100.0, max(1.0, 5000 / steps if steps > 100 else (200 - steps) / 2)))


def jpeg(image: Scene, scale: float, level: int, _rng: Rng) -> Scene:
    """Written as JPEG and read again."""
    pixels = np.rint(image * 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[..., 0]).save(
        buffer, "JPEG", quality=jpeg_quality(scale, level)
    )
    with Image.open(buffer) as opened:
        return np.asarray(opened).reshape(image.shape) / 255.0


def _each_band(image: Scene, change: Callable[[Image.Image], Image.Image]) -> Scene:
    bands = (change(Image.fromarray(band.astype(np.float32))) for band in np.moveaxis(image, 2, 0))
    return np.stack([np.asarray(band, dtype=np.float64) for band in bands], axis=2)


KINDS: dict[str, Kind] = {
    "gaussian_noise": Kind("noise", gaussian_noise),
    "shot_noise": Kind("noise", shot_noise),
    "impulse_noise": Kind("noise", impulse_noise),
    "defocus_blur": Kind("blur", blurs.defocus),
    "glass_blur": Kind("blur", blurs.glass),
    "motion_blur": Kind("blur", blurs.motion),
    "zoom_blur": Kind("blur", blurs.zoom),
    "snow": Kind("weather", weather.snow),
    "frost": Kind("weather", weather.frost),
    "fog": Kind("weather", weather.fog),
    "brightness": Kind("weather", weather.brightness),
    "contrast": Kind("digital", contrast),
    "elastic": Kind("digital", elastic),
    "pixelate": Kind("digital", pixelate),
    "jpeg": Kind("digital", jpeg),
}
"""The kinds in the paper's order."""
