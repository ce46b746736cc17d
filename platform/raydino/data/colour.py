"""Colour on the device: what `fast_crops: device` leaves undone where crops are cut, done here for a whole batch at once.

Jitter, greyscale, blur and solarisation as crops.py has them, from the same draws (`draws.colours`), in float32 on 0..255. Values
are clipped after every change, as torchvision clips them, but never rounded: OpenCV's uint8 is, after every change, and its hue
has 180 steps.

Every view takes the same way, whatever was drawn for it: no size depends on what is drawn, and nothing is asked of the device
that it would have to wait for. Three of the four changes of a jitter mix a view with something grey and are one operation; it
stands three times before the turn of the hue and three times after it, and a view keeps its colours where its draw has no change.
Letters: V views of a group, B images, N = V * B, C channels.
"""

from dataclasses import replace

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import conv2d

from raydino.data.draws import BLENDS, BLUR_KERNEL, CONTRAST, LUMA, SATURATION
from raydino.views import Batch

SOLARIZE_FROM = 127.5  # what rounds to 128 or more, the published threshold
_NO_COLOUR = 1e-6  # grey levels: less chroma than two colours that differ can have


def coloured(batch: Batch) -> Batch:
    """The batch as the method sees it: crops whose colours are still to be changed as float32 0..255, others as they are."""
    if batch.colours is None:
        return batch
    crops = {name: recoloured(crop, batch.colours[name]) for name, crop in batch.crops.items()}
    return replace(batch, crops=crops, colours=None)


def shown(batch: Batch, images: int) -> dict[str, Tensor]:
    """The same as pixels to look at, of the first `images` images: by group uint8 [V, images, C, H, W]."""
    first = {name: crop[:, :images] for name, crop in batch.crops.items()}
    if batch.colours is None:
        return first
    return {
        name: recoloured(crop, batch.colours[name][:, :images]).round().to(torch.uint8) for name, crop in first.items()
    }


def recoloured(pixels: UInt8[Tensor, "V B C H W"], numbers: Float[Tensor, "V B D"]) -> Float[Tensor, "V B C H W"]:
    """Views with the changes that `numbers` name (`draws.colours`), float32 0..255.

    Saturation, hue and greyscale are of colours: other images than RGB go without.
    """
    if not pixels.numel():
        return pixels.float()
    x, per_view = pixels.flatten(0, 1).float(), numbers.flatten(0, 1)
    kinds, factors = per_view[:, :BLENDS], per_view[:, BLENDS : 2 * BLENDS]
    blends_before, turn, gray, sigma, solarize = per_view[:, 2 * BLENDS :].unbind(1)
    rgb = x.shape[1] == len(LUMA)
    if not rgb:
        factors = factors.where(kinds != SATURATION, 1.0)
    before = torch.arange(BLENDS, device=x.device) < blends_before[:, None]
    for at in range(BLENDS):
        x = _blended(x, kinds[:, at], factors[:, at].where(before[:, at], 1.0))
    if rgb:
        x = _turned(x, turn)
    for at in range(BLENDS):
        x = _blended(x, kinds[:, at], factors[:, at].where(~before[:, at], 1.0))
    if rgb:
        x = _grey(x).where(_each(gray) > 0, x)
    x = _blurred(x, sigma)
    x = (255.0 - x).where((_each(solarize) > 0) & (x >= SOLARIZE_FROM), x)
    return x.unflatten(0, pixels.shape[:2])


def _each(values: Float[Tensor, " N"]) -> Float[Tensor, "N 1 1 1"]:
    return values[:, None, None, None]


def _grey(x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N 1 H W"]:
    """The luma of colours; of other channels their mean."""
    if x.shape[1] != len(LUMA):
        return x.mean(1, keepdim=True)
    red, green, blue = x.split(1, dim=1)
    return (LUMA[0] * red).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def _blended(
    x: Float[Tensor, "N C H W"], kinds: Float[Tensor, " N"], factors: Float[Tensor, " N"]
) -> Float[Tensor, "N C H W"]:
    """Each view moved away from black (brightness), its mean grey (contrast) or its own greys (saturation) by a factor; one of
    exactly 1 leaves it as it is."""
    grey = _grey(x)
    mean = grey.mean((2, 3), keepdim=True) * _each((kinds == CONTRAST).to(x.dtype))
    towards = mean.addcmul(grey, _each((kinds == SATURATION).to(x.dtype)))
    return towards.lerp(x, _each(factors)).clamp_(0.0, 255.0)


def _turned(x: Float[Tensor, "N 3 H W"], share: Float[Tensor, " N"]) -> Float[Tensor, "N 3 H W"]:
    """Hues moved by a share of the circle, as in HSV: the largest and the smallest value of a pixel stay.

    With the hue h in sixths of the circle from red, red is min + (max - min) * q, where q is how far h + 3 lies from a multiple
    of 6, less 1, within 0 and 1; so is green with h + 1 and blue with h - 1: the hexagon without its six cases.
    """
    high, low = x.amax(1, keepdim=True), x.amin(1, keepdim=True)
    chroma = high - low
    red, green, blue = x.split(1, dim=1)
    at_red, at_green = high == red, high == green
    hue = (green - blue).where(at_red, (blue - red).where(at_green, red - green)) / chroma.clamp(min=_NO_COLOUR)
    hue = hue + torch.where(at_red, 0.0, torch.where(at_green, 2.0, 4.0)) + _each(6 * share)
    circles = hue / 6 + (0.5 - torch.arange(3, device=x.device)[:, None, None] / 3)
    sixth = circles.sub_(circles.round()).abs_().sub_(1 / 6).clamp_(0.0, 1 / 6)
    return low.addcmul(chroma, sixth, value=6)


def _blurred(x: Float[Tensor, "N C H W"], sigma: Float[Tensor, " N"]) -> Float[Tensor, "N C H W"]:
    """Each view under a Gaussian of its own standard deviation, pixels mirrored at the edges; with 0 it stays as it is."""
    views, channels, height, width = x.shape
    reach = BLUR_KERNEL // 2
    offsets = torch.arange(-reach, reach + 1, device=x.device)
    weights = (-0.5 * (offsets / sigma.clamp(min=1e-6)[:, None]).square()).exp()
    weights = (weights / weights.sum(1, keepdim=True)).repeat_interleave(channels, dim=0)
    x = x.reshape(1, views * channels, height, width)
    x = conv2d(x[..., _mirrored(height, x.device), :], weights[:, None, :, None], groups=views * channels)
    x = conv2d(x[..., _mirrored(width, x.device)], weights[:, None, None, :], groups=views * channels)
    return x.reshape(views, channels, height, width)


def _mirrored(size: int, device: torch.device) -> Tensor:
    """int64, which of `size` pixels lie under a blur's kernel from edge to edge, mirrored about the outermost ones."""
    reach, period = BLUR_KERNEL // 2, max(1, 2 * (size - 1))
    at = torch.arange(-reach, size + reach, device=device).remainder_(period)
    return torch.minimum(at, period - at)
