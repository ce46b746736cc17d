"""Does the encoder find the object by itself? Its attention, and the first principal component of its patches, as a foreground.

DINO, section 4.2.2: of the last block's attention from cls to the patches, those that hold 60 % of the mass, head by head,
against the mask (Jaccard); the best head is told, as in the paper, and the mean over heads. DINOv2, section 7.5: patches of all
images on their first principal component; the foreground is the side of zero with less of the images' border. CorLoc is the
share of images where the box of the largest part of that foreground meets the mask's box with an IoU of at least 0.5.
Letters: h w patches, H W pixels, P patches of an image.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.ndimage import label as components
from torch import Tensor

from raydino.evals.config import DiscoveryConfig
from raydino.evals.dense import chosen, decode_map, grids, lacking, rows_with, whole_image
from raydino.evals.evaluation import Evaluation, Labelled
from raydino.evals.features import frozen
from raydino.nn.layers import patch_size

if TYPE_CHECKING:
    from raydino.nn.backbone import Backbone


class Discovery(Evaluation):
    """Unsupervised foregrounds; returns `pca_jaccard`, `pca_corloc` and, with attention,
    `attention_best_head` and `attention_mean`."""

    def __init__(self, config: DiscoveryConfig) -> None:
        """An evaluation by `config`."""
        self.config = config

    @property
    def protocol(self) -> str:
        """The protocol in words."""
        c = self.config
        return (
            f"shorter side {c.side}; attention of the last block's cls token, {c.mass:.0%} of its mass, head by head, the best "
            "CHOSEN ON THESE IMAGES as published; first principal component of all patches, foreground the side with less of the "
            f"border; Jaccard with what is above 0 in column {c.column!r}, mean over images; CorLoc at an IoU of 0.5"
        )

    def unfit(self, labelled: Labelled) -> str | None:
        """It needs masks."""
        return lacking(labelled, self.config.column, train=False)

    def images(self, labelled: Labelled) -> str:
        """The number of images."""
        return f"{0 if labelled.test is None else min(len(labelled.test), self.config.images)} images"

    def run(self, encoder: "Backbone", labelled: Labelled) -> dict[str, float]:
        """Compare foregrounds with masks. Raises ValueError where no image has an object, or none can be decoded."""
        assert labelled.test is not None, "see unfit"
        config, patch = self.config, patch_size(encoder)
        images, masks = [], []
        rows = chosen(len(labelled.test), config.images, seed=labelled.seed)
        for _, values in rows_with(labelled.test, [config.column], rows):
            image = whole_image(values["bytes"], side=config.side, patch=patch, channels=labelled.bank.shape[0])
            mask = decode_map(values[config.column]) > 0
            if image is not None and mask.any():
                images.append(image)
                masks.append(mask)
        if not images:
            raise ValueError(f"none of {len(rows)} images can be decoded and has an object in column {config.column!r}")
        found = grids(encoder, images, blocks=(-1,), normalise=labelled.normalisation)
        fronts = foregrounds([grid for grid in found if grid is not None])
        pairs = [(spread(front, mask.shape), mask) for front, mask in zip(fronts, masks, strict=True)]
        scores = {
            "pca_jaccard": float(np.mean([iou(guess, mask) for guess, mask in pairs])),
            "pca_corloc": float(np.mean([box_iou(box(largest(guess)), box(mask)) >= 0.5 for guess, mask in pairs])),
        }
        by_head = self._attention(encoder, labelled, images, masks)
        if by_head is not None:
            means = by_head.mean(0)
            scores |= {"attention_best_head": float(means.max()), "attention_mean": float(means.mean())}
        return scores

    def _attention(
        self, encoder: "Backbone", labelled: Labelled, images: list[Tensor], masks: list[np.ndarray]
    ) -> Float[np.ndarray, "N heads"] | None:
        patch, device, rows = patch_size(encoder), next(encoder.parameters()).device, []
        with frozen(encoder, device):
            for image, mask in zip(images, masks, strict=True):
                attention = encoder.attention(labelled.normalisation(image[None].to(device)))
                if attention is None:
                    return None
                grid = (image.shape[-2] // patch, image.shape[-1] // patch)
                heads = [most_mass(head, self.config.mass).view(grid).cpu().numpy() for head in attention[0]]
                rows.append([iou(spread(head, mask.shape), mask) for head in heads])
        return np.array(rows)


def most_mass(attention: Float[Tensor, " P"], share: float) -> Bool[Tensor, " P"]:
    """The fewest patches that hold `share` of the attention, largest first."""
    value, order = attention.double().sort(descending=True, stable=True)
    before = value.cumsum(0) - value
    kept = torch.zeros_like(attention, dtype=torch.bool)
    kept[order] = before < share * value.sum()
    return kept


def foregrounds(grids: list[Float[Tensor, "h w D"]]) -> list[Bool[np.ndarray, "h w"]]:
    """Patches on the side of the first principal component, over all images, that has the smaller share of their borders."""
    tokens = torch.cat([grid.flatten(0, 1) for grid in grids]).double()
    centred = tokens - tokens.mean(0)
    _, axes = torch.linalg.eigh(centred.T @ centred)
    positive = (centred @ axes[:, -1] > 0).cpu().numpy()
    parts, start = [], 0
    for grid in grids:
        count = grid.shape[0] * grid.shape[1]
        parts.append(positive[start : start + count].reshape(grid.shape[:2]))
        start += count
    rims = [np.concatenate([part[0], part[-1], part[:, 0], part[:, -1]]) for part in parts]
    inward = np.concatenate(rims).mean() <= positive.mean()
    return [part if inward else ~part for part in parts]


def spread(front: Bool[np.ndarray, "h w"], size: tuple[int, ...]) -> Bool[np.ndarray, "H W"]:
    """Patches as pixels of an image of `size`."""
    rows, columns = (np.arange(length) * n // length for n, length in zip(front.shape, size, strict=True))
    return front[np.ix_(rows, columns)]


def iou(guess: Bool[np.ndarray, "H W"], truth: Bool[np.ndarray, "H W"]) -> float:
    """Intersection over union; 0 for two empty ones, as nothing was found."""
    union = (guess | truth).sum()
    return float((guess & truth).sum() / union) if union else 0.0


def largest(mask: Bool[np.ndarray, "H W"]) -> Bool[np.ndarray, "H W"]:
    """The largest part whose pixels touch at their sides."""
    numbers = np.empty(mask.shape, dtype=np.int32)
    components(mask, output=numbers)
    return numbers == 1 + np.bincount(numbers[mask] - 1).argmax() if mask.any() else mask


def box(mask: Bool[np.ndarray, "H W"]) -> tuple[int, int, int, int]:
    """Top, left, bottom, right (the last two not inside); all 0 for an empty mask."""
    if not mask.any():
        return 0, 0, 0, 0
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def box_iou(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> float:
    """Intersection over union of two boxes."""
    high = max(0, min(one[2], other[2]) - max(one[0], other[0]))
    wide = max(0, min(one[3], other[3]) - max(one[1], other[1]))
    areas = sum((b[2] - b[0]) * (b[3] - b[1]) for b in (one, other))
    return high * wide / (areas - high * wide) if areas else 0.0
