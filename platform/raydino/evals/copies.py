"""Copy detection: are changed copies of a photo nearer to it than any other image is?

DINO, section 4.2.1: the cls token beside the GeM-pooled patches (p = 4), L2-normalised, cosine. Copydays has one original per
query; here images that share a `group` are copies of each other, and all pairs of the split are ranked together: micro-average
precision, as the image similarity challenge counts (Douze et al. 2021). The published whitening is learned from 20,000 images
of YFCC; here from the training split where there is one, else there is none.
Letters: N images, D width of the descriptor.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from raydino.evals.config import CopiesConfig
from raydino.evals.dense import chosen, encode_each, lacking, rows_with, square_image
from raydino.evals.evaluation import Evaluation, Labelled
from raydino.evals.ranking import average_precision, ranked
from raydino.nn.backbone import BackboneOutput
from raydino.nn.layers import patch_size

if TYPE_CHECKING:
    from raydino.nn.backbone import Backbone
    from raydino.shards.reader import Collection

WHITENING_POWER = 0.5  # of the variances


class Copies(Evaluation):
    """Copy detection; returns `micro_ap` over all pairs, and `map` and `recall1` with every image that has a copy as a query."""

    def __init__(self, config: CopiesConfig) -> None:
        """An evaluation by `config`."""
        self.config = config

    @property
    def protocol(self) -> str:
        """The protocol in words."""
        c = self.config
        return (
            f"cls token and GeM-pooled patches (p = {c.power:g}) of the image stretched to {c.side} pixels square, cosine; "
            f"whitened by the training split's principal components where there is one (at most {c.whitening:,} images, power "
            f"{WHITENING_POWER:g}); copies share column {c.column!r}; micro-average precision of all pairs"
        )

    def unfit(self, labelled: Labelled) -> str | None:
        """It needs to know which images are copies of each other."""
        return lacking(labelled, self.config.column, train=False)

    def images(self, labelled: Labelled) -> str:
        """The number of images."""
        count = 0 if labelled.test is None else min(len(labelled.test), self.config.images)
        return f"{count} images, all of them against all"

    def run(self, encoder: "Backbone", labelled: Labelled) -> dict[str, float]:
        """Rank all pairs. Raises ValueError where no two images are copies of each other."""
        assert labelled.test is not None, "see unfit"
        features, groups = self.described(encoder, labelled, labelled.test, self.config.images)
        if labelled.train is not None and self.config.whitening:
            known, _ = self.described(encoder, labelled, labelled.train, self.config.whitening, grouped=False)
            features = whitened(features, known)
        cosine = (features @ features.T).double().cpu().numpy()
        same = groups[:, None] == groups
        upper = np.triu_indices(len(groups), 1)
        if not same[upper].any():
            raise ValueError(f"no two images share a value of column {self.config.column!r}")
        pairs = ranked(cosine[upper][None])[0]
        np.fill_diagonal(cosine, -np.inf)  # an image is no copy of itself: last in its own list, and left out there
        hits = [same[row][order[:-1]] for row, order in enumerate(ranked(cosine)) if same[row].sum() > 1]
        return {
            "micro_ap": average_precision(same[upper][pairs]),
            "map": float(np.mean([average_precision(row) for row in hits])),
            "recall1": float(np.mean([row[0] for row in hits])),
        }

    def described(
        self, encoder: "Backbone", labelled: Labelled, part: "Collection", most: int, *, grouped: bool = True
    ) -> tuple[Float[Tensor, "N D"], np.ndarray]:
        """L2-normalised descriptors of at most `most` images chosen by key, and their groups (zeros if not `grouped`)."""
        config, patch = self.config, patch_size(encoder)
        side = max(1, round(config.side / patch)) * patch
        images, groups = [], []
        columns = [config.column] if grouped else []
        for _, values in rows_with(part, columns, chosen(len(part), most, seed=labelled.seed)):
            images.append(square_image(values["bytes"], side=side, channels=labelled.bank.shape[0]))
            groups.append(values.get(config.column, 0))

        def say(outputs: list[BackboneOutput]) -> Tensor:
            return torch.cat([outputs[0].cls[0], gem(outputs[0].patches, power=config.power)[0]])

        rows = encode_each(encoder, images, blocks=(-1,), say=say, normalise=labelled.normalisation)
        kept = [index for index, row in enumerate(rows) if row is not None]
        if not kept:
            raise ValueError(f"none of {len(images)} images can be decoded")
        features = torch.stack([row for row in rows if row is not None])
        return F.normalize(features, dim=1), np.asarray(groups)[kept]


def gem(patches: Float[Tensor, "B P D"], *, power: float) -> Float[Tensor, "B D"]:
    """Generalised mean over patches, of what is positive (Radenović et al. 2018)."""
    return patches.clamp_min(1e-6).pow(power).mean(1).pow(1 / power)


def whitened(features: Float[Tensor, "N D"], known: Float[Tensor, "M D"]) -> Float[Tensor, "N D"]:
    """Features in the principal components of `known`, each divided by its deviation, L2-normalised.

    Components that `known` does not have (fewer images than dimensions) are left out.
    """
    mean = known.double().mean(0)
    _, deviation, axes = torch.linalg.svd(known.double() - mean, full_matrices=False)
    deviation = deviation / max(1, len(known) - 1) ** 0.5
    real = deviation > 1e-6 * deviation.max()
    parts = (features.double() - mean) @ axes[real].T / deviation[real].pow(2 * WHITENING_POWER)
    return F.normalize(parts, dim=1).float()
