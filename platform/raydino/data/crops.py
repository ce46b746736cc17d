"""Crops: all views of one decoded image, as uint8; the only door to albumentations (and to its OpenCV).

Every number an image's crop needs is drawn here, at a fixed place in a generator keyed by (seed, epoch, sample id,
group, view), and handed to albumentations' functional layer. So a crop does not depend on threads, order or worker,
switching blur on leaves the boxes as they were, and no `Compose` has to be reseeded per crop (half as long as the
crop itself). Normalisation is not here: uint8 is a quarter of the traffic, and the device does it for nothing.

Order per view, as in DINO's and DINOv2's augmentations: resized crop, flip, jitter, gray, blur, solarise.
"""

import math
import os
from collections.abc import Mapping
from itertools import permutations

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else importing it asks a server for its newest version

import cv2
import numpy as np
from albumentations.augmentations.blur import functional as blur
from albumentations.augmentations.geometric import functional as geometry
from albumentations.augmentations.pixel import functional as pixel
from numpy.typing import NDArray

from raydino.keyed import generator
from raydino.views import Crops, Views

cv2.setNumThreads(0)  # images are cut in parallel, one thread each; OpenCV's own pool would only fight for the cores

Pixels = NDArray[np.uint8]

BLUR_KERNEL = 9  # pixels, as in DINOv2
SOLARIZE_THRESHOLD = 128 / 255  # albumentations counts it as a share of 255; values from 128 on are inverted, as in PIL
BOX_TRIES = 10
JITTER_ORDERS = tuple(permutations(range(4)))
# Places in a view's draws.
FLIP, JITTER, BRIGHTNESS, CONTRAST, SATURATION, HUE, ORDER, GRAY, BLUR, SIGMA, SOLARIZE, TOP, LEFT, BOX = range(14)


class Cropper:
    """Cuts what `views` asks for. Safe to share between threads and to pickle: it holds settings only."""

    def __init__(self, views: Views, *, seed: int) -> None:
        self.views = views
        self.seed = seed

    def __call__(self, image: Pixels, *, epoch: int, sample: bytes) -> dict[str, Pixels]:
        """By group uint8 [V, C, height, width], from uint8 [H, W, C] of any size; `sample` is the image's id.

        Raises:
            ValueError: `image` is not uint8 [H, W, C] with the channels of the views and at least one pixel.
        """
        crops = {name: np.empty(shape, dtype=np.uint8) for name, shape in self.views.shapes().items()}
        self.cut(image, epoch=epoch, sample=sample, out=crops)
        return crops

    def cut(self, image: Pixels, *, epoch: int, sample: bytes, out: Mapping[str, Pixels]) -> None:
        """`__call__` into given arrays, by group uint8 [V, C, height, width]; they may be views of a batch."""
        channels = self.views.channels
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != channels or 0 in image.shape:
            raise ValueError(
                f"an image must be uint8 [H, W, {channels}] with pixels, not {image.dtype} {list(image.shape)}."
            )
        for name, group in self.views.crops.items():
            for view in range(group.count):
                draws = generator(self.seed, "crops", epoch, sample, name, view).random(BOX + 2 * BOX_TRIES).tolist()
                out[name][view] = _view(image, group, view, draws).transpose(2, 0, 1)


def _view(image: Pixels, group: Crops, view: int, draws: list[float]) -> Pixels:
    """One view, uint8 [height, width, C]. Saturation, hue and greyscale are of colours: other images than RGB go without."""
    top, left, height, width = _box(image.shape[0], image.shape[1], group, draws)
    crop = _resized(image[top : top + height, left : left + width], group.height, group.width)
    if draws[FLIP] < group.flip:
        crop = np.ascontiguousarray(crop[:, ::-1])
    if draws[JITTER] < group.jitter:
        crop = _jittered(crop, group, draws)
    if draws[GRAY] < group.gray and crop.shape[2] == 3:
        crop = pixel.grayscale_to_multichannel(pixel.to_gray_weighted_average(crop), 3)
    if draws[BLUR] < group.of_view("blur", view):
        sigma = _between(*group.blur_sigma, draws[SIGMA])
        crop = pixel.separable_convolve(crop, blur.create_gaussian_kernel_1d(sigma, BLUR_KERNEL))
    if draws[SOLARIZE] < group.of_view("solarize", view):
        crop = pixel.solarize(crop, SOLARIZE_THRESHOLD)
    return crop


def _between(low: float, high: float, draw: float) -> float:
    return low + (high - low) * draw


def _box(rows: int, columns: int, group: Crops, draws: list[float]) -> tuple[int, int, int, int]:
    """Top, left, height, width: area uniform in `scale`, aspect log-uniform around the view's; centred if no draw fits."""
    low, high, shape = math.log(group.ratio[0]), math.log(group.ratio[1]), group.width / group.height
    for place in range(BOX, BOX + 2 * BOX_TRIES, 2):
        area = rows * columns * _between(*group.scale, draws[place])
        aspect = shape * math.exp(_between(low, high, draws[place + 1]))
        height, width = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < height <= rows and 0 < width <= columns:
            return int(draws[TOP] * (rows - height + 1)), int(draws[LEFT] * (columns - width + 1)), height, width
    height = min(rows, max(1, round(columns / (shape * group.ratio[0]))))
    width = min(columns, max(1, round(rows * shape * group.ratio[1])))
    return (rows - height) // 2, (columns - width) // 2, height, width


def _resized(crop: Pixels, height: int, width: int) -> Pixels:
    """To [height, width, C]: bicubic where the crop grows, averaged over areas first where it shrinks.

    OpenCV's bicubic takes four samples however far apart they lie, so it would alias.
    """
    least = (min(crop.shape[0], height), min(crop.shape[1], width))
    averaged = geometry.resize(crop, least, cv2.INTER_AREA)
    resized = geometry.resize(averaged, (height, width), cv2.INTER_CUBIC)
    return resized.reshape(height, width, crop.shape[2])  # OpenCV drops the axis of a single channel


def _jittered(crop: Pixels, group: Crops, draws: list[float]) -> Pixels:
    """Brightness, contrast, saturation and hue in a random order, with torchvision's arithmetic."""
    spreads = {BRIGHTNESS: group.brightness, CONTRAST: group.contrast, SATURATION: group.saturation}
    factors = {place: _between(max(0.0, 1 - by), 1 + by, draws[place]) for place, by in spreads.items()}
    for number in JITTER_ORDERS[int(draws[ORDER] * len(JITTER_ORDERS))]:
        if number == 0:
            crop = pixel.adjust_brightness_torchvision(crop, np.asarray(factors[BRIGHTNESS]))
        elif number == 1:
            crop = _contrasted(crop, factors[CONTRAST])
        elif crop.shape[2] != 3:
            continue
        elif number == 2:
            crop = pixel.adjust_saturation_torchvision(crop, factors[SATURATION])
        else:
            crop = pixel.adjust_hue_torchvision(crop, _between(-group.hue, group.hue, draws[HUE]))
    return crop


def _contrasted(crop: Pixels, factor: float) -> Pixels:
    """Towards or away from the mean grey, as torchvision has it; without colours, from the mean of all channels."""
    if crop.shape[2] == 3:
        return pixel.adjust_contrast_torchvision(crop, factor)
    mean = round(float(crop.mean()))
    table = np.clip(np.arange(256) * factor + mean * (1 - factor), 0, 255).astype(np.uint8)
    return table[crop]
