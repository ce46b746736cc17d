"""What features depend on: do they stay the same for another crop and scale, and do they see more than local texture?

Two failures that k-NN alone does not show. Features that change with the crop know where, not what: the cosine between views of
one image, beside that between different images, since collapsed features agree with everything. Features that know textures
alone classify images whose tiles lie in another order as well as intact ones; features that know shapes do not; and those that
live off the finest detail fail when it is gone (Geirhos et al. 2019; Naseer et al. 2021, shuffled patches).
Letters: N images, D width.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from raydino.evals.config import RobustnessConfig
from raydino.evals.distortions import at_scale, low_passed, shuffled, zoomed
from raydino.evals.evaluation import Evaluation, Labelled
from raydino.evals.features import encoded, extract
from raydino.evals.knn import classify
from raydino.nn.layers import patch_size

if TYPE_CHECKING:
    from raydino.nn.backbone import Backbone

CORNERS = 4


class Robustness(Evaluation):
    """Consistency over crops and scales, and k-NN on distorted queries against an intact bank.

    Returns `crop_cosine`, `scale_cosine`, `others_cosine`, `crop_found` (share of crops whose nearest intact image is their own),
    `top1`, `top1_shuffled`, `top1_lowpass`.
    """

    def __init__(self, config: RobustnessConfig) -> None:
        """An evaluation by `config`."""
        self.config = config

    @property
    def protocol(self) -> str:
        """The protocol in words."""
        c = self.config
        return (
            f"cls features of {c.queries:,} queries: mean cosine with the 4 corner crops of {c.share:.0%} of the sides, and with "
            f"{c.scale:g} times the size; weighted {c.k}-NN of queries whose {c.tiles} × {c.tiles} tiles are in another order, "
            f"or which are shrunk by {c.factor} and enlarged, against an intact bank"
        )

    def run(self, encoder: "Backbone", labelled: Labelled) -> dict[str, float]:
        """Compare. Raises ValueError if a set has no decodable image, or images are too small for the tiles."""
        config, device = self.config, next(encoder.parameters()).device
        queries = labelled.queries.at_most(config.queries, seed=labelled.seed)
        bank, bank_labels = extract(
            encoder, labelled.bank.at_most(config.bank, seed=labelled.seed), labelled.normalisation, device=device
        )
        intact, labels = extract(encoder, queries, labelled.normalisation, device=device)

        def seen(distort: Callable[[Tensor], Tensor]) -> Tensor:
            rows, _ = encoded(
                encoder, lambda x: encoder(distort(x)).cls, queries, labelled.normalisation, device=device
            )
            return rows

        def top1(features: Tensor) -> float:
            votes = classify(
                bank, bank_labels, features, classes=len(labelled.classes), k=config.k, temperature=config.temperature
            )
            return float((votes.argmax(1) == labels).double().mean())

        crops = [
            seen(lambda x, corner=corner: zoomed(x, share=config.share, corner=corner)) for corner in range(CORNERS)
        ]
        scaled = seen(lambda x: at_scale(x, scale=config.scale, patch=patch_size(encoder)))
        found = {
            "crop_cosine": sum(same_cosine(intact, crop) for crop in crops) / CORNERS,
            "scale_cosine": same_cosine(intact, scaled) if scaled.shape == intact.shape else float("nan"),
            "others_cosine": others_cosine(intact),
            "crop_found": sum(own_nearest(intact, crop) for crop in crops) / CORNERS,
            "top1": top1(intact),
        }
        found["top1_shuffled"] = top1(seen(lambda x: shuffled(x, tiles=config.tiles, seed=labelled.seed)))
        found["top1_lowpass"] = top1(seen(lambda x: low_passed(x, factor=config.factor)))
        return found


def same_cosine(one: Float[Tensor, "N D"], other: Float[Tensor, "N D"]) -> float:
    """Mean cosine of equal rows."""
    return float(F.cosine_similarity(one.double(), other.double()).mean())


def others_cosine(features: Float[Tensor, "N D"]) -> float:
    """Mean cosine of different rows; NaN for one row."""
    normed = F.normalize(features.double(), dim=1)
    count = len(normed)
    # The sum over all pairs is the squared length of the sum; each row meets itself once.
    return float((normed.sum(0).square().sum() - count) / (count * (count - 1))) if count > 1 else float("nan")


def own_nearest(intact: Float[Tensor, "N D"], views: Float[Tensor, "N D"]) -> float:
    """Share of the views whose nearest intact row by cosine is their own; a tie with another does not count."""
    right, base = 0, F.normalize(intact, dim=1)
    for start in range(0, len(views), 1024):
        cosine = F.normalize(views[start : start + 1024], dim=1) @ base.T
        own = cosine[torch.arange(len(cosine)), torch.arange(start, start + len(cosine))]
        right += int(((cosine >= own[:, None]).sum(1) == 1).sum())
    return right / len(views)
