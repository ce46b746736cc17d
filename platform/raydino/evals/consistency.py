"""Does the network say the same of every crop of an image? Random crops and the cosines between their cls features.

That is what self-distillation trains for. An untrained network agrees as well, since it says nearly the same of everything, so a
figure is worth something only beside how near other images are.
Letters: V crops of an image, C H W channels and size of a crop, D width.
"""

from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from raydino.data.crops import Cropper
from raydino.evals.features import frozen
from raydino.evals.sheets import Group, as_rgb, enlargement, scaled, sheet
from raydino.views import Crops, Normalisation, Size, Views

if TYPE_CHECKING:
    from raydino.nn.backbone import Backbone

AREA = (0.32, 1.0)
"""Share of the image in a crop: that of DINOv2's global crops."""
_CELL = 72  # pixels


def random_crops(
    image: UInt8[np.ndarray, "H W C"], *, count: int, size: Size, seed: int, name: str
) -> UInt8[Tensor, "V C H W"]:
    """Crops of an image as training cuts global ones, without changes of colour, by (seed, name)."""
    plain = {"jitter": 0.0, "gray": 0.0, "blur": (0.0,), "solarize": (0.0,)}
    group = Crops(count=count, size=size, scale=AREA).override(plain)
    views = Views(crops={"global": group}, channels=image.shape[2])
    return torch.from_numpy(Cropper(views, seed=seed)(image, epoch=0, sample=name.encode())["global"])


def crop_features(
    encoder: "Backbone", crops: UInt8[Tensor, "V C H W"], normalise: Normalisation
) -> Float[Tensor, "V D"]:
    """The cls features of crops, float32 on the CPU, not L2-normalised."""
    device = next(encoder.parameters()).device
    with frozen(encoder, device):
        return encoder(normalise(crops.to(device))).cls.float().cpu()


def consistency(features: Float[Tensor, "V D"]) -> Float[Tensor, "V V"]:
    """Cosine of every crop with every other; the diagonal is 1.

    The slow version: for each pair, the dot product over the product of the lengths. A feature of length 0 is like nothing.
    """
    unit = F.normalize(features, dim=1)
    return unit @ unit.T


def mean_of_pairs(cosines: Float[Tensor, "V V"]) -> float:
    """Mean over pairs of different crops. Raises ValueError for fewer than two."""
    if (count := len(cosines)) < 2:
        raise ValueError(f"{count} crops make no pair; give at least 2")
    return float((cosines.sum() - cosines.diagonal().sum()) / (count * (count - 1)))


def consistency_sheet(crops: UInt8[Tensor, "V C H W"], cosines: Float[Tensor, "V V"]) -> Image.Image:
    """Crops down the side and their cosines as a matrix, bright where they agree. Raises ValueError for fewer than two crops."""
    mean = mean_of_pairs(cosines)
    factor = enlargement(max(crops.shape[-2:]), target=_CELL)
    tiles = tuple((scaled(view, factor),) for view in as_rgb(crops))
    cells = tuple(tuple(_cell(value) for value in row) for row in cosines.tolist())
    numbers = tuple(str(i + 1) for i in range(len(crops)))
    note = (
        f"Cosine of cls features between random crops, mean of pairs {mean:.3f}.\n"
        "High means that the network says the same of all crops. Compare with the untrained network and with other images: "
        "one that says the same of everything has 1 everywhere."
    )
    groups = [Group("crop", ("",), tiles), Group("cosine with crop", numbers, cells)]
    return sheet("Features across crops", note, groups, rows=numbers)


def _cell(value: float) -> Image.Image:
    """A number on its colour, from 0 or less (dark) to 1 (bright)."""
    share = min(max(value, 0.0), 1.0)
    colour = mpl.colormaps["viridis"](share)[:3]
    tile = Image.new("RGB", (_CELL, _CELL), tuple(round(255 * part) for part in colour))
    ink = (0, 0, 0) if share > 0.6 else (255, 255, 255)
    font = ImageFont.load_default(size=15)
    ImageDraw.Draw(tile).text((_CELL / 2, _CELL / 2), f"{value:.2f}", ink, font, anchor="mm")
    return tile
