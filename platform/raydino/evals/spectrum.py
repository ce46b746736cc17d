"""Is the representation alive? Label-free figures of a set of features, cheap enough for every evaluation.

They answer what a falling loss cannot: whether features are collapsing to a point (feature_std to 0), to few dimensions
(rankme to 1), or whether they spread over the sphere (uniformity, lower is better). N features, D dimensions.
"""

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from raydino.evals.config import SpectrumConfig
from raydino.evals.distortions import zoomed
from raydino.evals.evaluation import Evaluation, Labelled
from raydino.evals.features import encoded, extract

if TYPE_CHECKING:
    from raydino.nn.backbone import Backbone

RANKME_EPSILON = 1e-7  # Garrido et al. 2023, equation 1
_CHUNK = 1024  # rows of the N x N distances held at once


def rankme(features: Float[Tensor, "N D"]) -> float:
    """Effective rank: exp of the entropy of the singular values, normalised to sum 1 (RankMe, Garrido et al. 2023).

    Between 1 and min(N, D); features are not centred, as in the paper. Raises ValueError for fewer than 2 features.
    """
    values = torch.linalg.svdvals(_checked(features))
    share = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny) + RANKME_EPSILON
    return float(torch.exp(-(share * share.log()).sum()))


def feature_std(features: Float[Tensor, "N D"]) -> float:
    """Mean over dimensions of the standard deviation of the L2-normalised features, times √D: 0 collapsed, about 1
    spread out.

    (SimSiam, Chen and He 2021, section 4.1.) Raises ValueError for fewer than 2 features.
    """
    normed = F.normalize(_checked(features), dim=1)
    return float(normed.std(dim=0, correction=0).mean() * normed.shape[1] ** 0.5)


def uniformity(features: Float[Tensor, "N D"], *, t: float = 2.0) -> float:
    """Log of the mean of exp(-t·‖x - y‖²) over all pairs of different rows, features L2-normalised (Wang and Isola
    2020).

    0 when all features coincide, lower as they spread; at least -4t. Raises ValueError for fewer than 2 features.
    """
    normed = F.normalize(_checked(features), dim=1)
    count = len(normed)
    total = normed.new_zeros(())
    for start in range(0, count, _CHUNK):
        cosine = normed[start : start + _CHUNK] @ normed.T
        total += torch.exp(-t * (2 - 2 * cosine).clamp_min(0)).sum()
    pairs = (total - count).clamp_min(0) / (count * (count - 1))  # each row meets itself once, at distance 0
    return float(pairs.clamp_min(torch.finfo(pairs.dtype).tiny).log())


def alignment(features: Float[Tensor, "N D"], views: Float[Tensor, "N D"]) -> float:
    """Mean squared distance of the L2-normalised features of two views of the same images: 0 when they agree, 2 when they are
    unrelated (Wang and Isola 2020). Low is good only beside a low uniformity: collapsed features are aligned as well.
    """
    one, other = (F.normalize(_checked(rows), dim=1) for rows in (features, views))
    return float((one - other).square().sum(1).mean())


def spectrum(features: Float[Tensor, "N D"]) -> dict[str, float]:
    """All three, by name: `rankme`, `feature_std`, `uniformity`."""
    return {"rankme": rankme(features), "feature_std": feature_std(features), "uniformity": uniformity(features)}


class Spectrum(Evaluation):
    """`rankme`, `feature_std` and `uniformity` of the queries, and `alignment` with a crop of each."""

    def __init__(self, config: SpectrumConfig) -> None:
        """An evaluation by `config`."""
        self.config = config

    @property
    def protocol(self) -> str:
        """The protocol in words."""
        c = self.config
        return (
            f"cls features of {c.queries:,} queries: RankMe, mean deviation of a dimension times √D, uniformity (t = 2), and "
            f"alignment with the top left {c.share:.0%} of the sides, enlarged"
        )

    def run(self, encoder: "Backbone", labelled: Labelled) -> dict[str, float]:
        """All four. Raises ValueError for fewer than 2 decodable queries."""
        device = next(encoder.parameters()).device
        queries = labelled.queries.at_most(self.config.queries, seed=labelled.seed)
        features, _ = extract(encoder, queries, labelled.normalisation, device=device)
        views, _ = encoded(
            encoder,
            lambda x: encoder(zoomed(x, share=self.config.share)).cls,
            queries,
            labelled.normalisation,
            device=device,
        )
        return spectrum(features) | {"alignment": alignment(features, views)}


def _checked(features: Tensor) -> Tensor:
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"features of shape {tuple(features.shape)}: the spectrum needs [N, D] with N at least 2")
    # Double precision: at 32 bits the smallest singular values are noise of 1e-7 of the largest, as large as epsilon.
    return features.detach().double()
