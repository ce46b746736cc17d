"""Fast crops: the same draws as crops.py, cut with less arithmetic; `Views.fast_crops` asks for them, and where it says
"device", of these for the boxes alone: colours are left to colour.py.

Three savings, each at a price that tests/data/test_fast.py bounds:

- Views that shrink are cut from halved copies of the image, made once for all views (a mip-map), and then sampled bicubically.
  The exact way weighs every pixel under the kernel, for every view again.
- Brightness, contrast, saturation, hue and greyscale are one affine map of colours, applied once, in the drawn order. Values are
  clipped at the end and not between the changes, and hue turns about the grey axis instead of along the HSV hexagon.
- Photographs larger than any view needs are decoded at a half, a quarter or an eighth of their size (`least_side`).
"""

import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from raydino.data.draws import BLUR_KERNEL, BRIGHTNESS, CONTRAST, HUE, LUMA, SATURATION, Draw, Jitter
from raydino.views import Crops, Views

Pixels = NDArray[np.uint8]
Colours = NDArray[np.float64]

_INVERT_BRIGHT = np.concatenate([np.arange(128), 255 - np.arange(128, 256)]).astype(np.uint8)
_SAME, _GREY = np.eye(3, 4), np.array([[*LUMA, 0.0]] * 3)
# Times that a view may shrink before a halved copy serves it better: where both ways have equal gradients, on photographs.
HALVE_AT = 1.3


def least_side(views: Views) -> int:
    """Pixels that the shorter side of an image needs for no view to be enlarged: below, less decoding would cost detail."""
    return max(
        (
            int(max(group.height, group.width) / group.scale[0] ** 0.5) + 1
            for group in views.crops.values()
            if group.count
        ),
        default=1,
    )


def pixels(values: Any, channels: int) -> Pixels:
    """What OpenCV returned as uint8 [height, width, channels]: it drops the axis of a single channel."""
    return values if values.ndim == 3 else values.reshape(*values.shape, channels)


class MipMap:
    """An image and its halves, quarters and so on, made when they are asked for first."""

    def __init__(self, image: Pixels) -> None:
        self._levels = [image]

    def crop(self, draw: Draw, height: int, width: int) -> Pixels:
        """The box of `draw` at [height, width, C]."""
        shrink = min(draw.height / height, draw.width / width)
        level = max(0, math.ceil(math.log2(shrink / HALVE_AT)))
        while level >= len(self._levels) and min(self._levels[-1].shape[:2]) >= 2:
            rows, columns = (side // 2 for side in self._levels[-1].shape[:2])
            even = self._levels[-1][: 2 * rows, : 2 * columns]
            half = cv2.resize(even, (columns, rows), interpolation=cv2.INTER_AREA)
            self._levels.append(pixels(half, even.shape[2]))
        level = min(level, len(self._levels) - 1)
        image, by = self._levels[level], 0.5**level
        top, left = min(round(draw.top * by), image.shape[0] - 1), min(round(draw.left * by), image.shape[1] - 1)
        bottom = max(top + 1, round((draw.top + draw.height) * by))
        right = max(left + 1, round((draw.left + draw.width) * by))
        box = image[top:bottom, left:right]
        return pixels(cv2.resize(box, (width, height), interpolation=cv2.INTER_CUBIC), image.shape[2])


def fast_box(levels: MipMap, draw: Draw, group: Crops) -> Pixels:
    """The box of one view, flipped if so drawn, its colours as they are: uint8 [height, width, C]."""
    crop = levels.crop(draw, group.height, group.width)
    return pixels(cv2.flip(crop, 1), crop.shape[2]) if draw.flip else crop


def fast_view(levels: MipMap, draw: Draw, group: Crops) -> Pixels:
    """One view, uint8 [height, width, C]."""
    crop = fast_box(levels, draw, group)
    channels = crop.shape[2]
    if channels == 3 and (draw.jitter is not None or draw.gray):
        crop = pixels(cv2.transform(crop, colour_map(draw, cv2.mean(crop)[:3])), channels)
    elif draw.jitter is not None:
        crop = _brightened(crop, draw.jitter)
    if draw.sigma is not None:
        kernel = cv2.getGaussianKernel(BLUR_KERNEL, draw.sigma, cv2.CV_32F)
        crop = pixels(cv2.sepFilter2D(crop, -1, kernel, kernel), channels)
    return pixels(cv2.LUT(crop, _INVERT_BRIGHT), channels) if draw.solarize else crop


def colour_map(draw: Draw, mean: Sequence[float]) -> Colours:
    """[3, 4]: the affine map of RGB that a jitter and greyscale come to, for a crop of the mean colour `mean`.

    In closed form: brightness and contrast scale colours, contrast adds a grey, saturation mixes them with their luma, and hue
    turns them about the grey axis (Rodrigues' formula). Greys stay greys in all of these, and luma changes with hue alone; so the
    order decides only whose luma it is that saturation and contrast mix with. In plain floats: on matrices this small, NumPy
    takes ten times as long.
    """
    if draw.jitter is None:
        return _GREY if draw.gray else _SAME
    place = draw.jitter.order.index
    brightness, contrast, saturation = draw.jitter.factors
    angle = 2 * math.pi * draw.jitter.hue  # red towards green, as in HSV
    along, up = math.cos(angle), math.sin(angle) / math.sqrt(3)
    stays, next_, last = (1 + 2 * along) / 3, (1 - along) / 3 - up, (1 - along) / 3 + up
    r, g, b = LUMA
    turned = (r * stays + b * next_ + g * last, g * stays + r * next_ + b * last, b * stays + g * next_ + r * last)
    mixed = LUMA if place(SATURATION) < place(HUE) else turned
    luma = [saturation * x + (1 - saturation) * y for x, y in zip(turned, mixed, strict=True)]
    scale, (red, green, blue) = brightness * contrast, mean
    weights = LUMA if place(CONTRAST) < place(HUE) else luma
    shift = (1 - contrast) * brightness * (weights[0] * red + weights[1] * green + weights[2] * blue)
    if draw.gray:
        return np.array([[scale * luma[0], scale * luma[1], scale * luma[2], shift]] * 3)
    stays, next_, last = scale * saturation * stays, scale * saturation * next_, scale * saturation * last
    x, y, z = (scale * (1 - saturation) * weight for weight in mixed)
    return np.array(
        [
            [stays + x, next_ + y, last + z, shift],
            [last + x, stays + y, next_ + z, shift],
            [next_ + x, last + y, stays + z, shift],
        ]
    )


def _brightened(crop: Pixels, jitter: Jitter) -> Pixels:
    """Brightness and contrast of an image without colours, in the drawn order."""
    scale, shift, mean = 1.0, 0.0, float(crop.mean())
    for number in jitter.order:
        if number == BRIGHTNESS:
            scale, shift = scale * jitter.factors[BRIGHTNESS], shift * jitter.factors[BRIGHTNESS]
        elif number == CONTRAST:
            factor = jitter.factors[CONTRAST]
            scale, shift = scale * factor, shift * factor + (1 - factor) * (mean * scale + shift)
    table = np.clip(np.arange(256) * scale + shift, 0, 255).astype(np.uint8)
    return pixels(cv2.LUT(crop, table), crop.shape[2])
