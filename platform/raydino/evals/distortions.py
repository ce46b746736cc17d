"""What is done to images to see what features depend on: cut, shrunk, blurred, or their parts in another order.

All work on normalised images and leave their size as it is. Letters: B images, C channels, H W pixels.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from raydino import keyed

Images = Float[Tensor, "B C H W"]


def zoomed(images: Images, *, share: float = 0.75, corner: int = 0) -> Images:
    """The part of `share` of height and width at a corner (0 to 3, row by row), enlarged to the whole."""
    height, width = images.shape[-2:]
    high, wide = max(1, round(share * height)), max(1, round(share * width))
    top, left = (corner // 2) * (height - high), (corner % 2) * (width - wide)
    return _resized(images[..., top : top + high, left : left + wide], height, width)


def low_passed(images: Images, *, factor: int) -> Images:
    """Shrunk by `factor` with antialiasing and enlarged again: what is finer is gone."""
    height, width = images.shape[-2:]
    return _resized(_resized(images, max(1, height // factor), max(1, width // factor)), height, width)


def shuffled(images: Images, *, tiles: int, seed: int) -> Images:
    """`tiles` × `tiles` equal parts in another order by (seed, "tiles"), the same for all images; a rest at the edges stays.

    What is local is as it was, what lies where is lost.
    """
    rows, columns = images.shape[-2] // tiles, images.shape[-1] // tiles
    if min(rows, columns) < 1:
        raise ValueError(f"{tiles} × {tiles} tiles of images of {images.shape[-2]} × {images.shape[-1]} pixels")
    order = keyed.generator(seed, "tiles").permutation(tiles * tiles)
    found = images.clone()
    for place, source in enumerate(order.tolist()):
        to = (place // tiles * rows, place % tiles * columns)
        of = (source // tiles * rows, source % tiles * columns)
        found[..., to[0] : to[0] + rows, to[1] : to[1] + columns] = images[
            ..., of[0] : of[0] + rows, of[1] : of[1] + columns
        ]
    return found


def _resized(images: Images, height: int, width: int) -> Images:
    return F.interpolate(images, size=(height, width), mode="bilinear", antialias=True, align_corners=False)


def at_scale(images: Images, *, scale: float, patch: int) -> Float[Tensor, "B C h w"]:
    """Images of another size, both sides whole patches."""
    height, width = (max(1, round(length * scale / patch)) * patch for length in images.shape[-2:])
    return torch.clone(images) if (height, width) == images.shape[-2:] else _resized(images, height, width)
