"""Crops: all views of one decoded image, as uint8; the only door to albumentations (and to its OpenCV).

What is decided about a view is drawn by key (draws.py) and handed to albumentations' functional layer, so no `Compose` has to be
reseeded per crop (half as long as the crop itself). Normalisation is not here: uint8 is a quarter of the traffic, and the
device does it for nothing.

Order per view, as in DINO's and DINOv2's augmentations: resized crop, flip, jitter, gray, blur, solarise. With
`Views.fast_crops` the draws are the same, the arithmetic that of fast.py; where it says "device", all from the jitter on is left
to colour.py, and what was drawn for it comes beside the pixels.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else importing it asks a server for its newest version

import cv2
import numpy as np
from albumentations.augmentations.blur import functional as blur
from albumentations.augmentations.pixel import functional as pixel
from numpy.typing import NDArray

from raydino.data.decode import Undecodable, decode
from raydino.data.draws import (
    BLUR_KERNEL,
    BRIGHTNESS,
    CONTRAST,
    COUNT,
    SATURATION,
    Draw,
    Jitter,
    colours,
    colours_of,
    draw_view,
    room,
)
from raydino.data.fast import MipMap, fast_box, fast_view, least_side, pixels
from raydino.keyed import uniform
from raydino.views import Crops, Views

cv2.setNumThreads(0)  # images are cut in parallel, one thread each; OpenCV's own pool would only fight for the cores

Pixels = NDArray[np.uint8]
Encoded = tuple[int, bytes, bytes]
"""An image to decode and cut: epoch, id, bytes."""

SOLARIZE_THRESHOLD = 128 / 255  # albumentations counts it as a share of 255; values from 128 on are inverted, as in PIL


class Cropper:
    """Cuts what `views` asks for. Safe to share between threads and to pickle: it holds settings only."""

    def __init__(self, views: Views, *, seed: int) -> None:
        self.views = views
        self.seed = seed
        self.least = least_side(views) if views.fast_crops else 0
        """The shorter side that an image may be decoded at (`decode`); 0 for its own."""

    def __call__(self, image: Pixels, *, epoch: int, sample: bytes) -> dict[str, NDArray[Any]]:
        """By group uint8 [V, C, height, width] (and what `room` has beside), from uint8 [H, W, C] of any size; `sample` is the
        image's id.

        Raises:
            ValueError: `image` is not uint8 [H, W, C] with the channels of the views and at least one pixel.
        """
        crops = room(self.views)
        self.cut(image, epoch=epoch, sample=sample, out=crops)
        return crops

    def cut_encoded(self, images: Sequence[Encoded], *, out: Sequence[Mapping[str, NDArray[Any]]]) -> list[str | None]:
        """Decodes and cuts each image into its arrays; for each the reason why it cannot be decoded, None where it was cut."""
        reasons: list[str | None] = []
        for (epoch, sample, data), into in zip(images, out, strict=True):
            try:
                image = decode(data, channels=self.views.channels, least=self.least)
            except Undecodable as error:
                reasons.append(error.reason)
                continue
            self.cut(image, epoch=epoch, sample=sample, out=into)
            reasons.append(None)
        return reasons

    def cut(self, image: Pixels, *, epoch: int, sample: bytes, out: Mapping[str, NDArray[Any]]) -> None:
        """`__call__` into given arrays (`room`); they may be views of a batch."""
        channels = self.views.channels
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != channels or 0 in image.shape:
            raise ValueError(
                f"an image must be uint8 [H, W, {channels}] with pixels, not {image.dtype} {list(image.shape)}."
            )
        levels = MipMap(image) if self.views.fast_crops else None
        for name, group in self.views.crops.items():
            numbers = uniform(COUNT * group.count, self.seed, "crops", epoch, sample, name)
            for view in range(group.count):
                own = numbers[COUNT * view : COUNT * (view + 1)]
                draw = draw_view(image.shape[0], image.shape[1], group, view, own)
                if levels is None:
                    crop = _view(image, draw, group)
                elif self.views.fast_crops == "device":
                    crop = fast_box(levels, draw, group)
                    out[colours_of(name)][view] = colours(draw)
                else:
                    crop = fast_view(levels, draw, group)
                _store(crop, out[name][view])


def _store(crop: Pixels, planes: Pixels) -> None:
    """[height, width, C] into [C, height, width]: a quarter of the time of a transposed copy."""
    if planes.flags.c_contiguous:
        cv2.split(np.ascontiguousarray(crop), list(planes))
    else:
        planes[...] = crop.transpose(2, 0, 1)


def _view(image: Pixels, draw: Draw, group: Crops) -> Pixels:
    """One view, uint8 [height, width, C]. Saturation, hue and greyscale are of colours: other images than RGB go without."""
    box = image[draw.top : draw.top + draw.height, draw.left : draw.left + draw.width]
    crop = _resized(box, group.height, group.width)
    if draw.flip:
        crop = pixels(cv2.flip(crop, 1), crop.shape[2])
    if draw.jitter is not None:
        crop = _jittered(crop, draw.jitter)
    if draw.gray and crop.shape[2] == 3:
        crop = pixel.grayscale_to_multichannel(pixel.to_gray_weighted_average(crop), 3)
    if draw.sigma is not None:
        crop = pixel.separable_convolve(crop, blur.create_gaussian_kernel_1d(draw.sigma, BLUR_KERNEL))
    if draw.solarize:
        crop = pixel.solarize(crop, SOLARIZE_THRESHOLD)
    return crop


def _resized(crop: Pixels, height: int, width: int) -> Pixels:
    """To [height, width, C], bicubic with the kernel stretched where the crop shrinks, as PIL does: OpenCV's bicubic takes four
    samples however far apart they lie, so it would alias, and its averaging of areas takes twice as long.
    """
    import torch  # here: a Ray task that cuts fast crops need not spend seconds on it

    # A copy, because torch warns of memory that it may not write; with channels last it resizes twice as fast.
    box = np.array(crop[None], order="C")
    resized = torch.nn.functional.interpolate(
        torch.from_numpy(box).permute(0, 3, 1, 2), size=(height, width), mode="bicubic", antialias=True
    )
    return np.ascontiguousarray(resized.permute(0, 2, 3, 1)[0].numpy())


def _jittered(crop: Pixels, jitter: Jitter) -> Pixels:
    """Brightness, contrast, saturation and hue in the drawn order, with torchvision's arithmetic."""
    for number in jitter.order:
        if number == BRIGHTNESS:
            crop = pixel.adjust_brightness_torchvision(crop, np.asarray(jitter.factors[BRIGHTNESS]))
        elif number == CONTRAST:
            crop = _contrasted(crop, jitter.factors[CONTRAST])
        elif crop.shape[2] != 3:
            continue
        elif number == SATURATION:
            crop = pixel.adjust_saturation_torchvision(crop, jitter.factors[SATURATION])
        else:
            crop = pixel.adjust_hue_torchvision(crop, jitter.hue)
    return crop


def _contrasted(crop: Pixels, factor: float) -> Pixels:
    """Towards or away from the mean grey, as torchvision has it; without colours, from the mean of all channels."""
    if crop.shape[2] == 3:
        return pixel.adjust_contrast_torchvision(crop, factor)
    mean = round(float(crop.mean()))
    table = np.clip(np.arange(256) * factor + mean * (1 - factor), 0, 255).astype(np.uint8)
    return table[crop]
